package main

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"

	"github.com/nats-io/nats-server/v2/server"
)

// trustEvery is how often a NATS server gets the list of revoked tickets. Tests set it.
var trustEvery = 5 * time.Second

// serve is a NATS server, until ctx ends. Beside a node with credentials it admits meshes of the
// network alone, over TLS. Without, it may only listen on this machine.
func (o *options) serve(ctx context.Context) error {
	cr, err := o.find(ctx)
	if err != nil && o.node != "" {
		return err
	}
	if cr == nil {
		s, err := startServer(o.listen, &server.Options{})
		if err != nil {
			return err
		}
		defer stopServer(s)
		o.cfg.Note("NATS server listens at %s, without authentication, for this machine", s.ClientURL())
		<-ctx.Done()
		return nil
	}
	second, err := cr.second()
	if err != nil {
		return err
	}
	defer second.Close()
	g := &gate{second: second, subjects: subjects(cr.net, o.cfg.NATSService), clients: map[uint64]*trust.Identity{}}
	second.OnRevoke(g.revoked)
	s, err := startServer(o.listen, &server.Options{
		TLSConfig: second.ServerConfig(), TLS: true, TLSVerify: true, TLSTimeout: 5, CustomClientAuthentication: g,
	})
	if err != nil {
		return err
	}
	defer stopServer(s)
	g.server = s
	go cr.renewEvery(ctx, time.Hour, o.cfg.Note) // ends with ctx
	o.cfg.Note("NATS server of network %s listens at tls://%s", cr.net, s.Addr())
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { // ends with ctx
		g.follow(ctx, trust.FromRelay, func(ctx context.Context) (*bus.Client, error) {
			own, _, err := o.cfg.dial(ctx)
			return own, err
		}, func(string, ...any) {})
	})
	g.follow(ctx, trust.FromFirst, func(ctx context.Context) (*bus.Client, error) {
		return bus.Dial(ctx, bus.Addr{}, &bus.Options{Name: "mesh", Identity: find.ForTicket(second.Ticket())})
	}, o.cfg.Note)
	return nil
}

// startServer starts a NATS server. One without TLS is for this machine only.
func startServer(listen string, o *server.Options) (*server.Server, error) {
	host, n, err := hostPort(listen)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); o.TLSConfig == nil && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, args.Errorf(args.CodeUsage, "--listen %s: without authentication the server may only listen on this machine", listen).
			WithHint("fbus mesh server --listen 127.0.0.1:%d; or run it beside a node that listens on TCP", n)
	}
	o.Host, o.Port, o.NoSigs, o.NoLog = host, int(n), true, true
	if n == 0 {
		o.Port = server.RANDOM_PORT
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, err
	}
	probe, err := net.Listen("tcp", listen) // the server would end the process
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "--listen %s: %v", listen, err)
	}
	probe.Close()
	go s.Start() // ends with the server
	if !s.ReadyForConnections(10 * time.Second) {
		stopServer(s)
		return nil, args.Errorf(args.CodeInternal, "the NATS server at %s has not started", listen)
	}
	return s, nil
}

// hostPort returns the parts of where a server listens. Port 0 is a free one.
func hostPort(listen string) (host string, port uint64, err error) {
	host, text, err := net.SplitHostPort(listen)
	port, bad := strconv.ParseUint(text, 10, 16)
	if err != nil || bad != nil || strings.ContainsAny(host, " /@\n") {
		return "", 0, args.Errorf(args.CodeUsage, "--listen %s: it must be HOST:PORT, with a number as PORT", args.Shown(listen))
	}
	return host, port, nil
}

func stopServer(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// subjects returns those that the meshes of a network use. With globs of functions for clients of NATS
// there are these, too, and the answers to such clients. NATS has no pattern for a part of a word, so
// a glob opens all subjects.
func subjects(network string, globs []string) []string {
	list := []string{"fbus." + network + ".>"}
	for _, glob := range globs {
		if strings.ContainsAny(glob, `*?[\`) {
			return []string{">"}
		}
		list = append(list, subjectOf(glob))
	}
	if len(globs) > 0 {
		list = append(list, "$SRV.>", "_INBOX.>")
	}
	return list
}

// gate admits the meshes of a network to a NATS server: holders of tickets with the right relay
// that are not revoked.
type gate struct {
	second   *trust.Second
	server   *server.Server
	subjects []string // that those who are admitted may use

	mu      sync.Mutex // protects clients
	clients map[uint64]*trust.Identity
}

// Check implements [server.Authentication].
func (g *gate) Check(c server.ClientAuthentication) bool {
	state := c.GetTLSConnectionState()
	if state == nil || c.Kind() != server.CLIENT {
		return false
	}
	id, err := g.second.Admit(*state, "")
	if err != nil || !id.Rights.Relay {
		return false
	}
	c.RegisterUser(&server.User{Username: id.Name, Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: g.subjects}, Subscribe: &server.SubjectPermission{Allow: g.subjects},
	}})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clients[c.GetID()] = id
	return true
}

// check closes the connections of those that would not be admitted any more.
func (g *gate) check() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for client, id := range g.clients {
		switch {
		case g.server.GetClient(client) == nil:
			delete(g.clients, client)
		case g.second.Check(id) != nil:
			g.server.DisconnectClientByID(client)
		}
	}
}

func (g *gate) revoked([]string) { g.check() }

// follow gets the list of revoked tickets from a node, until ctx ends: from the network's first node,
// and, as that may be out of reach, the list that the own node keeps. The mesh passes lists to that.
func (g *gate) follow(ctx context.Context, from string, dial func(context.Context) (*bus.Client, error), note func(format string, a ...any)) {
	var node *bus.Client
	said := ""
	for ctx.Err() == nil {
		err := func() (err error) {
			try, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			if node == nil || node.Err() != nil {
				if node, err = dial(try); err != nil {
					return err
				}
			}
			text, err := output(try, node, "fbus.trust", args.JSON([]byte(`{"kept":true}`)))
			if err != nil {
				return err
			}
			return g.second.Update(text, from)
		}()
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != said && text != "" {
			note("the list of revoked tickets cannot be got from the network's first node: %s", text)
		}
		said = text
		g.check()
		select {
		case <-time.After(trustEvery):
		case <-ctx.Done():
		}
	}
	if node != nil {
		node.Close()
	}
}
