package bus

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/wire"
)

const (
	// handshakeTime bounds the exchange of HELLO frames.
	handshakeTime = 10 * time.Second
	// tryTime bounds one address while others are left to try.
	tryTime = 3 * time.Second
	// lookupTime bounds the lookup of a name for a [Trace].
	lookupTime = 5 * time.Second
	// lastTry is the least time that the last try of a [Wait] gets.
	lastTry = 250 * time.Millisecond
)

// An Addr is where a node listens: the path of a unix socket, or host:port over TCP.
type Addr = wire.Addr

// Unix returns the address of the unix socket at path.
func Unix(path string) Addr { return wire.Unix(path) }

// TCP returns the address HOST[:PORT]; the default port is 10101.
func TCP(hostPort string) Addr { return wire.TCP(hostPort) }

// Options are for [Connect] and [Dial]. The zero value is fine.
type Options struct {
	// Node is the node that Connect uses, as with the flag --node: the path of a
	// socket, or HOST[:PORT]. Empty: the environment decides.
	Node string
	// Wait is how long Connect waits for a node to come, or to have room; default
	// [NoWait].
	Wait Wait
	// Network is the network id that the node must have; empty takes any.
	Network string
	// Name is the name of this worker or caller; default the host's name.
	Name string
	// Instance names this process across reconnections: a connection with the
	// same one supersedes the older. Default: a new one.
	Instance string
	// Rights are the only ones that the connection has, of those that its user or ticket has:
	// "call:GLOB", "offer:GLOB", "monitor", "relay", "admin". nil: all. A node of version 1.0, which
	// would give it all of them, is refused, so Eager has no effect.
	Rights []string
	// Relay asks the node for the right to make calls for others, and offers that lead to other
	// nodes: see [Request.Caller] and [Offer.Relay]. A call that
	// does so without that right is refused with the code denied before it is sent.
	Relay bool
	// Eager returns before the node has answered HELLO, so that a first call
	// goes out with it. A node's refusal is then the error of that call.
	Eager bool
	// Users reports whether a node on this machine may run as that user; this one
	// and root always may. Connect sets it from FBUS_NODE_USER.
	Users func(uid int) bool
	// Identity is for nodes on other machines, over TCP. Connect finds one.
	Identity *find.Identity
	// KeepAlive is how long a node over TCP may be silent before the connection is
	// given up; default 10 seconds.
	KeepAlive time.Duration
	// CallTrace is the trace that calls belong to, as [args.Trace] returns it; empty: none.
	CallTrace string
	// Trace, if set, observes the steps of connecting.
	Trace *Trace

	dialled Addr // once it is connected
}

// A Trace has functions that [Connect] and [Dial] call after each step, in the order of
// the fields. Any may be nil. A step's error ends the try; another address, or another
// place, may follow.
type Trace struct {
	// Place gets each node that is tried, and why it was chosen.
	Place func(find.Place)
	// Lookup gets the addresses of a host's name, which is empty for this machine.
	Lookup func(host string, found []string, err error)
	// Connected gets the socket or TCP connection, before anything is sent.
	Connected func(addr Addr, nc net.Conn, err error)
	// Secured gets the state of TLS after its handshake.
	Secured func(addr Addr, state tls.ConnectionState, err error)
	// Greeted gets the end of the exchange of HELLO frames, which is also when a node
	// refuses a certificate.
	Greeted func(addr Addr, err error)
}

