package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	allocTimeout = 3 * time.Second // as in the original
	maxAlloc     = 64 << 10        // bytes of an allocator's answer
)

// servers are the addresses to try: the first of left is the current one.
type servers struct {
	cfg  *Config
	http http.Client
	left []string
}

func newServers(cfg *Config) servers {
	s := servers{cfg: cfg}
	if cfg.Allocator != "" {
		s.http = http.Client{
			Timeout: allocTimeout,
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, DialContext: cfg.Dial, TLSClientConfig: cfg.TLS.Clone(),
				DisableKeepAlives: true, MaxResponseHeaderBytes: maxAlloc,
			},
		}
	}
	return s
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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.Allocator, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
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
		if addr = strings.TrimSpace(addr); checkHostPort(addr) == nil {
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
	return err
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
