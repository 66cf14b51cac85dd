package proxy

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestAnEntryIsASchemeAHostAndAPort(t *testing.T) {
	for entry, want := range map[string]struct {
		origin
		to, authority string
	}{
		"http://shop.example":                        {origin{"http", "shop.example", "80"}, "", "shop.example"},
		"https://shop.example":                       {origin{"https", "shop.example", "443"}, "", "shop.example"},
		"HTTPS://Shop.Example:80":                    {origin{"https", "shop.example", "80"}, "", "shop.example:80"},
		"http://shop.example:80=10.0.0.7:8080":       {origin{"http", "shop.example", "80"}, "10.0.0.7:8080", "shop.example"},
		"http://shop.example:8080=10.0.0.7":          {origin{"http", "shop.example", "8080"}, "10.0.0.7:8080", "shop.example:8080"},
		"https://shop.example=[fd00::7]":             {origin{"https", "shop.example", "443"}, "[fd00::7]:443", "shop.example"},
		"https://shop.example=[fd00::7]:65535":       {origin{"https", "shop.example", "443"}, "[fd00::7]:65535", "shop.example"},
		"http://shop.example=[::ffff:10.0.0.7]:81":   {origin{"http", "shop.example", "80"}, "10.0.0.7:81", "shop.example"},
		"http://localhost:1=127.0.0.1":               {origin{"http", "localhost", "1"}, "127.0.0.1:1", "localhost:1"},
		"http://10.0.0.7:8080=10.0.0.7:8080":         {origin{"http", "10.0.0.7", "8080"}, "10.0.0.7:8080", "10.0.0.7:8080"},
		"http://8.8.8.8":                             {origin{"http", "8.8.8.8", "80"}, "", "8.8.8.8"},
		"http://[2606:4700::1111]:8080":              {origin{"http", "2606:4700::1111", "8080"}, "", "[2606:4700::1111]:8080"},
		"https://[2606:4700::ABCD]":                  {origin{"https", "2606:4700::abcd", "443"}, "", "[2606:4700::abcd]"},
		"http://xn--mnchen-3ya.example":              {origin{"http", "xn--mnchen-3ya.example", "80"}, "", "xn--mnchen-3ya.example"},
		"http://stock_1:9000=192.168.1.1":            {origin{"http", "stock_1", "9000"}, "192.168.1.1:9000", "stock_1:9000"},
		"http://3com.example":                        {origin{"http", "3com.example", "80"}, "", "3com.example"},
		"http://" + strings.Repeat("a.", 20) + "bc1": {origin{"http", strings.Repeat("a.", 20) + "bc1", "80"}, "", strings.Repeat("a.", 20) + "bc1"},
	} {
		from, to, err := parseEntry(entry)
		if err != nil {
			t.Errorf("%s: %v", entry, err)
			continue
		}
		got := ""
		if to.IsValid() {
			got = to.String()
		}
		if from != want.origin || got != want.to || from.authority() != want.authority {
			t.Errorf("%s: got %+v at %q, Host %s", entry, from, got, from.authority())
		}
	}
}

