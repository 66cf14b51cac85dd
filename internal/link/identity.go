package link

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"syscall"
	"time"
)

// The protocols inside TLS, so that a link is never taken for a relay.
const (
	linkALPN  = "push-link/1"
	relayALPN = "push-relay/1"
)

var (
	errKey  = errors.New("its key is none of this cluster's")
	errALPN = errors.New("it does not speak this protocol inside TLS")
)

// identity proves to peers that a node has the secret, and checks that they
// have it. nil: neither.
type identity struct {
	cert tls.Certificate
	keys []ed25519.PublicKey
}

// newIdentity makes the certificate of the first key. It says nothing but the
// key: its times are fixed, for no clock is to matter, and nobody reads them.
func newIdentity(seeds [][]byte) *identity {
	if len(seeds) == 0 {
		return nil
	}
	id := new(identity)
	for _, seed := range seeds {
		id.keys = append(id.keys, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	}
	key := ed25519.NewKeyFromSeed(seeds[0])
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, id.keys[0], key)
	if err != nil {
		panic("link: a certificate for an Ed25519 key: " + err.Error())
	}
	id.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return id
}

// config is for both ends. VerifyConnection is called for resumed sessions, too,
// and there are none.
func (id *identity) config(alpn string) *tls.Config {
	if id == nil {
		return nil
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{id.cert},
		NextProtos:             []string{alpn},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // verify does it
		VerifyConnection:       func(s tls.ConnectionState) error { return id.verify(s, alpn) },
		SessionTicketsDisabled: true,
		// Writes are gathered already: records as long as they may be.
		DynamicRecordSizingDisabled: true,
	}
}

// verify demands exactly one certificate, of a key derived from a secret of
// this node's. That the peer has the private key is proved by TLS itself.
func (id *identity) verify(s tls.ConnectionState, alpn string) error {
	if s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != alpn {
		return errALPN
	}
	if len(s.PeerCertificates) != 1 {
		return errKey
	}
	key, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	for _, k := range id.keys {
		if ok && bytes.Equal(k, key) {
			return nil
		}
	}
	return errKey
}

// secure does the handshake of one end, within the deadline that conn has.
func secure(conn net.Conn, cfg *tls.Config, dialled bool) (net.Conn, error) {
	if cfg == nil {
		return conn, nil
	}
	end := tls.Server
	if dialled {
		end = tls.Client
	}
	t := end(conn, cfg)
	return t, t.Handshake()
}

// hint explains in terms of the configuration why there is no link, or is "".
func hint(err error) string {
	var (
		record tls.RecordHeaderError
		op     *net.OpError
	)
	switch {
	case errors.Is(err, errKey):
		return "the two nodes have no secret in common, or belong to two clusters: see Cluster.Secrets and Cluster.Name"
	case errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate"):
		return "the other node does not know this node's secret: see Cluster.Secrets and Cluster.Name"
	case errors.Is(err, errTLS):
		return "the other node has a secret, this one none: see Cluster.Secrets"
	case errors.As(err, &record):
		return "the other node seems to have no secret: see Cluster.Secrets"
	case hungUp(err):
		return "the other node hung up: see whether Cluster.Name and Cluster.Secrets are the same"
	}
	return ""
}

// hungUp tells whether the other end closed or reset the connection.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
