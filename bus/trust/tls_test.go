package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"fbus/bus/args"
)

// testNode answers as a node must: handshake, Admit, and only then the first byte. Its
// answer to a refused peer represents an ERROR frame.
type testNode struct {
	addr    string
	handled chan byte        // the handled bytes
	refused chan *args.Error // errors of refused peers
	ids     chan *Identity
}

type gate interface {
	ServerConfig() *tls.Config
	Admit(tls.ConnectionState, string) (*Identity, error)
	Check(*Identity) error
}

var _, _ gate = (*Authority)(nil), (*Files)(nil)

func serve(t *testing.T, g gate, now func() time.Time) *testNode {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	n := &testNode{addr: l.Addr().String(), handled: make(chan byte, 100), refused: make(chan *args.Error, 100), ids: make(chan *Identity, 100)}
	done := make(chan struct{})
	go func() { // ends with the listener
		defer close(done)
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			n.one(tls.Server(raw, g.ServerConfig()), g, now)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return n
}

func (n *testNode) one(c *tls.Conn, g gate, now func() time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		n.refused <- Explain(err, now())
		Dismiss(c, err)
		return
	}
	id, err := g.Admit(c.ConnectionState(), c.RemoteAddr().String())
	if err == nil {
		err = g.Check(id)
	}
	if err != nil {
		n.refused <- Explain(err, now())
		io.WriteString(c, "ERROR "+err.(*args.Error).Code)
		Dismiss(c, nil)
		return
	}
	n.ids <- id
	p := make([]byte, 1)
	if _, err := c.Read(p); err == nil {
		n.handled <- p[0]
		c.Write(p)
	}
	c.Close()
}

// enter dials, sends a byte, and returns the answer and the error of the handshake or of
// the read.
func (n *testNode) enter(t *testing.T, cfg *tls.Config) (string, error) {
	t.Helper()
	raw, err := net.Dial("tcp", n.addr)
	must(t, err)
	c := tls.Client(raw, cfg)
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if err := c.Handshake(); err != nil {
		return "", err
	}
	c.Write([]byte("x")) // if it fails, the read returns the reason
	answer, err := io.ReadAll(c)
	return string(answer), err
}

// rejected checks that the node gives the reason and handled nothing, and that the
// client can find the reason too.
func (n *testNode) rejected(t *testing.T, what string, server string) {
	t.Helper()
	select {
	case e := <-n.refused:
		if e.Code != server {
			t.Errorf("%s: the node says %s (%v), want %s", what, e.Code, e, server)
		}
	case <-n.ids:
		t.Errorf("%s: admitted", what)
	case <-time.After(time.Minute):
		t.Errorf("%s: the node says nothing", what)
	}
	if len(n.handled) > 0 {
		t.Errorf("%s: a byte was handled", what)
	}
}

// admitted returns the identity of the next admitted peer.
func (n *testNode) admitted(t *testing.T) *Identity {
	t.Helper()
	select {
	case id := <-n.ids:
		return id
	case e := <-n.refused:
		t.Fatalf("refused: %v", e)
	case <-time.After(time.Minute):
		t.Fatal("the node says nothing")
	}
	return nil
}

func withCert(cfg *tls.Config, cert *tls.Certificate) *tls.Config {
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	return cfg
}

// TestEnter checks a reusable ticket, an invitation, and the identity it became.
func TestEnter(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	n := serve(t, a, c.now)
	reusable := issue(t, a, Request{Name: "ci", Reusable: true})
	inv := issue(t, a, Request{Name: "box", Rights: rights(t, "offer:r*")})
	enter := func(ticket *Ticket) *Identity {
		t.Helper()
		if got, err := n.enter(t, ticket.ClientConfig(c.now)); got != "x" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		return n.admitted(t)
	}
	if id := enter(reusable); id.Caller() != "ticket:ci" || id.Joining || !id.Rights.MayCall("a") || !id.Expires.Equal(reusable.Expires) {
		t.Errorf("%+v", id)
	}
	if id := enter(inv); id.Caller() != "invitation:box" || !id.Joining || !id.Rights.Empty() {
		t.Errorf("%+v", id)
	}
	req, key := request(t)
	cert, err := a.Exchange(inv.Serial, req, "h")
	must(t, err)
	inv2 := *inv
	inv2.Key = key
	own, err := inv2.WithCertificate(cert)
	must(t, err)
	if id := enter(own); id.Joining || id.Name != "box" || id.Rights.String() != "offer r*" {
		t.Errorf("%+v", id)
	}
	if id := enter(inv); !id.Joining { // burnt, but may ask again
		t.Errorf("%+v", id)
	}
	if r, _ := a.Tickets(); r[0].From == "" || r[2].Seen.IsZero() {
		t.Errorf("not seen: %+v", r)
	}
}

