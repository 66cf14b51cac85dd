// Package proxy carries the HTTP requests of devices to a list of services,
// and to nothing else: what a service's name resolves to is checked when it is
// dialled, and only the list itself can name an address inside.
package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const (
	maxTime     = 10 * time.Second // of one request, in all
	minTime     = time.Second      // the least that a client can ask for
	maxRequests = 256              // at once
	maxIdle     = 16               // connections of one service
	maxBody     = 1 << 20          // of a response
	maxAnswer   = 16 << 10         // a response's header
	maxURI      = 8 << 10
)

// methods by their numbers in mpush.
var methods = [...]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete}

// Proxy is safe for concurrent use. A nil Proxy allows nothing.
type Proxy struct {
	services map[origin]*service
	busy     chan struct{}         // a token for each request; never closed
	dialer   net.Dialer            // for services without an address of their own
	public   func(netip.Addr) bool // isPublic, but in tests
}

// service is an entry of the list. Its connections are its own: a request
// cannot meet the connection of another entry.
type service struct {
	host      string // as it stands in Host, without the scheme's own port
	transport *http.Transport
}

// Request is what a device asks for.
type Request struct {
	Method  uint8  // 0 GET, 1 POST, 2 PUT, 3 DELETE
	URI     string // absolute
	Headers string // lines of name:value
	Body    []byte
	Remote  netip.Addr // the device's; not valid: not told to the service
}

// Response is what it gets.
type Response struct {
	Status  int
	Reason  string
	Headers string // lines of name:value, lower case, sorted
	Body    []byte
	Own     bool // made here: 400, 403, 408, 502, 503 or 504 without a body
}

// New makes a proxy to the services of a list. An entry is scheme://host:port,
// where the port may be left out, and nothing else of a URL may follow:
//
//	https://api.shop.example
//	http://stock.shop.example:8080=10.0.0.7
//	http://price.shop.example=10.0.0.8:9000
//
// A host is dialled at what it resolves to if that is a public address, and
// with an address behind "=" at exactly that one, which may be private. Host
// header and TLS name are those of the entry all the same.
func New(allow []string) (*Proxy, error) {
	p := &Proxy{
		services: make(map[origin]*service),
		busy:     make(chan struct{}, maxRequests),
		public:   isPublic,
	}
	// A dial may outlive the request that began it; it has its own end.
	p.dialer = net.Dialer{Timeout: maxTime, ControlContext: p.checkDial}
	for _, entry := range allow {
		from, to, err := parseEntry(entry)
		if err == nil && p.services[from] != nil {
			err = errors.New("another entry has the same scheme, host and port")
		}
		if err != nil {
			return nil, fmt.Errorf("proxy: entry %q: %w", entry, err)
		}
		p.services[from] = p.newService(from, to)
	}
	return p, nil
}

func (p *Proxy) newService(from origin, to netip.AddrPort) *service {
	dialer, address := &p.dialer, net.JoinHostPort(from.host, from.port)
	if to.IsValid() {
		dialer, address = &net.Dialer{Timeout: maxTime}, to.String()
	}
	var http1 http.Protocols
	http1.SetHTTP1(true)
	return &service{
		host: from.authority(),
		transport: &http.Transport{
			Proxy: nil, // the environment has no say in where requests go
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, address)
			},
			Protocols:              &http1,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    maxTime,
			DisableCompression:     true, // bodies pass as they are
			MaxResponseHeaderBytes: maxAnswer,
			MaxConnsPerHost:        maxRequests,
			MaxIdleConnsPerHost:    maxIdle,
			IdleConnTimeout:        time.Minute,
		},
	}
}

// Do carries one request. It takes 10 seconds at most, less if the request's
// readTimeout header or ctx says so, and keeps nothing of r.
func (p *Proxy) Do(ctx context.Context, r *Request) Response {
	if p == nil {
		return own(http.StatusForbidden)
	}
	u, from, ok := parseURI(r.URI)
	if !ok || int(r.Method) >= len(methods) {
		return own(http.StatusBadRequest)
	}
	header, timeout, ok := parseHeaders(r.Headers)
	if !ok {
		return own(http.StatusBadRequest)
	}
	s := p.services[from]
	if s == nil {
		return own(http.StatusForbidden)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// A copy of the body, which may still be sent after Do has given up.
	req, err := http.NewRequestWithContext(ctx, methods[r.Method], "", bytes.NewReader(bytes.Clone(r.Body)))
	if err != nil {
		return own(http.StatusBadRequest)
	}
	u.Host = s.host
	req.URL, req.Host, req.Header = u, s.host, header
	if header.Get("User-Agent") == "" {
		header["User-Agent"] = []string{""} // none, instead of Go's
	}
	if r.Remote.IsValid() {
		header.Set("X-Forwarded-For", r.Remote.Unmap().WithZone("").String())
	}

	select {
	case p.busy <- struct{}{}:
	default:
		return own(http.StatusServiceUnavailable)
	}
	// The transport waits for its writer when a request is cancelled, and TLS
	// for up to 5 s to say goodbye to a service that does not read. Do does
	// not; the request counts until that is over.
	done := make(chan Response, 1) // never closed
	go func() {
		response := s.do(req)
		<-p.busy
		done <- response
	}()
	select {
	case response := <-done:
		return response
	case <-ctx.Done():
		return own(http.StatusRequestTimeout)
	}
}

func (s *service) do(req *http.Request) Response {
	resp, err := s.transport.RoundTrip(req) // one trip: redirects and cookies are the device's
	if err != nil {
		return own(failure(req.Context(), err))
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.ContentLength > maxBody {
		return own(http.StatusBadGateway)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return own(failure(req.Context(), err))
	}
	if len(body) > maxBody {
		return own(http.StatusBadGateway)
	}
	return Response{
		Status:  resp.StatusCode,
		Reason:  reason(resp),
		Headers: formatHeaders(resp.Header, len(body)),
		Body:    body,
	}
}

// Close closes the connections that no request is using.
func (p *Proxy) Close() {
	if p == nil {
		return
	}
	for _, s := range p.services {
		s.transport.CloseIdleConnections()
	}
}

// failure is the status for an error on the way to a service and back, as
// mpush has it.
func failure(ctx context.Context, err error) int {
	var timeout interface{ Timeout() bool }
	var op *net.OpError
	switch {
	case ctx.Err() != nil, errors.As(err, &timeout) && timeout.Timeout():
		return http.StatusRequestTimeout
	case errors.As(err, &op) && op.Op == "dial":
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// own says no more than the status: neither addresses nor causes.
func own(status int) Response {
	return Response{Status: status, Reason: http.StatusText(status), Headers: formatHeaders(nil, 0), Own: true}
}

// reason is the text of the status line.
func reason(resp *http.Response) string {
	text := strings.TrimSpace(strings.TrimPrefix(resp.Status, strconv.Itoa(resp.StatusCode)))
	if text == "" || hasControl(text) {
		return http.StatusText(resp.StatusCode)
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
