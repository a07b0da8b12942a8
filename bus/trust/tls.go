package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"time"

	"fbus/bus/args"
)

// ALPN is the protocol's name in the TLS handshake. A client may leave it out; one
// that offers only others is refused.
const ALPN = "fbus/1"

// wallClock is the default clock for checking certificates. Tests replace it before they do
// anything else, from other packages by go:linkname: they cannot change the machine's clock.
var wallClock = time.Now

// Now returns the time that certificates are checked against.
func Now() time.Time { return wallClock() }

// ServerConfig is for the node's listener. Tickets for resumption are off, and the
// checks are in VerifyConnection, which resumption does not skip (golang/go 77217,
// CVE-2025-68121). A peer that completes the handshake is not admitted yet: see
// [Authority.Admit].
func (a *Authority) ServerConfig() *tls.Config {
	first := a.root.Load()
	c := first.server.Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if r := a.root.Load(); r != first {
			return r.server, nil
		}
		return nil, nil // c
	}
	return c
}

func serverConfig(pool *x509.CertPool, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{ALPN},
		// A frame is useless until it is complete, so packet-sized records only add cost.
		DynamicRecordSizingDisabled: true,
		ClientAuth:                  tls.RequireAndVerifyClientCert,
		ClientCAs:                   pool,
		SessionTicketsDisabled:      true,
		Time:                        now,
		VerifyConnection:            func(cs tls.ConnectionState) error { return refuse(checkClient(cs, now())) },
	}
}

// ClientConfig is for dialling a node with the ticket. The node must have a server
// certificate with the network's name, signed directly by the ticket's CA. The dialled
// address does not matter. now may be nil.
func (t *Ticket) ClientConfig(now func() time.Time) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(t.CA)
	c := clientConfig(pool, ServerName(t.Network), t.certificate(), now)
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if chain := cs.VerifiedChains[0]; len(chain) != 2 || !onlyUse(chain[0], serverUse) {
			return refuse(errorf(args.CodeWrongUse, "the other end's certificate is not a node's").WithHint(hintUse))
		}
		return nil
	}
	return c
}

func clientConfig(pool *x509.CertPool, name string, cert *tls.Certificate, now func() time.Time) *tls.Config {
	if now == nil {
		now = Now
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{ALPN},
		RootCAs:                pool,
		ServerName:             name,
		SessionTicketsDisabled: true,
		Time:                   now,
		// See serverConfig.
		DynamicRecordSizingDisabled: true,
		// Sent even if the node requests another CA's certificate, so that the node reports the
		// actual problem and not a missing certificate.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	}
}

// HTTPAnswer is the response to a peer that speaks HTTP without TLS.
const HTTPAnswer = "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" +
	"This is the port of an fbus node. It speaks its own protocol, under TLS 1.3, with those who have a ticket.\n"

const (
	dismissTime  = time.Second
	dismissBytes = 64 << 10
)

// Dismiss closes the connection of a refused peer without losing the last alert or
// frame. If bytes from the peer were unread at the close, the kernel would send a reset,
// which may overtake that data. Dismiss therefore reads and drops input for at most a
// second and 64 KiB. err is the handshake's error, if the handshake failed.
func Dismiss(c *tls.Conn, err error) {
	raw := c.NetConn()
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(dismissTime))
	if e := Explain(err, time.Time{}); e != nil && e.Code == args.CodeHTTP {
		io.WriteString(raw, HTTPAnswer)
	}
	if err == nil {
		c.CloseWrite() // close_notify
	}
	if half, ok := raw.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	io.CopyN(io.Discard, raw, dismissBytes)
}

// TLS alerts (RFC 8446, section 6.2) that concern admission.
const (
	alertHandshake          = 40
	alertBadCertificate     = 42
	alertUnsupportedCert    = 43
	alertCertificateRevoked = 44
	alertExpired            = 45 // or not yet valid: Go's server has one alert for both
	alertUnknownCertificate = 46
	alertUnknownCA          = 48
	alertAccessDenied       = 49
	alertDecrypt            = 51
	alertVersion            = 70
	alertCertRequired       = 116
	alertNoProtocol         = 120
)

