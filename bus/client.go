package bus

import (
	"cmp"
	"context"
	"errors"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/wire"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// Client is a connection to a node, over which any number of calls and offers
// can be under way.
type Client struct {
	conn *wire.Conn
	id   *find.Identity // nil on this machine
	addr wire.Addr      // the address that was dialled

	trace string // of calls without their own
	lower bool   // HELLO has asked for fewer rights

	mu       sync.Mutex // protects the fields below
	node     wire.HelloFrame
	lastOut  uint64 // highest id this side opened
	out      map[uint64]*outCall
	lastIn   uint64 // highest id the node opened
	in       map[uint64]*Invocation
	lastSeq  uint64
	scratch  scratch
	codes    interned
	workers  interned
	callers  interned
	pending  map[uint64]chan *args.Error // OFFERs not answered yet
	left     map[uint64]*outCall         // given up, and waiting for the node's END
	offers   map[string]*Offering
	err      error
	hello    chan struct{} // closed at the node's HELLO
	greeted  bool
	done     chan struct{} // closed when the connection is gone
	handlers sync.WaitGroup
}

// scratch holds frames while they are built: they are encoded at once.
type scratch struct {
	call       wire.CallFrame
	end        wire.EndFrame
	name, code []byte
}

// NewClient speaks the protocol over nc, whose far end is a node. It returns
// when both sides have sent HELLO, unless the options are eager.
func NewClient(ctx context.Context, nc net.Conn, o *Options) (*Client, error) {
	if o == nil {
		o = &Options{}
	}
	host, _ := os.Hostname()
	hello := wire.HelloFrame{
		Major: wire.Major, Minor: wire.Minor, Network: []byte(o.Network),
		Instance: []byte(cmp.Or(o.Instance, wire.NewInstance())), Name: []byte(cmp.Or(o.Name, host)),
		Caps: [][]byte{[]byte(wire.CapProgress)},
	}
	if o.Relay {
		hello.Caps = append(hello.Caps, []byte(wire.CapRelay))
	}
	if o.Rights != nil {
		hello.Rights = [][]byte{}
		for _, right := range o.Rights {
			hello.Rights = append(hello.Rights, []byte(right))
		}
	}
	c := &Client{
		conn: wire.NewConn(nc, nil), out: map[uint64]*outCall{}, left: map[uint64]*outCall{}, in: map[uint64]*Invocation{},
		pending: map[uint64]chan *args.Error{}, offers: map[string]*Offering{},
		hello: make(chan struct{}), done: make(chan struct{}), id: o.Identity, addr: o.dialled, trace: o.CallTrace,
		lower: o.Rights != nil,
	}
	nc.SetReadDeadline(time.Now().Add(handshakeTime))
	c.conn.Send(&hello) // if it fails the node has sent an ERROR, or reading fails too
	go c.serve()        // ends when the connection does
	if o.Eager && o.Rights == nil {
		return c, nil
	}
	var err error
	select {
	case <-c.hello:
	case <-c.done:
		err = c.err
	case <-ctx.Done():
		c.Close()
		err = context.Cause(ctx)
	}
	if o.Trace != nil && o.Trace.Greeted != nil {
		o.Trace.Greeted(c.addr, err)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// serve reads until the connection ends and then fails all open calls and offers.
func (c *Client) serve() {
	err := c.conn.Serve(c, c.limit)
	c.mu.Lock()
	c.err = c.lost(err)
	for id, call := range c.out {
		delete(c.out, id)
		call.fail(c.unknown(call, err))
	}
	for id, inv := range c.in {
		delete(c.in, id)
		inv.stop(c.err)
	}
	for seq, ch := range c.pending {
		delete(c.pending, seq)
		ch <- args.AsError(c.err, args.CodeNodeLost)
	}
	c.mu.Unlock()
	close(c.done)
}

// lost returns the error that the end of the connection means for open calls.
func (c *Client) lost(err error) error {
	var e *args.Error
	switch {
	case c.greeted && errors.Is(err, ErrDraining):
		return c.lost(io.EOF)
	case errors.As(err, &e):
		return e
	case c.id.Refusal(err) != nil:
		return c.id.Refusal(err)
	case errors.Is(err, net.ErrClosed):
		return &args.Error{Code: args.CodeNodeLost, Message: "connection closed", Err: err}
	case !c.greeted && errors.Is(err, os.ErrDeadlineExceeded):
		return &args.Error{Code: args.CodeNoNode, Message: "node did not answer the handshake in time", Err: err}
	case !c.greeted:
		return &args.Error{Code: args.CodeNoNode, Message: "node closed the connection during the handshake: " + reason(err), Err: err}
	case err == io.EOF:
		return &args.Error{Code: args.CodeNodeLost, Message: "node closed the connection", Err: err}
	}
	return &args.Error{Code: args.CodeNodeLost, Message: "connection to the node was lost: " + reason(err), Err: err}
}

// unknown returns the error of a call that was open when the connection ended. What ended a connection
// that was admitted, such as a revoked ticket, says nothing about the call: it may have run. A node that
// shuts down has ended all that it has taken before.
func (c *Client) unknown(call *outCall, err error) error {
	switch {
	case !c.greeted:
		return c.err
	case errors.Is(err, ErrDraining):
		return err
	}
	e := *args.AsError(c.err, args.CodeNodeLost)
	if e.Message = e.Error(); !strings.HasPrefix(call.req.Function, "fbus.") {
		e.Message += ": the call may have run"
	}
	return &args.Error{Code: args.CodeNodeLost, Message: e.Message, Hint: e.Hint, Err: e.Err}
}

func (c *Client) limit() int {
	if c.greeted {
		return wire.MaxFrame
	}
	return wire.MaxHelloFrame
}

// Done is closed when the connection is gone; Err then returns the reason.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, nil while it is open.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Node returns the node's name and network id, once it has sent HELLO.
func (c *Client) Node() (name, network string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.node.Name), string(c.node.Network)
}

// Addr returns the address that was dialled, the zero Addr for a client that was made over a
// connection.
func (c *Client) Addr() wire.Addr { return c.addr }

// Close ends the connection: calls under way fail, running handlers are
// cancelled. It waits for the handlers.
func (c *Client) Close() error {
	c.conn.Finish(nil)
	<-c.done
	c.handlers.Wait()
	return nil
}

// interned is a text that comes again and again.
type interned string

// intern returns p as a string, without a copy if it is the same as the last.
func (i *interned) intern(p []byte) string {
	if string(p) != string(*i) {
		*i = interned(p)
	}
	return string(*i)
}