func TestAWrongEntryIsNamed(t *testing.T) {
	for entry, want := range map[string]string{
		"":                                      "want http",
		"shop.example":                          "want http",
		"shop.example:80":                       "want http",
		"//shop.example":                        "want http",
		"http:shop.example":                     "want http",
		"http://":                               "want http",
		"http://:80":                            "want http",
		"ftp://shop.example":                    "want http",
		"file:///etc/passwd":                    "want http",
		"http://shop.example/":                  "nothing may follow",
		"http://shop.example/api":               "nothing may follow",
		"http://shop.example?":                  "nothing may follow",
		"http://shop.example#":                  "nothing may follow",
		"http://shop.example?a":                 "nothing may follow",
		"http://u@shop.example":                 "a user",
		"http://u:p@shop.example":               "a user",
		"http://shop.example:0":                 "port",
		"http://shop.example:080":               "port",
		"http://shop.example:65536":             "port",
		"http://shop.example:http":              "port",
		"http://shop.example.":                  "neither a name",
		"http://.example":                       "neither a name",
		"http://shop..example":                  "neither a name",
		"http://*.example":                      "neither a name",
		"http://münchen.example":                "neither a name",
		"http://m%C3%BCnchen.example":           "neither a name",
		"http://" + strings.Repeat("a", 64):     "neither a name",
		"http://shop example":                   "invalid character",
		"http://shop.example\r\n":               "control character",
		"http://127.0.0.1":                      "no public address",
		"http://10.0.0.7:8080":                  "no public address",
		"http://[::1]":                          "no public address",
		"http://[::ffff:8.8.8.8]":               "no public address",
		"http://[fe80::1%25eth0]=127.0.0.1":     "zone",
		"http://127.1=127.0.0.1":                "not how an address",
		"http://0177.0.0.1":                     "not how an address",
		"http://2130706433":                     "not how an address",
		"http://0x7f000001":                     "not how an address",
		"http://0x7f.1":                         "not how an address",
		"http://0":                              "not how an address",
		"http://shop.example=":                  "no IP address",
		"http://shop.example=localhost":         "no IP address",
		"http://shop.example=127.1":             "no IP address",
		"http://shop.example=::1":               "no IP address",
		"http://shop.example=[10.0.0.7]":        "no IP address",
		"http://shop.example=[::1":              "no IP address",
		"http://shop.example=::1]":              "no IP address",
		"http://shop.example=10.0.0.7:":         "no IP address",
		"http://shop.example=10.0.0.7:80=":      "no IP address",
		"http://shop.example=10.0.0.7:99999":    "no IP address",
		"http://shop.example=http://10.0.0.7":   "no IP address",
		"http://shop.example=10.0.0.7:0":        "port 0",
		"http://shop.example=0.0.0.0":           "one host",
		"http://shop.example=[::]":              "one host",
		"http://shop.example=[::ffff:0.0.0.0]":  "one host",
		"http://shop.example=224.0.0.1":         "one host",
		"http://shop.example=[fe80::1%eth0]:80": "one host",
	} {
		_, err := New([]string{"http://good.example", entry})
		if err == nil {
			t.Errorf("%q: accepted", entry)
		} else if got := err.Error(); !strings.Contains(got, want) || !strings.Contains(got, fmt.Sprintf("%q", entry)) {
			t.Errorf("%q: want it named and %q, got: %v", entry, want, err)
		}
	}
}

func TestTwoEntriesOfOneOriginAreRefused(t *testing.T) {
	for _, second := range []string{"http://shop.example:80", "HTTP://SHOP.example=10.0.0.7"} {
		if _, err := New([]string{"http://shop.example", second}); err == nil || !strings.Contains(err.Error(), "another entry") {
			t.Errorf("%s: got %v", second, err)
		}
	}
	newProxy(t, "http://shop.example", "https://shop.example", "http://shop.example:443", "http://www.shop.example")
}

func TestAProxyWithoutServicesAllowsNothing(t *testing.T) {
	var none *Proxy
	none.Close()
	for _, p := range []*Proxy{none, newProxy(t)} {
		wantOwn(t, "empty list", p.Do(t.Context(), &Request{URI: "http://shop.example/"}), http.StatusForbidden)
	}
}

func TestOnlyInternetUnicastIsPublic(t *testing.T) {
	for _, addr := range strings.Fields(`1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
		169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255
		2001:200::1 2606:4700::1111 2a00:1450::1 2003::1 3ffe::1`) {
		if !isPublic(netip.MustParseAddr(addr)) {
			t.Errorf("%s is refused", addr)
		}
	}
	for _, addr := range strings.Fields(`0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.100.100.200 100.127.255.255
		127.0.0.1 127.255.255.255 168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1
		198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
		:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:8.8.8.8 64:ff9b::7f00:1 64:ff9b::8.8.8.8 64:ff9b:1::1 100::1
		2001::1 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::1 3fff::1 3fff:fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254
		fe80::1 fe80::1%eth0 2606:4700::1111%eth0 fec0::1 ff02::1 ffff::1`) {
		if isPublic(netip.MustParseAddr(addr)) {
			t.Errorf("%s is dialled", addr)
		}
	}
	if isPublic(netip.Addr{}) {
		t.Error("the zero address is dialled")
	}
}

