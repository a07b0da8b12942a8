// Command fbus-mesh connects a node to the others of its network. It is run as fbus mesh.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"
	"fbus/bus/wire"
	"fbus/cmd/companion"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"
)

func main() { companion.Main(command) }

const help = `fbus mesh: connect this node to the others of its network, over NATS

Usage: fbus mesh [flags] URL…
       fbus mesh [flags] --context NAME
       fbus mesh server --listen ADDR
       fbus mesh config --listen ADDR
       fbus mesh demo

URL is a NATS server, as nats://hub:4222. A context of the nats command has a URL and credentials. Run
fbus mesh beside each node. A call for which its node has no free slot then runs on another node that
has one, and functions that are only on other nodes can be called as if they were here. NATS carries
who is there and who has a free slot; calls go from node to node, over TLS. Clients of NATS can call
the functions that --nats-service names: nats req resize.

server  is a NATS server, for a mesh without one of its own. Beside a node that listens on TCP, or
        that has joined with a ticket for a node, it admits over TLS the meshes of that network, and
        nobody else. Without a node it has no authentication, and listens on this machine only.
config  prints the configuration of a nats-server that does the same as server, and writes its
        certificate and key.
demo    starts a NATS server and three nodes here, calls across them, and removes it all.

To other nodes, and to fbus mesh server, a mesh shows the certificate with which its node has joined
the network (fbus invite --for-node). The network's first node gives its own mesh one. FBUS_TICKET
names another ticket, with the right relay.

  hub$ fbus serve &  fbus mesh server --listen 0.0.0.0:4222 &  fbus mesh tls://hub:4222
  b$   fbus serve &  fbus mesh tls://hub:4222

Flags:
%s`

// options are the flags.
type options struct {
	cfg                        config
	node, listen               string
	creds, nkey, cert, key, ca string
	contextFile                string // of a NATS context; empty: none
	quiet                      bool
}