// TestRefused lists certificates that must not be admitted, with the node's error and
// the client's explanation of the alert or frame.
func TestRefused(t *testing.T) {
	c := newClock()
	a, other := openTest(t, privateTemp(t), c), openTest(t, privateTemp(t), c)
	n := serve(t, a, c.now)
	ticket, foreign := issue(t, a, Request{Name: "ci", Reusable: true}), issue(t, other, Request{Reusable: true})
	ours := func(change func(*x509.Certificate)) *tls.Certificate {
		return testLeaf(t, a.root.Load().ca, a.key, change)
	}
	listed := func(s string) func(*x509.Certificate) { // has the serial of a ticket, but other contents
		return func(x *x509.Certificate) {
			x.SerialNumber = ticket.Leaf.SerialNumber
			x.URIs = nil
			for _, u := range strings.Fields(s) {
				x.URIs = append(x.URIs, mustURL(t, u))
			}
		}
	}
	node, _ := a.NodeCertificate(nil)
	below := testLeaf(t, ticket.Leaf, ticket.Key.(*ecdsa.PrivateKey), nil)
	below.Certificate = append(below.Certificate, ticket.Leaf.Raw)
	for _, r := range []struct {
		what   string
		cert   *tls.Certificate
		server string // the node's error
		client string // the client's explanation, or the frame it gets
	}{
		{"none", new(tls.Certificate), args.CodeNoCertificate, args.CodeNoCertificate},
		{"another network's", foreign.certificate(), args.CodeOtherNetwork, args.CodeOtherNetwork},
		{"expired", ours(func(x *x509.Certificate) { x.NotAfter = c.now().Add(-time.Minute) }), args.CodeExpired, args.CodeClock},
		{"not yet valid", ours(func(x *x509.Certificate) { x.NotBefore = c.now().Add(time.Minute) }), args.CodeNotYetValid, args.CodeClock},
		{"a leaf as CA", below, args.CodeWrongUse, args.CodeOtherNetwork},
		{"the CA itself", &tls.Certificate{Certificate: [][]byte{a.root.Load().ca.Raw}, PrivateKey: a.key}, args.CodeWrongUse, args.CodeBadCertificate},
		{"the node's", node, args.CodeWrongUse, args.CodeBadCertificate},
		{"no use", ours(func(x *x509.Certificate) { x.ExtKeyUsage = nil }), args.CodeWrongUse, args.CodeBadCertificate},
		{"any use", ours(func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), args.CodeWrongUse, args.CodeBadCertificate},
		{"two uses", ours(func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{clientUse, serverUse} }), args.CodeWrongUse, "ERROR wrong_use"},
		{"unlisted", ours(nil), args.CodeUnlisted, "ERROR unlisted"},
		{"name in the common name", ours(func(x *x509.Certificate) { x.URIs = nil; x.Subject.CommonName = "fbus:name:ci" }), args.CodeBadCertificate, "ERROR bad_certificate"},
		{"name as a DNS name", ours(func(x *x509.Certificate) { x.URIs = nil; x.DNSNames = []string{"ci.net.fbus.invalid"} }), args.CodeBadCertificate, "ERROR bad_certificate"},
		{"other rights", ours(listed("fbus:name:ci fbus:call:*")), args.CodeBadCertificate, "ERROR bad_certificate"},
		{"other name", ours(listed("fbus:name:cj fbus:call:a")), args.CodeBadCertificate, "ERROR bad_certificate"},
		{"join", ours(listed("fbus:name:ci fbus:join")), args.CodeBadCertificate, "ERROR bad_certificate"},
		{"other key", ours(listed("fbus:name:ci fbus:call:a")), args.CodeBadCertificate, "ERROR bad_certificate"},
	} {
		got, err := n.enter(t, withCert(ticket.ClientConfig(c.now), r.cert))
		n.rejected(t, r.what, r.server)
		if e := ticket.Explain(err, c.now()); got != r.client && (e == nil || e.Code != r.client) {
			t.Errorf("%s: the client got %q and says %v, want %s", r.what, got, e, r.client)
		}
	}
	if got, err := n.enter(t, ticket.ClientConfig(c.now)); got != "x" {
		t.Errorf("the ticket itself: %q, %v", got, err)
	}
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	must(t, err)
	return u
}

