package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fbus/bus/trust"
	"fbus/bus/vectors"
)

// network is the id of the network that this program plays a node of.
const network = "conformance"

// authority makes a network, and a reusable ticket for an address.
func authority(dir, network, addr string) (*trust.Authority, []byte, error) {
	a, err := trust.Open(trust.Options{Dir: dir, Network: network})
	if err != nil {
		return nil, nil, err
	}
	t, err := a.Issue(trust.LocalUser, trust.Request{
		Name: "judged", Rights: trust.Rights{Call: []string{"*"}, Offer: []string{"*"}}, Reusable: true, Addresses: []string{addr},
	})
	if err != nil {
		a.Close()
		return nil, nil, err
	}
	text, err := t.Format()
	return a, text, err
}

// listenTLS listens on TCP, and writes a ticket for the program.
func (b *bed) listenTLS() (variable string, err error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return "", err
	}
	b.l = l
	var text []byte
	if b.trust, text, err = authority(filepath.Join(b.dir, "network"), network, l.Addr().String()); err != nil {
		return "", err
	}
	b.config = b.trust.ServerConfig()
	file := filepath.Join(b.dir, "ticket")
	return "FBUS_TICKET=" + file, os.WriteFile(file, text, 0o600)
}

// secure speaks TLS with the program.
func (b *bed) secure(nc net.Conn) (net.Conn, error) {
	if b.config == nil {
		return nc, nil
	}
	tc := tls.Server(nc, b.config)
	if err := tc.Handshake(); err != nil {
		nc.Close()
		return nil, fmt.Errorf("the handshake fails: %w", err)
	}
	return tc, nil
}

// foreignNodes are nodes that a client has to refuse: each changes what a bed has.
var foreignNodes = []struct {
	name, rules string
	config      func(b *bed) (*tls.Config, error)
}{
	{"a node of another network", "T-2.1-3", func(b *bed) (*tls.Config, error) { return b.other("other") }},
	{"a node of a network of the same name, with another CA", "T-2.1-3", func(b *bed) (*tls.Config, error) { return b.other(network) }},
	{"a node with the certificate of a client", "T-2.1-3", func(b *bed) (*tls.Config, error) {
		text, err := os.ReadFile(filepath.Join(b.dir, "ticket"))
		if err != nil {
			return nil, err
		}
		own, err := tls.X509KeyPair(text, text)
		return &tls.Config{Certificates: []tls.Certificate{own}, NextProtos: []string{trust.ALPN}}, err
	}},
	{"a node of TLS 1.2", "T-2.1-1", func(b *bed) (*tls.Config, error) {
		c := b.trust.ServerConfig().Clone()
		c.GetConfigForClient, c.MinVersion, c.MaxVersion = nil, tls.VersionTLS12, tls.VersionTLS12
		return c, nil
	}},
}

// other is the configuration of a node that another authority has made.
func (b *bed) other(network string) (*tls.Config, error) {
	a, _, err := authority(filepath.Join(b.dir, "other"), network, "127.0.0.1:1")
	if err != nil {
		return nil, err
	}
	b.others = append(b.others, a)
	return a.ServerConfig(), nil
}

// clientTLSChecks are about the nodes that a client refuses.
func clientTLSChecks(words ...string) (list []check) {
	for _, n := range foreignNodes {
		list = append(list, check{name: n.name, rules: strings.Fields(n.rules), run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
			b, err := prepareBed(ctx, o)
			if err == nil {
				defer b.close()
				b.config, err = n.config(b)
			}
			if err == nil {
				err = b.run(words)
			}
			if err != nil {
				return nil, err
			}
			c, err := b.accept()
			if c == nil {
				if errors.Is(err, errConnect) {
					return nil, err
				}
				return nil, nil // the handshake has failed
			}
			if f, err := c.Next(); err == nil {
				return c, fmt.Errorf("it sends %s to a node that it has to refuse", vectors.Text(f))
			}
			return c, nil
		}})
	}
	return list
}

// nodeTLSChecks are about the clients that a node refuses.
func nodeTLSChecks() (list []check) {
	for _, c := range []struct {
		name, rules string
		change      func(c *tls.Config) error
	}{
		{"a client without a certificate", "T-2.1-4 T-2.1-9", func(c *tls.Config) error {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
			return nil
		}},
		{"a client with a certificate of another CA", "T-2.1-4 T-2.1-9", func(c *tls.Config) error {
			dir, err := os.MkdirTemp("", "fbus-conformance-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			a, text, err := authority(filepath.Join(dir, "other"), network, "127.0.0.1:1")
			if err != nil {
				return err
			}
			a.Close()
			other, err := tls.X509KeyPair(text, text)
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &other, nil }
			return err
		}},
		{"a client of another application protocol", "T-2.1-2", func(c *tls.Config) error {
			c.NextProtos = []string{"h2"}
			return nil
		}},
		{"a client of TLS 1.2", "T-2.1-1", func(c *tls.Config) error {
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return nil
		}},
	} {
		list = append(list, nodeCheck(c.name, strings.Fields(c.rules), false, func(b *nodeBed) error {
			config := b.o.ticket.ClientConfig(nil)
			if err := c.change(config); err != nil {
				return err
			}
			return b.refused(config)
		}))
	}
	return append(list,
		nodeCheck("a frame without TLS", []string{"T-2.1-1"}, false, func(b *nodeBed) error { return b.refused(nil) }),
		nodeCheck("a client that names no application protocol", []string{"T-2.1-2"}, false, func(b *nodeBed) error {
			config := b.o.ticket.ClientConfig(nil)
			config.NextProtos = nil
			c, err := b.dial(config)
			if err != nil {
				return err
			}
			c.Send(vectors.F(1, 1, 0, "", "", "x"))
			_, err = c.Expect(vectors.F(1, 1))
			return err
		}),
	)
}

// refused checks that a node does not answer HELLO.
func (b *nodeBed) refused(config *tls.Config) error {
	c, err := b.dial(config)
	if err != nil {
		return nil
	}
	c.Send(vectors.F(1, 1, 0, "", "", "x"))
	if f, err := c.Next(); err == nil && !vectors.Matches(vectors.F(2), f) {
		return fmt.Errorf("it answers with %s", vectors.Text(f))
	}
	return nil
}

// dial connects over TLS, or without it if config is nil.
func (b *nodeBed) dial(config *tls.Config) (*vectors.Conn, error) {
	nc, err := net.DialTimeout("tcp", b.o.node, b.o.limit)
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(b.o.limit))
	if config != nil {
		tc := tls.Client(nc, config)
		if err := tc.Handshake(); err != nil {
			nc.Close()
			return nil, err
		}
		nc = tc
	}
	return b.note(vectors.NewConn(nc)), nil
}