func command(ctx context.Context, words []string, stdout, stderr io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("mesh", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&o.node, "node", "", "the own node's `ADDR`: the path of its socket")
	file := flags.StringP("config", "c", "", "read [mesh] of `FILE` (TOML): share, accept, name, advertise, nats-service; it may be the node's file")
	flags.StringVar(&o.cfg.Name, "name", "", "what this node is called in the mesh, `NAME`; default its own name")
	flags.StringArrayVar(&o.cfg.Share, "share", []string{"*"}, "functions of this node that others may use, `GLOB`; may be repeated")
	flags.StringArrayVar(&o.cfg.Accept, "accept", []string{"*"}, "functions of other nodes that are offered here, `GLOB`; may be repeated")
	flags.StringArrayVar(&o.cfg.Advertise, "advertise", nil, "where other nodes reach this one, `HOST:PORT`; may be repeated; default what the node says")
	flags.StringArrayVar(&o.cfg.NATSService, "nats-service", nil, "functions of this node that NATS clients may call, `GLOB`; may be repeated; of server and config: whose subjects are open")
	natsContext := flags.String("context", "", "connect as context `NAME` of the nats command says; default without URL: the selected one")
	flags.StringVar(&o.creds, "creds", "", "NATS credentials, `FILE`")
	flags.StringVar(&o.nkey, "nkey", "", "NATS nkey seed, `FILE`")
	flags.StringVar(&o.cert, "tls-cert", "", "certificate for the NATS server, `FILE`")
	flags.StringVar(&o.key, "tls-key", "", "its key, `FILE`")
	flags.StringVar(&o.ca, "tls-ca", "", "CA of the NATS server, `FILE`")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:4222", "where a NATS server listens, `ADDR`")
	flags.DurationVar(&o.cfg.Drain, "drain", time.Minute, "how long calls on other nodes may take to finish when the mesh is ended, `D`")
	flags.DurationVar(&o.cfg.KeepAlive, "keepalive", wire.DefaultKeepAlive, "treat another node as lost when it is silent for `D`, at least 3s")
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
	if *file != "" {
		if err := o.cfg.read(*file, flags.Changed); err != nil {
			return err
		}
	}
	for _, glob := range slices.Concat(o.cfg.Share, o.cfg.Accept, o.cfg.NATSService) {
		if err := trust.CheckGlob(glob); err != nil {
			return usage("%v", err)
		}
	}
	if o.cfg.Name != "" && !validName.MatchString(o.cfg.Name) {
		return usage("--name %s: it must be 1 to 64 of A-Z a-z 0-9 _ . -, and not begin with . or -", args.Shown(o.cfg.Name))
	}
	if o.cfg.KeepAlive < wire.MinKeepAlive {
		return usage("--keepalive must be at least %v", wire.MinKeepAlive)
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
		return o.serve(ctx)
	case len(urls) == 1 && urls[0] == "config":
		return o.printConfig(ctx, stdout)
	default:
		if flags.Changed("context") || len(urls) == 0 {
			if flags.Changed("context") && *natsContext == "" {
				return usage("--context must not be empty")
			}
			var err error
			if o.contextFile, err = contextFile(*natsContext); err != nil {
				return err
			}
		}
		switch {
		case o.contextFile == "" && len(urls) == 0:
			return usage("URL of a NATS server expected")
		case o.contextFile != "" && o.creds+o.nkey+o.cert+o.key+o.ca != "":
			return usage("a NATS context has credentials: --creds, --nkey and --tls-… are for a URL alone")
		case o.contextFile != "":
			o.cfg.Note("NATS: context %s", o.contextFile)
		}
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
	cr, err := o.find(ctx)
	if err != nil {
		return err
	}
	if o.cfg.shown = cr; cr == nil {
		o.cfg.Note("%v: only those of this user on this machine are reached", errNone)
	}
	nc, err := o.connect(strings.Join(urls, ","))
	if err != nil {
		return err
	}
	defer nc.Close()
	go cr.renewEvery(ctx, time.Hour, o.cfg.Note) // ends with ctx
	return run(ctx, &o.cfg, nc)
}

// find waits for the own node, and returns the credentials, nil if there are none.
func (o *options) find(ctx context.Context) (*credentials, error) {
	if err := o.place(); err != nil {
		return nil, err
	}
	for said := ""; ; {
		node, info, err := o.cfg.dial(ctx)
		if err == nil {
			defer node.Close()
			cr, err := o.cfg.credentials(ctx, node, info)
			if err == errNone {
				return nil, nil
			}
			return cr, err
		}
		if e := args.AsError(err, args.CodeNoNode); e.Code != args.CodeNoNode && e.Code != args.CodeNodeLost {
			return nil, err
		}
		if text := err.Error(); text != said {
			o.cfg.Note("%s: looking for the node", text)
			said = text
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// place finds the own node, and the ticket for the others.
func (o *options) place() (err error) {
	if text := os.Getenv("FBUS_TICKET"); text != "" {
		t, err := trust.ReadTicket(text, "FBUS_TICKET")
		if err != nil {
			return err
		}
		o.cfg.Ticket = t
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
	offline := func(err error) {
		why := args.Plain(err)
		o.cfg.offline.Store(&why)
	}
	opts := []nats.Option{
		nats.ConnectHandler(online), nats.ReconnectHandler(online),
		nats.Name("fbus mesh"), nats.NoEcho(), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1),
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(500 * time.Millisecond), nats.ReconnectJitter(500*time.Millisecond, 500*time.Millisecond),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				o.cfg.Note("NATS: %v: calls run on this node alone until it is back", err)
				offline(err)
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { offline(err) }),
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
	if cr := o.cfg.shown; cr != nil {
		opts = append(opts, func(n *nats.Options) error { // if the URL or the server asks for TLS
			if n.TLSCertCB != nil || n.RootCAsCB != nil || n.UserJWT != nil || n.Nkey != "" || n.User != "" || n.Token != "" {
				return nil // the server is not one of the network
			}
			id, err := cr.identity()
			if err == nil {
				n.TLSConfig = id.Config("")
				n.TLSConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // it may be renewed
					id, err := cr.identity()
					if err != nil {
						return nil, err
					}
					return id.Config("").GetClientCertificate(nil)
				}
			}
			return err
		})
	}
	if o.contextFile != "" {
		return connectContext(o.contextFile, urls, opts)
	}
	nc, err := nats.Connect(urls, opts...)
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "NATS: %v", err)
	}
	return nc, nil
}