// Connect chooses a node and an identity as every command does, see [find.Node],
// connects, and tries again for as long as o.Wait allows. An identity of a joined
// network is renewed in time, for as long as the connection lasts.
func Connect(ctx context.Context, o *Options) (*Client, error) {
	if o == nil {
		o = &Options{}
	}
	deadline := time.Now().Add(o.Wait.limit())
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		c, err := connectWithin(ctx, o, time.Until(deadline))
		if err == nil || !args.Retryable(err) || errors.Is(err, wire.ErrLongPath) || ctx.Err() != nil {
			return c, err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, err
		}
		select {
		case <-time.After(min(pause/2+rand.N(pause/2), left)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// connectWithin makes one try, which takes no longer than the rest of the wait.
// Without a wait only dialling has its limits.
func connectWithin(ctx context.Context, o *Options, left time.Duration) (*Client, error) {
	if o.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, max(left, lastTry), args.Errorf(args.CodeNoNode, "node did not answer the handshake in time"))
		defer cancel()
	}
	p, err := find.Node(o.Node)
	if err != nil {
		return nil, err
	}
	c, err := dialPlace(ctx, p, o)
	for p.Passable(err) {
		next, none := p.Next()
		if errors.Is(none, &Error{Code: args.CodeNoNode}) {
			break // the error of the node that there is explains more
		}
		if p, err = next, none; err == nil {
			c, err = dialPlace(ctx, p, o)
		}
	}
	return c, err
}

// dialPlace connects to a node that was chosen.
func dialPlace(ctx context.Context, p find.Place, o *Options) (*Client, error) {
	if o.Trace != nil && o.Trace.Place != nil {
		o.Trace.Place(p)
	}
	with, id := *o, p.Identity
	if err := id.Check(); err != nil {
		return nil, err
	}
	if with.Identity = id; id == nil {
		trusted, err := find.TrustedUser()
		if err != nil {
			return nil, err
		}
		with.Users = func(uid int) bool { return uid == trusted }
	}
	c, err := Dial(ctx, p.Addr, &with)
	if err == nil && id != nil && id.Dir != "" {
		id.Renew(ctx, c.askRenewal)
		// A connection may last for months. The node then lets it last as long as the
		// new certificate.
		go every(c.done, find.RenewPause, func() { id.Renew(context.Background(), c.askRenewal) }) // ends with the connection
	}
	return c, err
}

// every calls f at that interval until done is closed.
func every(done <-chan struct{}, pause time.Duration, f func()) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			f()
		}
	}
}

func (c *Client) askRenewal(ctx context.Context, request []byte) ([]byte, error) {
	var cert bytes.Buffer
	_, err := c.Call(ctx, &Request{Function: "fbus.renew", Args: args.List(string(request)), Stdout: &cert})
	return cert.Bytes(), err
}

// Dial connects to the node at addr. On a unix socket the node must be this user's,
// root's, of one of o.Users, or known by where its socket is (PROTOCOL.md, section 2):
// another is refused with the code foreign before a byte is sent. Over TCP, which is
// always TLS, an identity is needed; the zero Addr means its addresses, which are
// tried in their order.
func Dial(ctx context.Context, addr Addr, o *Options) (*Client, error) {
	if o == nil {
		o = &Options{}
	}
	var c *Client
	err := dial(ctx, addr, o, func(line *Line) (err error) {
		with := *o
		with.dialled = line.Addr
		if line.Addr.Network() == "unix" {
			with.Identity = nil
		}
		if c, err = NewClient(ctx, line.Conn, &with); err == nil {
			go line.Watch(c.done) // ends with the connection
		}
		return err
	})
	return c, err
}

// A Line is a connection to a node on which nothing was sent yet.
type Line struct {
	Conn  net.Conn
	Addr  Addr
	pulse *wire.Pulse
}

// DialLine connects as [Dial] does. It is for programs that speak the protocol themselves.
func DialLine(ctx context.Context, addr Addr, o *Options) (*Line, error) {
	var line *Line
	err := dial(ctx, addr, o, func(l *Line) error {
		line = l
		return nil
	})
	return line, err
}

// Watch keeps a connection that is open: over TCP one whose node is only stopped is not given up.
// It returns when done is closed.
func (l *Line) Watch(done <-chan struct{}) {
	if l.pulse != nil {
		every(done, l.pulse.Every(), l.pulse.Check)
	}
}

