package trust

import (
	"crypto/tls"
	"crypto/x509"
	"io"
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
