package bus

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

const (
	// DefaultKeepAlive is how long a peer over TCP may be silent, if nothing else
	// is said.
	DefaultKeepAlive = 10 * time.Second
	// tryTime bounds one address while others are left to try.
	tryTime = 3 * time.Second
)

// Credentials are what nodes on other machines are dialled with.
type Credentials struct {
	// Addresses are dialled in this order if no other is given.
	Addresses []string
	// Config is the TLS configuration for the node at a host.
	Config func(host string) *tls.Config
	// Explain says what a failed handshake means, or the first read after one.
	Explain func(err error) *trust.Error
}

// TicketCredentials are those of a ticket.
func TicketCredentials(t *trust.Ticket) *Credentials {
	return &Credentials{
		Addresses: t.Addresses,
		Config:    func(string) *tls.Config { return t.ClientConfig(nil) },
		Explain:   func(err error) *trust.Error { return t.Explain(err, time.Time{}) },
	}
}

// FileCredentials are those of somebody's own PKI: the node's certificate must
// name the host that is dialled.
func FileCredentials(f *trust.Files) *Credentials {
	return &Credentials{Config: f.ClientConfig, Explain: func(err error) *trust.Error { return f.Explain(err, time.Time{}) }}
}

// refusal is what an error means that has to do with who may enter; nil for any
// other, and for those of the network. What this side has against the node's
// certificate is no denial: another address, or a later time, may show a better
// one.
func (c *Credentials) refusal(err error) *args.Error {
	if c == nil || err == nil {
		return nil
	}
	e := c.Explain(err)
	switch {
	case e.Code == args.CodeReset, e.Code == args.CodeTimeout, e.Code == args.CodeTLS:
		return nil
	case e.Code == args.CodeOtherNetwork:
		return &args.Error{Code: args.CodeNetwork, Message: e.Message, Err: e}
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(*trust.Error)): // of VerifyConnection
		return &args.Error{Code: args.CodeNotOurs, Message: e.Message, Err: e}
	}
	return &args.Error{Code: e.Code, Message: e.Message, Err: e}
}

// Failure is the error that a failed handshake with a node at addr ends a dial
// with.
func (c *Credentials) Failure(addr string, err error) *args.Error {
	if e := c.refusal(err); e != nil {
		e.Message = addr + ": " + e.Message
		return e
	}
	e := c.Explain(err)
	return &args.Error{Code: args.CodeNoNode, Message: addr + ": " + e.Message, Err: e}
}

// Dial connects to a node. An addr with a / is the path of its unix socket. The node
// must be this user's, root's, of one of o.Users, or known by where its socket is
// (PROTOCOL.md, section 2): another is refused with [CodeForeign] before a byte is sent. Any other is host[:port], over TCP with
// TLS, and needs credentials; empty stands for their addresses, one after the
// other.
func Dial(ctx context.Context, addr string, o *DialOptions) (*Client, error) {
	if o == nil {
		o = &DialOptions{}
	}
	if strings.Contains(addr, "/") {
		return dialSocket(ctx, addr, o)
	}
	if o.Credentials == nil {
		return nil, &args.Error{Code: args.CodeNoCertificate, Message: addr + ": nobody gets in over TCP without a ticket"}
	}
	list := o.Credentials.Addresses
	if addr != "" {
		list = []string{addr}
	}
	if len(list) == 0 {
		return nil, args.Errorf(args.CodeNoNode, "the ticket names no address: give the node's with --node HOST:PORT")
	}
	var first error
	for i, a := range list {
		c, err := dialTCP(ctx, wire.WithPort(a), o, i < len(list)-1)
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrDenied) {
			return c, err // a denial is the network's, not the address's
		}
		if first == nil || errors.Is(first, errUnreachable) && !errors.Is(err, errUnreachable) {
			first = err
		}
	}
	return nil, first
}

// errUnreachable marks a failure before anybody has answered.
var errUnreachable = errors.New("nobody answers")

// dialTCP connects to one address. If others are left to try, it takes less time
// for it.
func dialTCP(ctx context.Context, addr string, o *DialOptions, others bool) (*Client, error) {
	limit := handshakeTime
	if others {
		limit = tryTime
	}
	try, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dialer := net.Dialer{KeepAlive: -1}
	tcp, err := dialer.DialContext(try, "tcp", addr)
	if err != nil {
		return nil, &args.Error{Code: args.CodeNoNode, Message: addr + ": " + dialReason(err), Err: errors.Join(err, errUnreachable)}
	}
	pulse := wire.KeepAlive(tcp, cmp.Or(o.KeepAlive, DefaultKeepAlive))
	host, _, _ := net.SplitHostPort(addr)
	nc := tls.Client(wire.NewSocket(tcp), o.Credentials.Config(host))
	if err := nc.HandshakeContext(try); err != nil {
		tcp.Close()
		return nil, o.Credentials.Failure(addr, err)
	}
	with := *o
	with.dialled = addr
	c, err := NewClient(ctx, nc, &with)
	if err == nil {
		go c.watch(pulse) // ends with the connection
	}
	return c, err
}

// watch keeps a connection whose node is only stopped.
func (c *Client) watch(p *wire.Pulse) {
	tick := time.NewTicker(p.Every())
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
			p.Check()
		}
	}
}

// dialReason is the part of a dial's error that says why.
func dialReason(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "the name can not be resolved: " + dns.Err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "nobody answers"
	}
	return reason(err)
}

func dialSocket(ctx context.Context, path string, o *DialOptions) (*Client, error) {
	nc, err := dialUnix(ctx, path)
	if err != nil {
		return nil, &args.Error{Code: args.CodeNoNode, Message: fmt.Sprintf("%s: %s", path, reason(err)), Err: err}
	}
	if err := wire.CheckPeer(nc, path, o.Users); err != nil {
		nc.Close()
		return nil, err
	}
	with := *o
	with.dialled, with.Credentials = path, nil
	return NewClient(ctx, nc, &with)
}

// dialUnix connects to a unix socket. One whose backlog is full refuses at once:
// that passes, and is waited for.
func dialUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	until := time.Now().Add(handshakeTime)
	for {
		nc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(until) {
			return nc, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// reason is the part of a network error that says why.
func reason(err error) string {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err.Error()
	}
	return err.Error()
}
