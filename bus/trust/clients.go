package trust

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"sync/atomic"
	"time"

	"fbus/bus/args"
)

// listAge is how old the list of a Clients may be: who revokes a ticket relies on it.
const listAge = 5 * time.Minute

// Clients admits holders of tickets to a server that is not a node, such as a gateway. It has the
// certificate of the network's CA, and the revocation list that fbus.trust returns.
type Clients struct {
	ca   *x509.Certificate
	pool *x509.CertPool
	now  func() time.Time
	list atomic.Pointer[received] // nil: there is none yet
}

// NewClients returns a Clients for a CA (PEM). It admits nobody before its first list. now may be nil.
func NewClients(ca []byte, now func() time.Time) (*Clients, error) {
	block, _ := pem.Decode(ca)
	if block == nil || block.Type != certBlock {
		return nil, errorf(args.CodeDamaged, "there is no certificate in it")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, errorf(args.CodeDamaged, "the CA's certificate: %v", err)
	}
	if now == nil {
		now = Now
	}
	c := &Clients{ca: cert, pool: x509.NewCertPool(), now: now}
	c.pool.AddCert(cert)
	return c, nil
}

// Update takes a revocation list (PEM).
func (c *Clients) Update(text []byte) error {
	list, err := receive(text, "", c.ca, c.now())
	if err != nil {
		return err
	}
	if old := c.list.Load(); old != nil && list.number < old.number {
		return errorf(args.CodeDamaged, "list %d is older than list %d", list.number, old.number)
	}
	c.list.Store(list)
	return nil
}

// Number returns the number of the list, 0 if there is none yet.
func (c *Clients) Number() int64 {
	if list := c.list.Load(); list != nil {
		return list.number
	}
	return 0
}

// Config changes a server's configuration so that clients may show a ticket's certificate. Connections
// are not resumed: that would skip checks.
func (c *Clients) Config(config *tls.Config) {
	config.ClientAuth, config.ClientCAs, config.SessionTicketsDisabled = tls.VerifyClientCertIfGiven, c.pool, true
}

// Admit returns the identity of a client that has shown a certificate, or why it is refused.
func (c *Clients) Admit(cs tls.ConnectionState) (*Identity, error) {
	now := c.now()
	id, err := signed(cs, c.ca, now)
	if err != nil {
		return nil, err
	}
	list := c.list.Load()
	switch {
	case list == nil || now.Sub(list.at) > listAge:
		return id, errorf(args.CodeShut, "the list of revoked certificates is missing or too old")
	case id.Joining:
		return id, errorf(args.CodeWrongUse, "%s is an invitation: it admits nobody before it was exchanged", id.Name).WithHint("fbus join TICKET")
	case !list.revoked[id.Serial].IsZero():
		return id, revoked(&Record{Name: id.Name}, list.revoked[id.Serial])
	}
	return id, nil
}

// Revoked reports whether the list contains a serial.
func (c *Clients) Revoked(serial string) bool {
	list := c.list.Load()
	return list != nil && !list.revoked[serial].IsZero()
}