// dial connects to one address after the other, until greet takes a connection.
func dial(ctx context.Context, addr Addr, o *Options, greet func(*Line) error) error {
	if addr.Network() == "unix" {
		line, err := dialSocket(ctx, addr, o)
		if err != nil {
			return err
		}
		return greet(line)
	}
	if o.Identity == nil {
		return args.Errorf(args.CodeNoCertificate, "%v: a node on another machine requires a ticket", addr)
	}
	list := []Addr{addr}
	if addr == (Addr{}) {
		list = o.Identity.Addresses
	}
	if len(list) == 0 {
		return args.Errorf(args.CodeNoNode, "the ticket contains no address: use --node HOST:PORT")
	}
	var first error
	for i, a := range list {
		line, err := dialTCP(ctx, a, o, i < len(list)-1)
		if err == nil {
			err = greet(line)
		}
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrDenied) {
			return err // a denial is the network's, not the address's
		}
		if first == nil || errors.Is(first, errUnreachable) && !errors.Is(err, errUnreachable) {
			first = err
		}
	}
	return first
}

// errUnreachable marks a failure before anybody has answered.
var errUnreachable = errors.New("no answer")

// dialTCP connects to one address. If others are left to try it gets less time.
func dialTCP(ctx context.Context, addr Addr, o *Options, others bool) (*Line, error) {
	limit := handshakeTime
	if others {
		limit = tryTime
	}
	trace := o.Trace
	if trace == nil {
		trace = &Trace{}
	}
	host, _, _ := net.SplitHostPort(addr.String())
	if trace.Lookup != nil {
		lookup, cancel := context.WithTimeout(ctx, lookupTime)
		found, err := net.DefaultResolver.LookupHost(lookup, cmp.Or(host, "127.0.0.1"))
		cancel()
		if trace.Lookup(host, found, err); err != nil {
			return nil, unreachable(addr, err)
		}
	}
	try, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dialer := net.Dialer{KeepAlive: -1}
	tcp, err := dialer.DialContext(try, "tcp", addr.String())
	if trace.Connected != nil {
		trace.Connected(addr, tcp, err)
	}
	if err != nil {
		return nil, unreachable(addr, err)
	}
	pulse := wire.KeepAlive(tcp, cmp.Or(o.KeepAlive, wire.DefaultKeepAlive))
	nc := tls.Client(wire.NewSocket(tcp), o.Identity.Config(host))
	err = nc.HandshakeContext(try)
	if err != nil {
		tcp.Close()
		err = o.Identity.Failure(addr, err)
	}
	if trace.Secured != nil {
		trace.Secured(addr, nc.ConnectionState(), err)
	}
	if err != nil {
		return nil, err
	}
	return &Line{nc, addr, pulse}, nil
}

func unreachable(addr Addr, err error) error {
	return &Error{Code: args.CodeNoNode, Message: addr.String() + ": " + dialReason(err), Err: errors.Join(err, errUnreachable)}
}

// dialReason returns the cause in a dial's error.
func dialReason(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "the name cannot be resolved: " + dns.Err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	}
	return reason(err)
}

func dialSocket(ctx context.Context, addr Addr, o *Options) (*Line, error) {
	if err := wire.CheckPath(addr.String()); err != nil {
		e := args.Errorf(args.CodeNoNode, "%v: %v", addr, err).WithHint("use a shorter path, or one relative to the current directory")
		e.Err = err
		return nil, e
	}
	nc, err := dialUnix(ctx, addr.String())
	if err != nil {
		err = noSocket(addr.String(), err)
	} else if err = wire.CheckPeer(nc, addr.String(), o.Users); err != nil {
		nc.Close()
	}
	if o.Trace != nil && o.Trace.Connected != nil {
		o.Trace.Connected(addr, nc, err)
	}
	if err != nil {
		return nil, err
	}
	return &Line{Conn: nc, Addr: addr}, nil
}

// noSocket returns the error of a socket that cannot be connected to.
func noSocket(path string, err error) *Error {
	if e := find.Outside(path); e != nil && errors.Is(err, syscall.EACCES) {
		e.Err = err
		return e
	}
	e := &Error{Code: args.CodeNoNode, Message: path + ": " + reason(err), Err: err}
	if why := find.NotSocket(path); why != "" { // the system says only that the connection was refused
		e.Message, e.Hint = path+": "+why, "the address of a node is the path of its socket, or HOST[:PORT]"
		if in := find.SocketIn(path); in != "" {
			e.Hint = "a node listens at " + in
		}
	}
	return e
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

// reason returns the cause in a network error.
func reason(err error) string {
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		return sys.Err.Error()
	}
	return err.Error()
}