func TestWhatIsNotOnTheListIsNotReached(t *testing.T) {
	c := newCanary(t)
	p := newProxy(t, "http://shop.example:"+c.port(), "https://secure.example:"+c.port(), "http://127.0.0.2:"+c.port()+"=127.0.0.1")
	for _, host := range []string{
		// Loopback, in every spelling of it.
		"127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0x0.0x0.0x1", "0177.0.0.1", "017700000001", "[::1]", "[::ffff:127.0.0.1]",
		"[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "localhost", "LOCALHOST", "localhost.", "0.0.0.0", "0", "[::]", "127.0.0.1.", "127.0.0.2.", "[::ffff:127.0.0.2]",
		"127.0.0.002", "127.000.000.002", "169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal",
		// Like an entry, and not it.
		"shop.example.", "xshop.example", "www.shop.example", "shop.example.evil.example", "hop.example", "shop.example%00", "shop.example%2e",
		"ſhop.example", "shop%E3%80%82example", "secure.example", "shop-example", "*",
	} {
		r := p.Do(t.Context(), &Request{URI: "http://" + host + ":" + c.port() + "/"})
		if r.Status == http.StatusBadRequest && strings.ContainsAny(host, "%*") {
			continue // no URL at all
		}
		wantOwn(t, host, r, http.StatusForbidden)
	}
	for _, uri := range []string{
		"http://shop.example/", "http://shop.example:80/", "http://shop.example:1/", "http://shop.example:0" + c.port() + "/", "http://shop.example:/",
		"https://shop.example:" + c.port() + "/", "http://secure.example:" + c.port() + "/", "ftp://shop.example:" + c.port() + "/",
		"gopher://shop.example:" + c.port() + "/_", "ws://shop.example:" + c.port() + "/", "unix://shop.example:" + c.port() + "/",
	} {
		wantOwn(t, uri, p.Do(t.Context(), &Request{URI: uri}), http.StatusForbidden)
	}
	c.wantNone()
}

func TestWhatIsNoURLIsRefused(t *testing.T) {
	c := newCanary(t)
	p := newProxy(t, "http://shop.example="+c.Addr().String())
	for _, uri := range []string{
		"", "/", "/path", "shop.example", "//shop.example/", "http:", "http:/", "http://", "http:///", "http:///path", "http:shop.example", "http:/shop.example", "://shop.example",
		"http://:80/", "mailto:a@shop.example", "http://u@shop.example/", "http://u:p@shop.example/", "http://@shop.example/", "http://:@shop.example/",
		"http://shop.example\\@evil.example/", "http://evil.example#@shop.example/", "http://shop.example/#", "http://shop.example/#a", "http://shop.example#",
		"http://shop.example/\r\nX-A: b", "http://shop.example/\n", "http://shop.example/\r", "http://shop.example\r\n/", "\nhttp://shop.example/", "http://shop.example/\t",
		"http://shop.example/\x00", "http://shop.example/\x7f", "http://shop.example/?a\r\nHost: evil", "http://shop.example/?a HTTP/1.1", "http://shop.example/a b", " http://shop.example/",
		"http://shop.example/%", "http://shop.example/%zz", "http://shop.example:port/", "http://[shop.example/", "http://[::1/", "http://shop.example:80:80/", "http://shop.example:-1/",
		"http://shop.example/" + strings.Repeat("a", maxURI),
	} {
		wantOwn(t, fmt.Sprintf("%.60q", uri), p.Do(t.Context(), &Request{URI: uri}), http.StatusBadRequest)
	}
	for method := len(methods); method < 256; method++ {
		wantOwn(t, fmt.Sprint("method ", method), p.Do(t.Context(), &Request{Method: uint8(method), URI: "http://shop.example/"}), http.StatusBadRequest)
	}
	c.wantNone()
}