// TestRevokedEntry checks that a peer is refused from the moment Revoke returns, with a
// frame that gives the reason.
func TestRevokedEntry(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	n := serve(t, a, c.now)
	ticket := issue(t, a, Request{Reusable: true})
	_, _, err := a.Revoke(ticket.Name)
	must(t, err)
	if got, _ := n.enter(t, ticket.ClientConfig(c.now)); got != "ERROR revoked" {
		t.Errorf("got %q", got)
	}
	n.rejected(t, "revoked", args.CodeRevoked)
}

// TestClocks checks that a clock a day off either way, at either end, is reported as the
// clock's fault or does not matter.
func TestClocks(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	n := serve(t, a, c.now)
	ticket := issue(t, a, Request{Reusable: true, TTL: time.Hour})
	for _, r := range []struct {
		node, client time.Duration
		code         string
	}{
		{0, -24 * time.Hour, args.CodeNotYetValid}, // the client refuses the node's certificate
		{0, 24 * time.Hour, ""},                    // the ticket is valid by the node's clock
		{24 * time.Hour, 0, args.CodeClock},
		{24 * time.Hour, 24 * time.Hour, args.CodeExpired},
		{-24 * time.Hour, 0, args.CodeClock},
		{-24 * time.Hour, -24 * time.Hour, args.CodeNotYetValid},
	} {
		there := newClock()
		c.add(r.node)
		there.add(r.client)
		_, err := n.enter(t, ticket.ClientConfig(there.now))
		switch e := ticket.Explain(err, there.now()); {
		case r.code == "" && e == nil:
		case e == nil || e.Code != r.code || !strings.Contains(e.Message+e.Hint, "clock"):
			t.Errorf("node %s, client %s: %+v", r.node, r.client, e)
		}
		c.add(-r.node)
	}
}

// TestExpiryWhileConnected checks that Check detects expiry.
func TestExpiryWhileConnected(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	n := serve(t, a, c.now)
	ticket := issue(t, a, Request{Reusable: true, TTL: time.Hour})
	n.enter(t, ticket.ClientConfig(c.now))
	id := n.admitted(t)
	must(t, a.Check(id))
	c.add(time.Hour + time.Second)
	wantCode(t, a.Check(id), args.CodeExpired)
}

// TestServerRefused covers servers that a client does not accept as its node.
func TestServerRefused(t *testing.T) {
	c := newClock()
	a, other := openTest(t, privateTemp(t), c), openTest(t, privateTemp(t), c)
	ticket := issue(t, a, Request{Reusable: true})
	for what, r := range map[string]struct {
		cert *tls.Certificate
		code string
	}{
		"a ticket":        {ticket.certificate(), args.CodeWrongUse},
		"another network": {must2(other.NodeCertificate(nil)), args.CodeOtherNetwork},
		"another name":    {testLeaf(t, a.root.Load().ca, a.key, func(x *x509.Certificate) { x.ExtKeyUsage[0] = serverUse }), args.CodeWrongUse},
		"both uses": {testLeaf(t, a.root.Load().ca, a.key, func(x *x509.Certificate) {
			x.ExtKeyUsage = []x509.ExtKeyUsage{serverUse, clientUse}
			x.DNSNames = []string{"net.fbus.invalid"}
		}), args.CodeWrongUse},
		"name in the common name": {testLeaf(t, a.root.Load().ca, a.key, func(x *x509.Certificate) {
			x.ExtKeyUsage[0] = serverUse
			x.Subject.CommonName = "net.fbus.invalid"
		}), args.CodeWrongUse},
	} {
		cfg := a.ServerConfig()
		cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.cert, nil }
		near, far := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- tls.Server(far, cfg).Handshake(); far.Close() }()
		err := tls.Client(near, ticket.ClientConfig(c.now)).Handshake()
		near.Close()
		if e := ticket.Explain(err, c.now()); e == nil || e.Code != r.code {
			t.Errorf("%s: %v, want %s", what, e, r.code)
		}
		if Explain(<-done, c.now()) == nil {
			t.Errorf("%s: the server's handshake succeeded", what)
		}
	}
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
