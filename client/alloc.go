package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	maxAddrs     = 16              // of an allocator's answer
	maxAddr      = 300             // bytes of an address, whose host may have 253
	allocTimeout = 3 * time.Second // as in the original
	maxAlloc     = 64 << 10        // bytes of an allocator's answer
)

// servers are the addresses to try: the first of left is the current one.
type servers struct {
	cfg  *Config
	left []string
}

// next is the address to try now. When all have been dropped the list is made
// anew.
func (s *servers) next(ctx context.Context) (string, error) {
	if len(s.left) > 0 {
		return s.left[0], nil
	}
	var err error
	if s.cfg.Allocator != "" {
		if s.left, err = s.ask(ctx); err != nil {
			s.cfg.Logger.Debug("client: get server address failed", "err", err)
		}
	}
	if len(s.left) == 0 {
		s.left = append(s.left, s.cfg.Addrs...)
	}
	if len(s.left) == 0 {
		return "", fmt.Errorf("client: allocator: %w", err)
	}
	return s.left[0], nil
}

// drop takes the current address off the list, and reports whether it was the
// last one.
func (s *servers) drop() bool {
	s.left = s.left[1:]
	return len(s.left) == 0
}

func (s *servers) ask(ctx context.Context) ([]string, error) {
	ctx, stop := context.WithTimeout(ctx, allocTimeout)
	defer stop()
	web := http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: s.cfg.TLS.Clone(),
		DisableKeepAlives: true, MaxResponseHeaderBytes: maxAlloc,
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) { // its context would outlive ours
			nc, err := s.cfg.Dial(ctx, network, addr)
			if err == nil {
				context.AfterFunc(ctx, func() { nc.Close() })
			}
			return nc, err
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.Allocator, nil)
	if err != nil {
		return nil, err
	}
	resp, err := web.Do(req)
	if err != nil {
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			err = ue.Err // without the URL, which may have a secret in it
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d, want 200", resp.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAlloc+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxAlloc {
		return nil, fmt.Errorf("more than %d bytes of addresses", maxAlloc)
	}
	var addrs []string
	for addr := range strings.SplitSeq(string(text), ",") {
		if addr = strings.TrimSpace(addr); checkHostPort(addr) == nil && len(addrs) < maxAddrs && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("no address in %.100q, want host:port,host:port", text)
	}
	return addrs, nil
}

// checkAddr judges one of Config.Addrs.
func checkAddr(addr string) error {
	if strings.Contains(addr, "://") {
		return checkURL(addr, "ws", "wss")
	}
	return checkHostPort(addr)
}

func checkHostPort(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && (host == "" || port == "") {
		err = fmt.Errorf("%.100q lacks a host or a port", addr)
	}
	if err == nil && len(addr) > maxAddr {
		err = fmt.Errorf("%.100q… has %d bytes, want %d at most", addr, len(addr), maxAddr)
	}
	return err
}

// logAddr is an address as the log takes it: without what may be a secret.
func logAddr(addr string) string {
	if u, err := url.Parse(addr); err == nil && u.Host != "" {
		return u.Scheme + "://" + u.Host
	}
	return addr
}

func checkURL(text string, schemes ...string) error {
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("it is not a URL") // its error would have the query in it
	}
	for _, scheme := range schemes {
		if u.Scheme == scheme && u.Host != "" {
			return nil
		}
	}
	return fmt.Errorf("scheme %.20q and host %.100q, want %s and a host", u.Scheme, u.Host, strings.Join(schemes, " or "))
}