var alerts = []tls.AlertError{
	alertHandshake, alertBadCertificate, alertUnsupportedCert, alertCertificateRevoked, alertExpired, alertUnknownCertificate,
	alertUnknownCA, alertAccessDenied, alertDecrypt, alertVersion, alertCertRequired, alertNoProtocol,
}

// remoteAlert returns the alert sent by the other end, or 0 if there is no known alert.
// crypto/tls exports the alert's type only for QUIC, but its text is the same.
func remoteAlert(err error) tls.AlertError {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0
	}
	for _, a := range alerts {
		if op.Err.Error() == a.Error() {
			return a
		}
	}
	return 0
}

// explainAlert explains an alert without further context, to either side.
func explainAlert(alert tls.AlertError, err error) *args.Error {
	var e *args.Error
	switch alert {
	case alertUnknownCA:
		e = errorf(args.CodeOtherNetwork, "the other end does not know the CA of the certificate: it is in another network").
			WithHint("the ticket is for another network, or for an earlier network of that name")
	case alertExpired:
		e = errorf(args.CodeExpired, "by the clock of the other end the certificate has expired or is not valid yet").WithHint(hintClock)
	case alertCertRequired:
		e = noCertificate()
	case alertCertificateRevoked, alertAccessDenied:
		e = errorf(args.CodeRevoked, "the ticket was revoked, by the other end's alert").WithHint("ask for a new ticket")
	case alertVersion:
		e = oldTLS()
	case alertNoProtocol:
		e = notFbus()
	case alertBadCertificate, alertUnsupportedCert, alertUnknownCertificate, alertDecrypt:
		e = errorf(args.CodeBadCertificate, "the other end refuses the certificate: it is in another network, or expects something else").
			WithHint("ask for a ticket of the node's network")
	default:
		e = errorf(args.CodeTLS, "the other end aborted the TLS handshake: %v", err).WithHint(hintPort)
	}
	e.Err = err
	return e
}

const hintClient = "get one that is for clients only (clientAuth), or use a ticket of fbus invite"

// shown describes the certificate that a client presented.
type shown struct {
	what  string // "ticket ci"
	ca    string // the owner of the CA that the node should use
	chain []*x509.Certificate
}

// explainAlert picks the likely meaning of an ambiguous alert from the client's own
// certificate.
func (s *shown) explainAlert(alert tls.AlertError, err error, now time.Time) *args.Error {
	leaf := s.chain[0]
	switch alert {
	case alertExpired:
		if e, ok := checkTime(leaf, s.what, now).(*args.Error); ok {
			e.Err = err
			return e
		}
		return caused(err, args.CodeClock, "by the node's clock %s has expired or is not valid yet; by this clock, %s, it is valid from %s to %s: one of the clocks is wrong",
			s.what, stamp(now), stamp(leaf.NotBefore), stamp(leaf.NotAfter)).WithHint(hintClock)
	case alertUnknownCA:
		if signedByLeaf(s.chain) {
			return caused(err, args.CodeWrongUse, "%s was not signed by a CA", s.what).WithHint("ask for a new ticket")
		}
		return caused(err, args.CodeOtherNetwork, "the node does not know the CA of %s: it is not in %s, or its CA is new", s.what, s.ca).
			WithHint("ask for a ticket of the node's network")
	case alertBadCertificate, alertUnsupportedCert, alertUnknownCertificate:
		if leaf.IsCA {
			return caused(err, args.CodeWrongUse, "%s is a CA's, not a client's", s.what).WithHint(hintClient)
		}
		if !onlyUse(leaf, clientUse) {
			return caused(err, args.CodeWrongUse, "%s is not for clients", s.what).WithHint(hintClient)
		}
		return caused(err, args.CodeBadCertificate, "the node refuses %s: it is not a ticket, or not complete", s.what).WithHint("ask for a new ticket")
	}
	return explainAlert(alert, err)
}
