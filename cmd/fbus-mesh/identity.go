package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"

	"golang.org/x/sys/unix"
)

// credentials prove to other nodes, and to NATS servers of fbus mesh server, that this is a node
// of the network.
type credentials struct {
	ticket *trust.Ticket // that the user has named; nil: see second
	dir    string        // where the node, or the mesh of the first node, has joined
	own    bool          // the mesh's own: it has to be renewed here
	net    string
}

// errNone is that there are no credentials: only nodes of this user and machine are reached.
var errNone = errors.New("this mesh has no ticket for other nodes")

// credentials returns those of the ticket that the user has named, those with which this user's
// node has joined the network, or those that the network's first node gives its own mesh.
func (c *config) credentials(ctx context.Context, node *bus.Client, info *bus.NodeInfo) (*credentials, error) {
	if c.Ticket != nil {
		return &credentials{ticket: c.Ticket, net: info.Network}, nil
	}
	joined, err := find.JoinedDir()
	if err != nil {
		return nil, errNone
	}
	cr := &credentials{dir: joined, net: info.Network}
	if s, err := cr.second(); err == nil {
		s.Close()
		return cr, nil
	}
	if len(info.Listens) == 0 {
		return nil, errNone // no other node can reach this one over TCP
	}
	cr.dir, cr.own = filepath.Join(filepath.Dir(joined), "mesh"), true
	if err := os.MkdirAll(cr.dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cr.dir, "join.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // a mesh and a server may start together
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	if s, err := cr.second(); err == nil {
		s.Close()
		return cr, nil
	}
	return cr, cr.join(ctx, node, info)
}

// second opens the credentials of a node.
func (c *credentials) second() (*trust.Second, error) {
	if c.ticket != nil {
		return nil, args.Errorf(args.CodeWrongUse, "FBUS_TICKET is not for a node").WithHint("run this beside a node, without FBUS_TICKET")
	}
	if _, err := os.Lstat(c.dir); err != nil { // opening it would make it
		return nil, err
	}
	return trust.OpenSecond(c.dir, c.net, 0, nil)
}

// identity returns what a connection is made with now.
func (c *credentials) identity() (*find.Identity, error) {
	if c == nil {
		return nil, errNone
	}
	if c.ticket != nil {
		return find.ForTicket(c.ticket), nil
	}
	s, err := c.second()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return find.ForTicket(s.Ticket()), nil
}

// join has the network's first node make credentials for its own mesh. They are those of another
// node, as a certificate for a server is among them.
func (c *credentials) join(ctx context.Context, node *bus.Client, info *bus.NodeInfo) error {
	doc, err := json.Marshal(bus.Invitation{Node: true, Mesh: true, Name: "mesh-" + info.Instance[:6]})
	if err != nil {
		return err
	}
	text, err := output(ctx, node, "fbus.invite", args.JSON(doc))
	if err != nil {
		e := args.AsError(err, args.CodeInternal)
		return args.Errorf(e.Code, "the mesh gets no ticket for other nodes: %s", e.Message).
			WithHint("run it as the user of the node; or FBUS_TICKET=FILE, a ticket with the right relay")
	}
	invitation, err := trust.ParseTicket(text)
	if err != nil {
		return err
	}
	j, err := trust.OpenJoined(c.dir)
	if err != nil {
		return err
	}
	defer j.Close()
	request, err := j.Begin(invitation)
	if err != nil {
		return err
	}
	first, err := bus.Dial(ctx, bus.Addr{}, &bus.Options{Name: "mesh", Identity: find.ForTicket(invitation)})
	if err != nil {
		return err
	}
	defer first.Close()
	cert, err := output(ctx, first, "fbus.join", args.List(string(request)))
	if err != nil {
		return err
	}
	_, err = j.Finish(invitation, cert)
	return err
}

// renew renews the mesh's own credentials when that is due, as nodes do it each day.
func (c *credentials) renew(ctx context.Context) error {
	if c == nil || !c.own {
		return nil
	}
	s, err := c.second()
	if err != nil {
		return err
	}
	defer s.Close()
	if !s.RenewalDue() {
		return nil
	}
	request, err := s.Ticket().Request()
	if err != nil {
		return err
	}
	first, err := bus.Dial(ctx, bus.Addr{}, &bus.Options{Name: "mesh", Identity: find.ForTicket(s.Ticket())})
	if err != nil {
		return err
	}
	defer first.Close()
	certs, err := output(ctx, first, "fbus.renew", args.List(string(request)))
	if err != nil {
		return err
	}
	return s.Renewed(certs)
}

// renewEvery renews the credentials until ctx ends.
func (c *credentials) renewEvery(ctx context.Context, pause time.Duration, note func(format string, a ...any)) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, time.Minute)
		if err := c.renew(try); err != nil && ctx.Err() == nil {
			note("the credentials of the mesh cannot be renewed: %v", err)
		}
		cancel()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// output calls a function of a node, and returns its output.
func output(ctx context.Context, c *bus.Client, function string, a bus.Args) ([]byte, error) {
	var out bytes.Buffer
	_, err := c.Call(ctx, &bus.Request{Function: function, Args: a, Stdout: &out})
	return out.Bytes(), err
}
