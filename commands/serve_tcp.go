package commands

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// tcpOptions configure access from other machines.
type tcpOptions struct {
	listen         []string
	off            bool
	cert, key, ca  string
	crl            string
	keepAlive      durationValue
	maxAge         durationValue
	maxConnections int
	maxPerTicket   int
}

func (o *tcpOptions) flags() []cli.Flag {
	o.maxAge.least = time.Second
	return []cli.Flag{
		&cli.GenericFlag{Name: "listen", Usage: "listen at `ADDR`, HOST[:PORT], for other machines; repeatable; default 0.0.0.0:" + wire.DefaultPort, Value: &listValue{list: &o.listen}},
		&cli.BoolFlag{Name: "no-tcp", Usage: "only this machine", Destination: &o.off, DisableDefaultText: true},
		&cli.StringFlag{Name: "tls-cert", Usage: "the node's certificate, in `FILE` (PEM): your own PKI", Destination: &o.cert},
		&cli.StringFlag{Name: "tls-key", Usage: "its key, in `FILE`", Destination: &o.key},
		&cli.StringFlag{Name: "tls-ca", Usage: "clients with a certificate of the CA in `FILE` may connect, with the rights in it", Destination: &o.ca},
		&cli.StringFlag{Name: "tls-crl", Usage: "but not one that a revocation list in `FILE` names (PEM or DER, signed by a CA of --tls-ca)", Destination: &o.crl},
		&cli.GenericFlag{Name: "trust-max-age", Usage: "at a node that is not its network's first: admit nobody over TCP while its list of revoked tickets is older than `D`; default no limit", Value: &o.maxAge},
		keepAliveFlag(&o.keepAlive, "close a silent connection after `D`, at least 3s; default 10s"),
		&cli.IntFlag{Name: "max-connections", Usage: "at most `N` connections", DefaultText: fmt.Sprint(node.DefaultConnections), Destination: &o.maxConnections},
		&cli.IntFlag{Name: "max-per-ticket", Usage: "at most `N` of them with one ticket", DefaultText: fmt.Sprint(node.DefaultPerTicket), Destination: &o.maxPerTicket},
	}
}

func (o *tcpOptions) check() error {
	given := slices.DeleteFunc([]string{o.cert, o.key, o.ca}, func(s string) bool { return s == "" })
	switch {
	case o.off && len(o.listen) > 0:
		return usage("--no-tcp and --listen exclude each other")
	case len(given) != 0 && len(given) != 3:
		return usage("--tls-cert, --tls-key and --tls-ca go together")
	case o.crl != "" && len(given) == 0:
		return usage("--tls-crl needs --tls-cert, --tls-key and --tls-ca").WithHint("with tickets: fbus revoke NAME")
	case o.off && len(given) > 0:
		return usage("--no-tcp and --tls-cert exclude each other")
	case o.off && o.maxAge.set:
		return usage("--no-tcp and --trust-max-age exclude each other")
	case o.maxConnections < 1:
		return usage("--max-connections must be at least 1, not %d", o.maxConnections)
	case o.maxPerTicket < 1:
		return usage("--max-per-ticket must be at least 1, not %d", o.maxPerTicket)
	}
	for _, addr := range o.listen {
		if err := wire.CheckAddress(addr); err != nil {
			return usage("--listen: %v", err).WithHint(find.AddrHint)
		}
	}
	return nil
}

// door is the entry for other machines. Without listeners it is shut.
type door struct {
	o         *tcpOptions
	gate      node.Gate        // nil: nobody can be admitted
	authority *trust.Authority // nil with an external PKI, and at a second node
	second    *trust.Second    // nil at the network's first node
	listeners []net.Listener

	noTickets, closed error // why there is no authority, and no listener
}

// newDoor returns a door that listens only at the sockets passed on by a service manager.
func (o *tcpOptions) newDoor(passed []*net.TCPListener) *door {
	d := &door{o: o}
	for _, l := range passed {
		d.listeners = append(d.listeners, l)
	}
	return d
}

