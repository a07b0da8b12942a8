package trust

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"fbus/bus/args"
)

// TestOtherProtocols checks old TLS, another protocol under TLS, plain text, and HTTP.
func TestOtherProtocols(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	n := serve(t, a, c.now)
	ticket := issue(t, a, Request{Reusable: true})

	old := ticket.ClientConfig(c.now)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	_, err := n.enter(t, old)
	n.rejected(t, "TLS 1.2", args.CodeTLSVersion)
	wantCode(t, ticket.Explain(err, c.now()), args.CodeTLSVersion)

	web := ticket.ClientConfig(c.now)
	web.NextProtos = []string{"h2", "http/1.1"}
	_, err = n.enter(t, web)
	n.rejected(t, "ALPN", args.CodeNotFbus)
	wantCode(t, ticket.Explain(err, c.now()), args.CodeNotFbus)

	bare := ticket.ClientConfig(c.now)
	bare.NextProtos = nil
	if got, err := n.enter(t, bare); got != "x" {
		t.Errorf("without ALPN: %q, %v", got, err)
	}
	n.admitted(t)
	<-n.handled

	for sent, r := range map[string]struct{ code, answer string }{
		"\x00\x00\x00\x08\x96\x01\x01\x00\xa0": {args.CodePlainText, ""},
		"hello there\n":                        {args.CodePlainText, ""},
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":    {args.CodeHTTP, HTTPAnswer},
	} {
		raw, err := net.Dial("tcp", n.addr)
		must(t, err)
		io.WriteString(raw, sent)
		raw.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(raw)
		raw.Close()
		n.rejected(t, sent, r.code)
		if err != nil || string(answer) != r.answer {
			t.Errorf("%q: got %q, %v", sent, answer, err)
		}
	}
}

// TestNoNode checks the client's error at a port without a node.
func TestNoNode(t *testing.T) {
	c := newClock()
	ticket := issue(t, openTest(t, privateTemp(t), c), Request{Reusable: true})
	for answer, code := range map[string]string{
		"HTTP/1.1 400 Bad Request\r\n\r\n": args.CodeHTTP, "SSH-2.0-OpenSSH_9.9\r\n": args.CodePlainText, "": args.CodeReset,
	} {
		near, far := net.Pipe()
		go func() { // ends when near is closed
			far.Read(make([]byte, 4096))
			io.WriteString(far, answer)
			far.Close()
		}()
		err := tls.Client(near, ticket.ClientConfig(c.now)).Handshake()
		near.Close()
		wantCode(t, ticket.Explain(err, c.now()), code)
	}
	near, far := net.Pipe()
	defer far.Close()
	near.SetDeadline(time.Now())
	wantCode(t, ticket.Explain(tls.Client(near, ticket.ClientConfig(c.now)).Handshake(), c.now()), args.CodeTimeout)
	near.Close()
	if ticket.Explain(nil, c.now()) != nil || Explain(nil, c.now()) != nil {
		t.Error("nil is explained")
	}
	wantCode(t, Explain(errors.New("odd"), time.Time{}), args.CodeTLS)
}

// TestNoResumption checks that no session ticket is sent, so that a client with a cache
// cannot resume.
func TestNoResumption(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	n := serve(t, a, c.now)
	ticket := issue(t, a, Request{Reusable: true})
	cfg := ticket.ClientConfig(c.now)
	cfg.SessionTicketsDisabled = false
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 2 {
		if got, err := n.enter(t, cfg); got != "x" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if s, ok := cfg.ClientSessionCache.Get(cfg.ServerName); ok && s != nil {
		t.Error("a session is kept")
	}
	_, err := a.Admit(tls.ConnectionState{Version: tls.VersionTLS13, DidResume: true}, "")
	wantCode(t, err, args.CodeTLS)
}

// TestResumptionIsChecked checks sessions resumed despite that, by a bug here or in the
// library. The check that resumption does not skip must catch them.
func TestResumptionIsChecked(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	server := a.ServerConfig()
	server.SessionTicketsDisabled = false
	n := serve(t, fixedConfig{a, server}, c.now)
	ticket := issue(t, a, Request{Reusable: true})
	cfg := ticket.ClientConfig(c.now)
	cfg.SessionTicketsDisabled = false
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	if got, err := n.enter(t, cfg); got != "x" {
		t.Fatalf("%q, %v", got, err)
	}
	n.admitted(t)
	<-n.handled
	if s, ok := cfg.ClientSessionCache.Get(cfg.ServerName); !ok || s == nil {
		t.Fatal("no session is kept: nothing is tested")
	}
	if got, err := n.enter(t, cfg); got == "x" {
		t.Errorf("%q, %v", got, err)
	}
	n.rejected(t, "resumed", args.CodeTLS)
}

// fixedConfig is a gate with one configuration for all connections, and so the same
// session keys.
type fixedConfig struct {
	*Authority
	config *tls.Config
}

func (f fixedConfig) ServerConfig() *tls.Config { return f.config }
