package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/embedpush/push/client"
)

const defaultAddr = "127.0.0.1:3000" // mpush's own port, and examples/hello's

// stockPublicKey is the key that mpush's demo clients come with: the public
// half of the pair in its conf/reference.conf. Everybody has the private half,
// so it is good for a first try and hides nothing.
const stockPublicKey = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCghPCWCobG8nTD24juwSVataW7iViRxcTkey/B792VZEhuHjQvA3cAJgx2Lv8GnX8NIoShZtoCg3Cx6ecs+VEPD2fBcg2L4JK7xldGpOJ3ONEAyVsLOttXZtNXvyDZRijiErQALMTorcgi79M5uVX9/jMv2Ggb2XAeZhlLD28fHwIDAQAB"

// options is the flags and what they led to.
type options struct {
	addrs   []string
	alloc   string
	tls     *tls.Config // of -tls; nil: without
	key     []byte      // nil: none
	stock   bool        // key is the one that everybody knows
	user    string      // "": each of the many is another one
	token   string
	tags    []string
	id      string
	os      string
	session string // directory; "": in memory
	biz     bool
	stop    bool // on a kick
	n       int  // 0: one, and it is printed
	rate    int
	quiet   bool
	verbose bool
	out     io.Writer
	log     *log.Logger // to out, one line an event; to nowhere with -quiet
}

// parse reads the flags.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{out: stdout, log: log.New(stdout, "", log.Ltime)}
	name, _ := os.Hostname()
	flags := flag.NewFlagSet("device", flag.ContinueOnError)
	flags.SetOutput(stdout)
	addr := flags.String("addr", defaultAddr, "servers, comma-separated, tried in turn: host:port, ws://host/path or wss://host/path")
	flags.StringVar(&o.alloc, "alloc", "", "URL that tells the servers, such as http://127.0.0.1:9092/alloc; -addr, if given too, is for when it fails")
	secure := flags.Bool("tls", false, "the servers are behind TLS")
	key := flags.String("key", "stock", "file with the server's public RSA key, in PEM or base64; stock: the published one of mpush; none: no encryption by mpush, which is the default over TLS")
	flags.StringVar(&o.user, "user", "alice", "who logs in; with -n, everybody, although servers keep one device of a kind for a user (default with -n: load-0, load-1, …)")
	flags.StringVar(&o.token, "token", "", "what proves that to the server, if it asks")
	tags := flags.String("tags", "", "tags of the user's login, comma-separated")
	flags.StringVar(&o.id, "device", cmp.Or(name, "device"), "name of the device; with -n, a number follows it")
	flags.StringVar(&o.os, "os", "", "system of the device, such as android, which makes it a mobile one to the server (default: this one)")
	flags.StringVar(&o.session, "session", "", "directory for the session, which the next start resumes; one for each device (default: it is forgotten)")
	flags.BoolVar(&o.biz, "biz", true, "acknowledge, once printed, what the program has to; -biz=false lets the server wait in vain")
	flags.BoolVar(&o.stop, "stop-on-kick", false, "end when the user is kicked")
	flags.IntVar(&o.n, "n", 0, "this many devices, counted each second instead of printed")
	flags.IntVar(&o.rate, "rate", 500, "with -n, how many start in a second")
	flags.BoolVar(&o.quiet, "quiet", false, "print only what is pushed, as it is, each with a line's end; with -n, only the counts at the end")
	flags.BoolVar(&o.verbose, "v", false, "print what the client logs, too")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	given := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("%q is no flag", flags.Arg(0))
	case o.user == "":
		return nil, errors.New("-user is empty: a device without a user gets no pushes")
	case o.n < 0 || o.n == 0 && given["n"]:
		return nil, fmt.Errorf("-n is %d, want 1 or more", o.n)
	case o.rate < 1:
		return nil, fmt.Errorf("-rate is %d, want 1 or more", o.rate)
	case given["rate"] && o.n == 0:
		return nil, errors.New("-rate is about many devices: it needs -n")
	case o.n > 0 && o.session != "":
		return nil, errors.New("-session is of one device: it does not go with -n")
	case o.n > 0 && o.stop:
		return nil, errors.New("-stop-on-kick is about one device: it does not go with -n")
	}
	if o.n > 0 && !given["user"] {
		o.user = ""
	}
	if o.addrs = split(*addr); o.alloc != "" && !given["addr"] {
		o.addrs = nil
	} else if len(o.addrs) == 0 && o.alloc == "" {
		return nil, errors.New("-addr is empty: it takes a server, or -alloc who knows one")
	}
	if *secure {
		o.tls = new(tls.Config)
	}
	if o.quiet {
		o.log.SetOutput(io.Discard)
	}
	o.tags = split(*tags)
	return o, o.setKey(*key, given["key"])
}