// open opens the network's authority and listens. A failure of a part that was not
// requested is only a warning. After an error the caller must close the door.
func (d *door) open(network string, warn func(string, ...any)) error {
	o, passed := d.o, len(d.listeners) > 0
	if o.off {
		if passed {
			return usage("--no-tcp cannot be used: the service manager listens at %s", d.listeners[0].Addr())
		}
		d.closed = fail(args.CodeUsage, "it was started with --no-tcp").WithHint("start it without --no-tcp; --listen HOST:PORT chooses where it listens")
		// Tokens are made, and tickets can still be listed and revoked: after a leak a node may be
		// taken off the network first.
		home, err := find.HomeDir()
		founded := err == nil && founded(home, network)
		if err := d.openGate(network, warn); err != nil {
			d.noTickets = err
			if founded {
				warn("tickets cannot be listed or revoked: %s", explain(err).Message)
			}
		}
		return nil
	}
	if err := d.openGate(network, warn); err != nil {
		if len(o.listen) > 0 || o.cert != "" || passed {
			return err
		}
		f := explain(err)
		d.closed, d.noTickets = f, f
		warn("no other machine can reach this node: %s", f.Message)
		if f.Hint != "" {
			warn("hint: %s", f.Hint)
		}
		return nil
	}
	addresses := o.listen
	if len(addresses) == 0 && !passed {
		addresses = []string{"0.0.0.0:" + wire.DefaultPort}
	}
	for _, addr := range addresses {
		l, err := listenTCP(addr)
		switch {
		case err == nil:
			d.listeners = append(d.listeners, l)
		case len(o.listen) > 0:
			return fail(args.CodeNoNode, "%s: %s", addr, listenReason(err)).WithHint("--listen ADDR listens elsewhere, --no-tcp nowhere")
		default:
			f := fail(args.CodeNoNode, "%s: %s", addr, listenReason(err)).WithHint("--listen ADDR listens elsewhere; --no-tcp is for this machine only")
			warn("%s: no other machine can reach this node", f.Message)
			warn("hint: %s", f.Hint)
			d.closed = f
		}
	}
	return nil
}

// openGate opens the authority or PKI that admits peers.
func (d *door) openGate(network string, warn func(string, ...any)) error {
	if d.o.cert != "" {
		if err := find.Readable("--tls-cert ", d.o.cert, "--tls-key ", d.o.key, "--tls-ca ", d.o.ca, "--tls-crl ", d.o.crl); err != nil {
			return err
		}
		f, err := trust.OpenNodeFiles(d.o.cert, d.o.key, d.o.ca, d.o.crl, nil)
		if e, ok := errors.AsType[*args.Error](err); ok && e.Code == args.CodeWrongUse {
			return usage("--tls-cert %s", e.Message).WithHint("%s", e.Hint)
		}
		if err == nil {
			d.gate, d.noTickets = f, errors.New("its peers have certificates of another PKI (--tls-ca)")
		}
		return err
	}
	home, err := find.HomeDir()
	if err != nil {
		return fail(args.CodeInternal, "%v", err).WithHint("set FBUS_HOME to a writable directory")
	}
	founded := founded(home, network)
	joined, err := find.NodeNetworks(network)
	switch {
	case founded && len(joined) > 0:
		warn("network %s was joined with a ticket for a second node, but this user has the CA of a network of that name: this is that network's first node", network)
	case founded:
	case err != nil: // a CA of its own would make another network of it
		return err
	case len(joined) > 0:
		dir, err := filepath.Abs(filepath.Join(home, "joined")) // its companions may work elsewhere
		if err != nil {
			return err
		}
		s, err := trust.OpenSecond(dir, network, d.o.maxAge.d, nil)
		if err == nil {
			d.gate, d.second, d.noTickets = s, s, errors.New("it is not the network's first node")
		}
		return err
	}
	if d.o.maxAge.set {
		return usage("--trust-max-age is for a node that is not its network's first").WithHint("fbus invite --for-node at the first node makes a ticket for one")
	}
	a, err := trust.Open(trust.Options{Dir: filepath.Join(home, "networks", network), Network: network, Warn: warn})
	if err != nil {
		return err
	}
	d.gate, d.authority = a, a
	return nil
}

// listenTCP listens at an address: 0.0.0.0 is IPv4 alone, an empty host or :: both.
func listenTCP(addr string) (net.Listener, error) {
	addr = wire.WithPort(addr)
	network := "tcp"
	if host, _, err := net.SplitHostPort(addr); err == nil && net.ParseIP(host).To4() != nil {
		network = "tcp4"
	}
	lc := net.ListenConfig{KeepAlive: -1}
	return lc.Listen(context.Background(), network, addr)
}

func listenReason(err error) string {
	var dns *net.DNSError
	var addr *net.AddrError
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "the address is in use"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &dns):
		return "the name cannot be resolved: " + dns.Err
	case errors.As(err, &addr):
		return addr.Err
	}
	return err.Error()
}

// serve accepts peers. served receives the error that ends a listener.
func (d *door) serve(n *node.Node, served chan<- error) {
	for _, l := range d.listeners {
		n.Listening(l.Addr().(*net.TCPAddr))
		go func() { // ends when the listener is closed
			if err := n.ServeTCP(l); err != nil {
				served <- err
			}
		}()
	}
}

// String formats the door for the ready line.
func (d *door) String() string {
	if len(d.listeners) == 0 {
		return ""
	}
	var list []string
	for _, l := range d.listeners {
		list = append(list, l.Addr().String())
	}
	who := "ticket holders only"
	if d.authority == nil && d.second == nil {
		who = "holders of a certificate only"
	}
	if d.second != nil {
		who += "; the network's first node is at " + d.second.First()
	}
	return fmt.Sprintf(", and at %s, %s", strings.Join(list, " and "), who)
}

func (d *door) close() {
	closeAll(d.listeners)
	if d.authority != nil {
		d.authority.Close()
	}
	if d.second != nil {
		d.second.Close()
	}
}
