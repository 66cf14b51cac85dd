package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
)

// origin is what must be equal, to the character, in an entry and a request.
type origin struct{ scheme, host, port string } // lower case; the host of IPv6 without brackets

var defaultPorts = map[string]string{"http": "80", "https": "443"}

// authority is host and port as a Host header has them.
func (o origin) authority() string {
	host := o.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if o.port == defaultPorts[o.scheme] {
		return host
	}
	return host + ":" + o.port
}

func originOf(u *url.URL) origin {
	o := origin{strings.ToLower(u.Scheme), lowerASCII(u.Hostname()), u.Port()}
	if o.port == "" {
		o.port = defaultPorts[o.scheme]
	}
	return o
}

// lowerASCII leaves the letters alone that strings.ToLower takes for another
// spelling of an ASCII one, such as the Kelvin sign.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// parseURI takes an absolute URL without user and fragment.
func parseURI(uri string) (*url.URL, origin, bool) {
	if len(uri) > maxURI {
		return nil, origin{}, false
	}
	var escaped strings.Builder
	for i := range len(uri) {
		switch c := uri[i]; {
		case c <= ' ' || c == 0x7f || c == '#':
			return nil, origin{}, false
		case c >= 0x80: // not allowed in a URL, and sent by clients all the same
			fmt.Fprintf(&escaped, "%%%02X", c)
		default:
			escaped.WriteByte(c)
		}
	}
	u, err := url.Parse(escaped.String())
	if err != nil || u.Scheme == "" || u.Opaque != "" || u.Hostname() == "" || u.User != nil {
		return nil, origin{}, false
	}
	return u, originOf(u), true
}

// parseEntry takes an entry of the list, see New. An address that is not valid
// means what the host resolves to.
func parseEntry(entry string) (origin, netip.AddrPort, error) {
	from, to, mapped := strings.Cut(entry, "=")
	u, err := url.Parse(from)
	if cause := (*url.Error)(nil); errors.As(err, &cause) {
		err = cause.Err // the entry is in the text already
	}
	if err != nil {
		return origin{}, netip.AddrPort{}, err
	}
	o := originOf(u)
	switch {
	case o.scheme != "http" && o.scheme != "https" || u.Opaque != "" || o.host == "":
		return origin{}, netip.AddrPort{}, errors.New("want http://host:port or https://host:port")
	case u.User != nil:
		return origin{}, netip.AddrPort{}, errors.New("a user does not belong here")
	case u.Path != "" || strings.ContainsAny(from, "?#"):
		return origin{}, netip.AddrPort{}, errors.New("nothing may follow the port: every path of it is allowed")
	}
	port, err := parsePort(o.port)
	if err == nil {
		err = checkHost(o.host, strings.HasPrefix(u.Host, "["), mapped)
	}
	if err != nil || !mapped {
		return o, netip.AddrPort{}, err
	}
	addr, err := parseAddress(to, port)
	return o, addr, err
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != text {
		return 0, fmt.Errorf("port %q is none", text)
	}
	return uint16(n), nil
}

// checkHost takes an address, or a name that no resolver takes for one.
func checkHost(host string, brackets, mapped bool) error {
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() == brackets {
		switch {
		case addr.Zone() != "":
			return errors.New("an address with a zone")
		case !mapped && !isPublic(addr):
			return errors.New("no public address: if it is meant, write it a second time behind =")
		}
		return nil
	}
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return fmt.Errorf("host %q is neither a name (in Punycode, without a dot at its end) nor an address", host)
		}
	}
	// 127.1, 0177.0.0.1, 2130706433, 0x7f000001
	last := labels[len(labels)-1]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return fmt.Errorf("host %q is not how an address is written", host)
	}
	return nil
}

// parseAddress takes the part behind "=".
func parseAddress(text string, port uint16) (netip.AddrPort, error) {
	to, err := netip.ParseAddrPort(text)
	if err != nil {
		bare, bracket := strings.CutPrefix(text, "[")
		bare, end := strings.CutSuffix(bare, "]")
		addr, err := netip.ParseAddr(bare)
		if err != nil || bracket != end || addr.Is6() != bracket {
			return netip.AddrPort{}, fmt.Errorf("%q is no IP address: want 10.0.0.7, 10.0.0.7:8080, [fd00::7] or [fd00::7]:8080", text)
		}
		to = netip.AddrPortFrom(addr, port)
	}
	addr := to.Addr().Unmap()
	switch {
	case to.Port() == 0:
		return netip.AddrPort{}, errors.New("port 0 behind =")
	case addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast():
		return netip.AddrPort{}, fmt.Errorf("%q is not the address of one host", text)
	}
	return netip.AddrPortFrom(addr, to.Port()), nil
}

// checkDial is asked before each connect, with the address that will be
// connected to: whatever a name resolved to before or resolves to next does
// not matter.
func (p *Proxy) checkDial(_ context.Context, network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if network != "tcp4" && network != "tcp6" || !p.public(to.Addr()) {
		return errNotPublic
	}
	return nil
}

var errNotPublic = errors.New("proxy: not a public address")

// unicast6 is what is assigned to hosts of the Internet. Outside of it are
// among others ::1, ::ffff:0:0/96, 64:ff9b::/96 and 64:ff9b:1::/48 (which lead
// to IPv4), fc00::/7, fe80::/10 and ff00::/8.
var unicast6 = netip.MustParsePrefix("2000::/3")

// notPublic are the rest of the IANA special-purpose registries of IPv4 and
// IPv6, and one address that clouds use.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),        // this network; Linux connects to itself
	netip.MustParsePrefix("10.0.0.0/8"),       // private
	netip.MustParsePrefix("100.64.0.0/10"),    // carrier's NAT
	netip.MustParsePrefix("127.0.0.0/8"),      // loopback
	netip.MustParsePrefix("168.63.129.16/32"), // Azure's host, on every machine there
	netip.MustParsePrefix("169.254.0.0/16"),   // link-local, and metadata of clouds
	netip.MustParsePrefix("172.16.0.0/12"),    // private
	netip.MustParsePrefix("192.0.0.0/24"),     // protocol assignments
	netip.MustParsePrefix("192.0.2.0/24"),     // documentation
	netip.MustParsePrefix("192.88.99.0/24"),   // 6to4 relays
	netip.MustParsePrefix("192.168.0.0/16"),   // private
	netip.MustParsePrefix("198.18.0.0/15"),    // benchmarking
	netip.MustParsePrefix("198.51.100.0/24"),  // documentation
	netip.MustParsePrefix("203.0.113.0/24"),   // documentation
	netip.MustParsePrefix("224.0.0.0/4"),      // multicast
	netip.MustParsePrefix("240.0.0.0/4"),      // reserved, and broadcast
	netip.MustParsePrefix("2001::/23"),        // protocol assignments: Teredo, benchmarking, ORCHID
	netip.MustParsePrefix("2001:db8::/32"),    // documentation
	netip.MustParsePrefix("2002::/16"),        // 6to4: leads to IPv4
	netip.MustParsePrefix("3fff::/20"),        // documentation
}

// isPublic says whether an address is one of a host of the Internet.
func isPublic(addr netip.Addr) bool {
	if !addr.IsValid() || addr.Zone() != "" || addr.Is6() && !unicast6.Contains(addr) {
		return false
	}
	for _, prefix := range notPublic {
		if prefix.Contains(addr) {
			return false
		}
	}
	return true
}