// split cuts a comma-separated list; an empty one is nil.
func split(list string) (items []string) {
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (o *options) setKey(key string, given bool) (err error) {
	switch {
	case key == "none", !given && o.secure():
	case key == "stock":
		o.stock, o.key = true, []byte(stockPublicKey)
	default:
		if o.key, err = os.ReadFile(key); err != nil {
			return fmt.Errorf("-key wants a file, stock or none: %w", err)
		}
		if len(bytes.TrimSpace(o.key)) == 0 {
			return fmt.Errorf("-key: %s is empty", key)
		}
	}
	return nil
}

// secure reports whether TLS is before every server.
func (o *options) secure() bool {
	for _, addr := range o.addrs {
		if !strings.HasPrefix(addr, "wss://") && (o.tls == nil || strings.Contains(addr, "://")) {
			return false
		}
	}
	return o.alloc == "" || o.tls != nil
}

// local reports whether every server is on this machine, as far as that is
// said.
func (o *options) local() bool {
	for _, addr := range append(o.addrs[:len(o.addrs):len(o.addrs)], split(o.alloc)...) {
		if u, err := url.Parse(addr); err == nil && u.Host != "" {
			addr = u.Host
		}
		if host, _, err := net.SplitHostPort(addr); err == nil {
			addr = host
		}
		ip, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if addr != "localhost" && (err != nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

// announce says where this goes.
func (o *options) announce() {
	var names []string
	for _, addr := range o.addrs {
		names = append(names, open(addr))
	}
	to := strings.Join(names, ", ")
	if o.alloc != "" {
		to = "what " + open(o.alloc) + " tells"
		if len(names) > 0 {
			to += ", or " + strings.Join(names, ", ")
		}
	}
	o.log.Printf("connecting   to %s", to)
	if o.stock && !o.secure() && !o.local() {
		o.log.Print("CAREFUL: the key is mpush's stock key, which is public knowledge: whoever is on the way reads along. -key FILE takes the server's own.")
	}
}

// open is an address without what may be a secret.
func open(addr string) string {
	if u, err := url.Parse(addr); err == nil && u.Host != "" {
		return u.Scheme + "://" + u.Host + u.Path
	}
	return addr
}

// config is a client's, but for its hooks.
func (o *options) config() client.Config {
	cfg := client.Config{
		Addrs: o.addrs, Allocator: o.alloc, TLS: o.tls, PublicKey: o.key,
		DeviceID: o.id, OSName: o.os,
		UserID: o.user, Token: o.token, Tags: o.tags,
		StopOnKick: o.stop, Logger: o.logger(),
	}
	if o.session != "" {
		cfg.Storage = client.FileStorage(o.session)
	}
	return cfg
}

// logger prints what the client finds wrong, unless that would be thousands.
func (o *options) logger() *slog.Logger {
	switch {
	case o.verbose:
		return slog.New(slog.NewTextHandler(o.out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	case o.quiet, o.n > 0:
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(o.out, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// dial is a Config.Dial that tells when a server cannot be reached, for which
// the client has no hook.
func dial(failed func(error)) func(context.Context, string, string) (net.Conn, error) {
	dialer := net.Dialer{KeepAlive: 4 * time.Minute}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := dialer.DialContext(ctx, network, addr)
		if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			failed(err)
		}
		return nc, err
	}
}

// shown is a content as a terminal may have it: what could move its cursor, or
// is no text, comes quoted.
func shown(content []byte) string {
	more := ""
	if cut := maxShown; len(content) > cut {
		for cut > maxShown-utf8.UTFMax && !utf8.RuneStart(content[cut]) {
			cut--
		}
		more = fmt.Sprintf("… and %d bytes", len(content)-cut)
		content = content[:cut]
	}
	text := string(content)
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		text = strconv.Quote(text)
	}
	return text + more
}
