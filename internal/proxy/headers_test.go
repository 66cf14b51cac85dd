package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestHeadersAreParsed(t *testing.T) {
	for text, want := range map[string]http.Header{
		"":                                       {},
		"\n\n":                                   {},
		"a:b\n":                                  {"A": {"b"}},
		"a:b":                                    {"A": {"b"}},
		"a:b\nc:d":                               {"A": {"b"}, "C": {"d"}},
		"a: b \na:c\n":                           {"A": {"b", "c"}},
		"a:b:c\n":                                {"A": {"b:c"}},
		"a:\n":                                   {"A": {""}},
		":b\na:b\n:\n":                           {"A": {"b"}},
		"a:b\n\nc:d\n":                           {"A": {"b"}, "C": {"d"}},
		"x-caf:caf\xc3\xa9 \xe9\n":               {"X-Caf": {"café \xe9"}},
		"!#$%&'*+-.^_`|~09az:b":                  {"!#$%&'*+-.^_`|~09az": {"b"}},
		"connection:a, b\na:1\nB:2\nc:3\n":       {"C": {"3"}},
		strings.Repeat("a:\n", maxHeaderLines):   {"A": make([]string, maxHeaderLines)},
		"a:" + strings.Repeat("b", maxHeaders-2): {"A": {strings.Repeat("b", maxHeaders-2)}},
	} {
		got, timeout, ok := parseHeaders(text)
		if !ok || timeout != maxTime || !reflect.DeepEqual(got, want) {
			t.Errorf("%.60q: got %v, %v, %v", text, got, timeout, ok)
		}
	}
}

func TestWhatAreNoHeadersIsRefused(t *testing.T) {
	c := newCanary(t)
	p := newProxy(t, "http://shop.example="+c.Addr().String())
	bad := []string{
		"a", "a\n", "a b:c\n", "a :b\n", " a:b\n", "a\x00:b\n", "a:b\x00\n", "a:b\r\n", "a:b\rc:d\n", "a:b\tc\n", "a:b\x7f\n", "a:\x1b[m\n", "\r\n", ":\r\n",
		"é:b\n", "a(b):c\n", "a,b:c\n", "a/b:c\n", "[a]:b\n", "{a}:b\n", "\"a\":b\n", "\\a:b\n", "a@b:c\n", "a;b:c\n", "a=b:c\n", "a?b:c\n", "<a>:b\n",
		"GET / HTTP/1.1\n", "a:b\nGET / HTTP/1.1\r\nHost:x\n", "a:b\n continued\n",
		strings.Repeat("a:\n", maxHeaderLines+1), strings.Repeat(":\n", maxHeaderLines+1),
		"a:" + strings.Repeat("b", maxHeaders-1), strings.Repeat("\n", maxHeaders+1),
	}
	for control := range 0x20 {
		if control != '\n' {
			bad = append(bad, fmt.Sprintf("a:b%cc\n", control), fmt.Sprintf("a%c:b\n", control))
		}
	}
	for _, text := range bad {
		if _, _, ok := parseHeaders(text); ok {
			t.Errorf("%.60q: accepted", text)
		}
		wantOwn(t, fmt.Sprintf("%.60q", text), p.Do(t.Context(), &Request{URI: "http://shop.example/", Headers: text}), http.StatusBadRequest)
	}
	c.wantNone()
}

func TestSomeHeadersAreNotTheClients(t *testing.T) {
	for _, name := range strings.Fields(`Host Connection Keep-Alive Proxy-Connection Proxy-Authorization Proxy-Authenticate Proxy-X TE Trailer
		Transfer-Encoding Upgrade Content-Length Expect Forwarded X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Forwarded-Port X-Forwarded-X
		X-Real-IP readTimeout X_Forwarded_For x_real_ip X-Forwarded_For Content_Length`) {
		for _, spelled := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			got, _, ok := parseHeaders("a:b\n" + spelled + ":1000\nc:d\n")
			if want := (http.Header{"A": {"b"}, "C": {"d"}}); !ok || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %v, %v", spelled, got, ok)
			}
		}
	}
	for _, name := range strings.Fields("Authorization Cookie Content-Type Accept Accept-Encoding Origin Referer Range If-None-Match X-Api-Key Hosts X-Forward Proxy") {
		if got, _, ok := parseHeaders(name + ":x\n"); !ok || got.Get(name) != "x" {
			t.Errorf("%s: got %v, %v", name, got, ok)
		}
	}
}

func TestAClientsTimeIsWithinBounds(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"readTimeout:1000": time.Second, "readTimeout:1001": 1001 * time.Millisecond, "readTimeout:999": time.Second, "readTimeout:0": time.Second,
		"readTimeout:-1": time.Second, "readTimeout:9999": 9999 * time.Millisecond, "readTimeout:10001": maxTime, "readTimeout:2147483648": maxTime,
		"readTimeout:9223372036854775808": maxTime, "readTimeout:-9223372036854775809": time.Second, "readTimeout:": maxTime, "readTimeout:1e3": maxTime,
		"readTimeout:5s": maxTime, "readTimeout:2000\nREADTIMEOUT:3000": 3 * time.Second, "read-timeout:2000": maxTime, "": maxTime,
	} {
		if _, got, ok := parseHeaders(text); !ok || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, ok, want)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	for _, text := range []string{"", "a:b\n", "Host:x\nX_Forwarded-For:y\nreadTimeout:5\n", "connection:a,b\na:1\n", "a:b\r\nc:d\n", "a b:c", ":\n", "a: \xff\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		header, timeout, ok := parseHeaders(text)
		if !ok {
			return
		}
		if timeout < minTime || timeout > maxTime {
			t.Fatalf("a timeout of %v", timeout)
		}
		values := 0
		for name, v := range header {
			values += len(v)
			if !isToken(name) || isOurs(strings.ToLower(name)) || hasControl(strings.Join(v, "")) {
				t.Fatalf("%q passes with %q", name, v)
			}
		}
		if values > maxHeaderLines {
			t.Fatalf("%d lines", values)
		}

		// On the wire it is one request with the same header.
		var wire bytes.Buffer
		wire.WriteString("POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\n")
		header.Write(&wire)
		wire.WriteString("\r\nbody")
		r := bufio.NewReader(&wire)
		req, err := http.ReadRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(req.Body); string(body) != "body" || err != nil || req.Host != "shop.example" {
			t.Fatalf("body %q of %s, %v", body, req.Host, err)
		}
		if _, err := r.ReadByte(); err != io.EOF {
			t.Fatal("there is more than one request")
		}
		delete(req.Header, "Content-Length")
		for name, v := range header {
			if !reflect.DeepEqual(req.Header[name], v) {
				t.Fatalf("%s: %q became %q", name, v, req.Header[name])
			}
		}
		if len(req.Header) != len(header) {
			t.Fatalf("%v became %v", header, req.Header)
		}
	})
}