func TestANameThatResolvesToTheInsideIsNotDialled(t *testing.T) {
	c := newCanary(t)
	p := newProxy(t, "http://shop.example:"+c.port(), "https://shop.example:"+c.port())
	var dns names
	p.dialer.Resolver = dns.resolver()
	for _, addrs := range [][]string{
		{"127.0.0.1"}, {"127.0.0.1", "127.0.0.1"}, {"::1"}, {"::ffff:127.0.0.1"}, {"127.0.0.1", "::1", "10.0.0.1"}, {"0.0.0.0"}, {"::"},
		{"10.0.0.1"}, {"169.254.169.254"}, {"192.168.1.1"}, {"100.64.0.1"}, {"224.0.0.1"}, {"203.0.113.1"}, {"255.255.255.255"},
		{"64:ff9b::7f00:1"}, {"fd00:ec2::254"}, {"fe80::1"}, {"2002:7f00:1::1"},
		{}, // no address
	} {
		dns.set(addrs...)
		for _, scheme := range []string{"http", "https"} {
			before := dns.queries()
			r := p.Do(t.Context(), &Request{URI: scheme + "://shop.example:" + c.port() + "/"})
			wantOwn(t, fmt.Sprint(scheme, addrs), r, http.StatusGatewayTimeout)
			if dns.queries() == before {
				t.Errorf("%v: the name was not asked for", addrs)
			}
		}
	}
	c.wantNone()
}

// Rebinding: the name is good when it is asked for the first time, and leads
// inside afterwards.
func TestEachDialIsChecked(t *testing.T) {
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, "hello")
	})
	_, port, _ := strings.Cut(at, ":")
	p := newProxy(t, "http://shop.example:"+port)
	var dns names
	p.dialer.Resolver = dns.resolver()
	p.public = func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.1") } // the Internet, for now
	uri := "http://shop.example:" + port + "/"

	dns.set("127.0.0.1")
	wantFrom(t, "at first", p.Do(t.Context(), &Request{URI: uri}), http.StatusOK, "hello")
	dns.set("127.0.0.2")
	wantOwn(t, "later", p.Do(t.Context(), &Request{URI: uri}), http.StatusGatewayTimeout)
	dns.set("127.0.0.2", "127.0.0.1")
	wantFrom(t, "both", p.Do(t.Context(), &Request{URI: uri}), http.StatusOK, "hello")
	dns.set("127.0.0.1")
	p.public = isPublic
	wantOwn(t, "as it is", p.Do(t.Context(), &Request{URI: uri}), http.StatusGatewayTimeout)
}

func TestAnEntrysAddressIsDialledWithoutAskingForItsName(t *testing.T) {
	at := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) })
	p := newProxy(t, "http://shop.example="+at, "http://shop.example:8080="+at, "http://[fd00::7]="+at)
	var dns names
	p.dialer.Resolver = dns.resolver()
	wantFrom(t, "80", p.Do(t.Context(), &Request{URI: "http://Shop.EXAMPLE/"}), http.StatusOK, "shop.example")
	wantFrom(t, ":80", p.Do(t.Context(), &Request{URI: "HTTP://shop.example:80"}), http.StatusOK, "shop.example")
	wantFrom(t, "8080", p.Do(t.Context(), &Request{URI: "http://shop.example:8080/"}), http.StatusOK, "shop.example:8080")
	wantFrom(t, "IPv6", p.Do(t.Context(), &Request{URI: "http://[FD00::7]/"}), http.StatusOK, "[fd00::7]")
	if n := dns.queries(); n != 0 {
		t.Errorf("%d queries", n)
	}
}

func TestTheEnvironmentHasNoSay(t *testing.T) {
	c := newCanary(t)
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, "http://"+c.Addr().String())
	}
	at := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })
	p := newProxy(t, "http://shop.example="+at)
	wantFrom(t, "with HTTP_PROXY", p.Do(context.Background(), &Request{URI: "http://shop.example/"}), http.StatusOK, "hello")
	c.wantNone()
	for from, s := range p.services {
		if s.transport.Proxy != nil {
			t.Errorf("%v asks the environment, which net/http may have read before this test", from)
		}
	}
}

func FuzzURI(f *testing.F) {
	for _, uri := range []string{"http://shop.example/a?b=c", "HTTPS://Shop.Example:443/%41/é", "http://[::1]:80/", "http://u:p@shop.example", "http:shop.example", "http://ſhop.example"} {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		u, from, ok := parseURI(uri)
		if !ok {
			return
		}
		line := u.RequestURI()
		if u.User != nil || strings.ContainsFunc(line, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || !strings.HasPrefix(line, "/") {
			t.Fatalf("%q asks for %q", uri, line)
		}
		if !strings.HasPrefix(strings.ToLower(uri), from.scheme+"://") {
			t.Fatalf("%q is of %+v", uri, from)
		}
	})
}
