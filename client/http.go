package client

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/embedpush/push/internal/mpush"
)

var httpMethods = map[string]uint8{"": 0, http.MethodGet: 0, http.MethodPost: 1, http.MethodPut: 2, http.MethodDelete: 3}

// RoundTrip sends an HTTP request through the server's proxy, which makes the
// Client an http.RoundTripper:
//
//	web := http.Client{Transport: c, Timeout: 10 * time.Second}
//
// The proxy has GET, POST, PUT and DELETE, and reaches what its server allows:
// 403 is its answer to anything else. Body and response are in memory as a
// whole, at most Config.MaxMessage bytes each, and fewer if the server has it
// so. How long the request's context lets it wait is told to the proxy; without
// an end of the context, or of http.Client's Timeout, it may wait for ever.
// req.Host is ignored: the URL's is the one. Errors are those of the other
// requests.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(io.LimitReader(req.Body, int64(c.cfg.MaxMessage)+1))
		req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	method, ok := httpMethods[req.Method]
	switch {
	case !ok:
		return nil, fmt.Errorf("client: http: method %.20q, want GET, POST, PUT or DELETE", req.Method)
	case req.URL == nil || req.URL.Scheme != "http" && req.URL.Scheme != "https" || req.URL.Host == "":
		return nil, fmt.Errorf("client: http: want an http or https URL with a host")
	}
	headers, err := formatHeaders(req)
	if err != nil {
		return nil, err
	}
	u := *req.URL
	u.User, u.Fragment, u.RawFragment = nil, "", "" // a fragment is not sent, and of a user http.Client makes a header
	ask := mpush.ProxyRequest{Method: method, URI: u.String(), Headers: headers, Body: body}
	p := &call{cmd: mpush.CmdHTTPProxy, body: ask.Append(nil), waits: true}
	if err := c.checkSize(p.body); err != nil {
		return nil, err
	}
	if err := c.send(req.Context(), p); err != nil {
		return nil, err
	}
	return response(req, p.reply), nil
}

// formatHeaders makes lines of name:value.
func formatHeaders(req *http.Request) (string, error) {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		for _, value := range req.Header[name] {
			if name == "" || strings.ContainsAny(name, ":\r\n") || strings.ContainsAny(value, "\r\n") {
				return "", fmt.Errorf("client: http: header %.40q cannot be a line of name:value", name)
			}
			text.WriteString(name + ":" + value + "\n")
		}
	}
	if deadline, ok := req.Context().Deadline(); ok {
		ms := max(time.Until(deadline).Milliseconds(), 1)
		text.WriteString("readTimeout:" + strconv.FormatInt(ms, 10) + "\n") // for the proxy, which does not pass it on
	}
	return text.String(), nil
}

func response(req *http.Request, r *mpush.ProxyResponse) *http.Response {
	header := make(http.Header)
	for line := range strings.SplitSeq(r.Headers, "\n") {
		if name, value, found := strings.Cut(line, ":"); found && name != "" {
			header.Add(name, strings.TrimSpace(value))
		}
	}
	status := int(r.Status)
	reason := r.Reason
	if reason == "" {
		reason = http.StatusText(status)
	}
	return &http.Response{
		Status: strings.TrimSpace(strconv.Itoa(status) + " " + reason), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(bytes.NewReader(r.Body)), ContentLength: int64(len(r.Body)), Request: req,
	}
}

// proxied is told a response. Only a failure of the proxy itself may come
// plain on an encrypted session, and no more of it is believed than that.
func (cn *conn) proxied(p *mpush.Packet) error {
	r := new(mpush.ProxyResponse)
	if err := cn.read(p, r.Decode); err != nil {
		return err
	}
	if r.Status < 100 || r.Status > 999 {
		return fmt.Errorf("%w: an HTTP status of %d", ErrProtocol, r.Status)
	}
	if cn.c.key != nil && p.Flags&mpush.FlagCrypto == 0 {
		if r.Status < 400 {
			return errPlain(mpush.CmdHTTPProxy)
		}
		r.Headers, r.Body = "", nil
	}
	r.Body = bytes.Clone(r.Body)
	return cn.answer(callID{mpush.CmdHTTPProxy, p.ID}, r, nil)
}
