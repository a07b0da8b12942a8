package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"
)

// keyPair is the gateway's certificate and its key, which are read again when they have changed.
type keyPair struct {
	cert, key string // files

	mu   sync.Mutex // protects what follows
	pair *tls.Certificate
	read [2]time.Time // when the files had changed
	next time.Time    // when to look again
}

// current returns the certificate. If the files cannot be read any more, it is the last one.
func (k *keyPair) current() (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if k.pair != nil && now.Before(k.next) {
		return k.pair, nil
	}
	k.next = now.Add(10 * time.Second)
	var changed [2]time.Time
	for i, name := range []string{k.cert, k.key} {
		if st, err := os.Stat(name); err == nil {
			changed[i] = st.ModTime()
		}
	}
	if k.pair != nil && changed == k.read {
		return k.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(k.cert, k.key)
	if err != nil {
		if k.pair != nil {
			return k.pair, nil // while they are being replaced
		}
		return nil, args.Errorf(args.CodeUsage, "--tls-cert and --tls-key: %v", err)
	}
	k.pair, k.read = &pair, changed
	return k.pair, nil
}

// names reports whether the certificate is for a host.
func (k *keyPair) names(host string) bool {
	pair, err := k.current()
	return err == nil && pair.Leaf != nil && pair.Leaf.VerifyHostname(host) == nil
}

// secured returns what the server accepts connections from: a listener, under TLS if it has that.
func (g *gateway) secured(s *http.Server, l *listener) net.Listener {
	if !l.tls {
		return l
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return g.tls.current() }
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		clients := g.certs.current()
		if clients == nil {
			return nil, nil
		}
		c := config.Clone()
		clients.Config(c)
		return c, nil
	}
	return tls.NewListener(l, config)
}

// certificates admits those who show the certificate of an fbus ticket.
type certificates struct {
	link *link

	mu      sync.Mutex // protects what follows
	clients *trust.Clients
	network string                        // that they are for
	open    map[string]context.CancelFunc // by serial: ends what its holder does
	valid   map[string]context.Context
}

func (c *certificates) current() *trust.Clients {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clients
}

// admit returns who shows a certificate.
func (c *certificates) admit(cs *tls.ConnectionState) (*caller, error) {
	clients := c.current()
	if clients == nil {
		return nil, errNoCredential
	}
	id, err := clients.Admit(*cs)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.valid[id.Serial] == nil {
		if c.valid == nil {
			c.valid, c.open = map[string]context.Context{}, map[string]context.CancelFunc{}
		}
		c.valid[id.Serial], c.open[id.Serial] = context.WithDeadline(context.Background(), id.Expires)
	}
	return &caller{name: id.Caller(), rights: &id.Rights, valid: c.valid[id.Serial]}, nil
}

// follow keeps the list of revoked certificates until ctx ends.
func (c *certificates) follow(ctx context.Context) {
	for ctx.Err() == nil {
		if err := c.update(ctx); err != nil {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

// update waits for the next list of the node.
func (c *certificates) update(ctx context.Context) error {
	client, err := c.link.connected()
	if err != nil {
		return err
	}
	_, network := client.Node()
	if c.current() == nil || c.network != network {
		ca, err := caOf(c.link.opts.Node, network)
		if err != nil {
			return err
		}
		clients, err := trust.NewClients(ca, nil)
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.clients, c.network = clients, network
		c.mu.Unlock()
	}
	clients := c.current()
	doc, err := json.Marshal(bus.TrustQuery{After: clients.Number(), Wait: 50})
	if err != nil {
		return err
	}
	text, err := output(ctx, client, "", "fbus.trust", args.JSON(doc))
	if err == nil {
		err = clients.Update(text)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for serial, end := range c.open {
		if clients.Revoked(serial) || c.valid[serial].Err() != nil {
			end()
			delete(c.open, serial)
			delete(c.valid, serial)
		}
	}
	return nil
}

// caOf returns the certificate of a network's CA: that of the ticket with which the gateway has connected,
// or what this user's node has.
func caOf(node, network string) ([]byte, error) {
	place, err := find.Node(node)
	if err == nil && place.Identity != nil && place.Identity.Ticket != nil {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: place.Identity.Ticket.CA.Raw}), nil
	}
	home, err := find.HomeDir()
	if err != nil {
		return nil, err
	}
	if ca, err := os.ReadFile(filepath.Join(home, "networks", network, "ca.pem")); err == nil {
		return ca, nil
	}
	dir, err := find.JoinedDir()
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(dir); err != nil { // opening it would make it
		return nil, err
	}
	s, err := trust.OpenSecond(dir, network, 0, nil)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Ticket().CA.Raw}), nil
}
