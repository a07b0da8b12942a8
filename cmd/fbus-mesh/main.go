// Command fbus-mesh connects a node to the others of its network. It is run as fbus mesh.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"
	"fbus/cmd/companion"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"
)

func main() { companion.Main(command) }

const help = `fbus mesh: connect this node to the others of its network, over NATS

Usage: fbus mesh [flags] URL…
       fbus mesh server --listen ADDR
       fbus mesh demo

URL is a NATS server, as nats://hub:4222. Run fbus mesh beside each node. A call for which
its node has no free slot then runs on another node that has one, and functions that are only
on other nodes can be called as if they were here. NATS carries who is there and who has a free
slot; calls go from node to node, over TLS.

server  is a NATS server, for a mesh without one of its own. It has no authentication, so it
        listens on this machine only.
demo    starts a NATS server and three nodes here, calls across them, and removes it all.

For other nodes a mesh needs a ticket with the right relay. A node that joined with a ticket of
fbus invite --for-node has one. Beside the network's first node, FBUS_TICKET names one:

  fbus invite --reusable --ttl 365d --call '*' --offer '*' --monitor --relay --name mesh -o mesh.ticket
  FBUS_TICKET=mesh.ticket fbus mesh nats://hub:4222

Flags:
%s`

// options are the flags.
type options struct {
	cfg                        config
	node, listen               string
	creds, nkey, cert, key, ca string
	quiet                      bool
}

func command(ctx context.Context, words []string, stdout, stderr io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("mesh", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&o.node, "node", "", "the own node's `ADDR`: the path of its socket")
	flags.StringVar(&o.cfg.Name, "name", "", "what this node is called in the mesh, `NAME`; default its own name")
	flags.StringArrayVar(&o.cfg.Share, "share", []string{"*"}, "functions of this node that others may use, `GLOB`; may be repeated")
	flags.StringArrayVar(&o.cfg.Accept, "accept", []string{"*"}, "functions of other nodes that are offered here, `GLOB`; may be repeated")
	flags.StringArrayVar(&o.cfg.Advertise, "advertise", nil, "where other nodes reach this one, `HOST:PORT`; may be repeated; default what the node says")
	flags.StringVar(&o.creds, "creds", "", "NATS credentials, `FILE`")
	flags.StringVar(&o.nkey, "nkey", "", "NATS nkey seed, `FILE`")
	flags.StringVar(&o.cert, "tls-cert", "", "certificate for the NATS server, `FILE`")
	flags.StringVar(&o.key, "tls-key", "", "its key, `FILE`")
	flags.StringVar(&o.ca, "tls-ca", "", "CA of the NATS server, `FILE`")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:4222", "where server listens, `ADDR`")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "no notices")
	wantHelp := flags.BoolP("help", "h", false, "show this help")
	usage := func(format string, a ...any) error {
		return args.Errorf(args.CodeUsage, format, a...).WithHint("fbus mesh --help")
	}
	if err := flags.Parse(words); err != nil {
		return usage("%v", err)
	}
	if *wantHelp {
		_, err := fmt.Fprintf(stdout, help, flags.FlagUsages())
		return err
	}
	for _, glob := range append(o.cfg.Share, o.cfg.Accept...) {
		if err := trust.CheckGlob(glob); err != nil {
			return usage("%v", err)
		}
	}
	o.cfg.Note = func(format string, a ...any) {
		if !o.quiet {
			fmt.Fprintln(stderr, "fbus:", args.OneLine(fmt.Sprintf(format, a...)))
		}
	}
	switch urls := flags.Args(); {
	case len(urls) == 1 && urls[0] == "demo":
		return demo(ctx, stdout)
	case len(urls) == 1 && urls[0] == "server":
		return serve(ctx, o.listen, o.cfg.Note)
	case len(urls) == 0:
		return usage("URL of a NATS server expected")
	default:
		return o.mesh(ctx, urls)
	}
}

// mesh joins the mesh.
func (o *options) mesh(ctx context.Context, urls []string) error {
	for _, u := range urls {
		if !strings.Contains(u, "://") {
			return args.Errorf(args.CodeUsage, "%q is not the URL of a NATS server", u).WithHint("fbus mesh nats://%s", u)
		}
	}
	if err := o.place(); err != nil {
		return err
	}
	nc, err := o.connect(strings.Join(urls, ","))
	if err != nil {
		return err
	}
	defer nc.Close()
	return run(ctx, &o.cfg, nc)
}

// place finds the own node, and the ticket for the others.
func (o *options) place() (err error) {
	if text := os.Getenv("FBUS_TICKET"); text != "" {
		t, err := trust.ReadTicket(text, "FBUS_TICKET")
		if err != nil {
			return err
		}
		o.cfg.Identity = find.ForTicket(t)
		os.Unsetenv("FBUS_TICKET") // the own node is near
	}
	o.cfg.Place, err = find.Node(o.node)
	return err
}

// connect connects to NATS, now or later, and again for as long as the mesh runs.
func (o *options) connect(urls string) (*nats.Conn, error) {
	o.cfg.online = make(chan struct{}, 1)
	online := func(nc *nats.Conn) {
		o.cfg.Note("NATS: connected to %s", nc.ConnectedUrlRedacted())
		select {
		case o.cfg.online <- struct{}{}:
		default:
		}
	}
	opts := []nats.Option{
		nats.ConnectHandler(online), nats.ReconnectHandler(online),
		nats.Name("fbus mesh"), nats.NoEcho(), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1),
		nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(500 * time.Millisecond), nats.ReconnectJitter(500*time.Millisecond, 500*time.Millisecond),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				o.cfg.Note("NATS: %v: calls run on this node alone until it is back", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { o.cfg.Note("NATS: %v", err) }),
	}
	if o.creds != "" {
		opts = append(opts, nats.UserCredentials(o.creds))
	}
	if o.nkey != "" {
		opt, err := nats.NkeyOptionFromSeed(o.nkey)
		if err != nil {
			return nil, args.Errorf(args.CodeUsage, "--nkey %s: %v", o.nkey, err)
		}
		opts = append(opts, opt)
	}
	if (o.cert == "") != (o.key == "") {
		return nil, args.Errorf(args.CodeUsage, "--tls-cert and --tls-key go together")
	}
	if o.cert != "" {
		opts = append(opts, nats.ClientCert(o.cert, o.key))
	}
	if o.ca != "" {
		opts = append(opts, nats.RootCAs(o.ca))
	}
	nc, err := nats.Connect(urls, opts...)
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "NATS: %v", err)
	}
	return nc, nil
}
