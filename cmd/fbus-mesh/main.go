// Command fbus-mesh connects a node to the others of its network. It is run as fbus mesh.
package main

import (
	"cmp"
	"context"
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
	trusted                    []int  // users whose files are used, too
	quiet                      bool
}

func command(ctx context.Context, words []string, stdout, stderr io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("mesh", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&o.node, "node", "", "the own node's `ADDR`: the path of its socket")
	file := flags.StringP("config", "c", "", "read [mesh] of `FILE` (TOML): share, accept, name, advertise, nats-service; it may be the node's file")
	owners := flags.StringArray("trust-owner", nil, "use a FILE of the user `NAME`, or that NAME lets others write; may be repeated")
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
		for _, name := range *owners {
			uid, err := find.UserID(name)
			if err != nil {
				return usage("--trust-owner: %v", err)
			}
			o.trusted = append(o.trusted, uid)
		}
		if err := find.CheckOwner(*file, o.trusted); err != nil {
			e := args.AsError(err, args.CodeUsage)
			return args.Errorf(e.Code, "%s", e.Message).WithHint("to use it all the same: fbus mesh -c %s --trust-owner %s", args.Quote(*file), args.Quote(e.Hint))
		}
		if err := o.cfg.read(*file, flags.Changed); err != nil {
			return err
		}
	}
	from := func(key string) string { return cmp.Or(o.cfg.filed[key], "--"+key) }
	for key, globs := range map[string][]string{"share": o.cfg.Share, "accept": o.cfg.Accept, "nats-service": o.cfg.NATSService} {
		for _, glob := range globs {
			if err := trust.CheckGlob(glob); err != nil {
				return usage("%s: %v", from(key), err)
			}
		}
	}
	if o.cfg.Name != "" && !validName.MatchString(o.cfg.Name) {
		return usage("%s %s: it must be 1 to 64 of A-Z a-z 0-9 _ . -, and not begin with . or -", from("name"), args.Shown(o.cfg.Name))
	}
	for _, addr := range o.cfg.Advertise {
		if err := checkAddress(addr); err != nil {
			return usage("%s %s: %v", from("advertise"), args.Shown(addr), err)
		}
	}
	if o.cfg.Drain < 0 {
		return usage("--drain must not be negative")
	}
	if o.cfg.KeepAlive < wire.MinKeepAlive {
		return usage("--keepalive must be at least %v", wire.MinKeepAlive)
	}
	o.cfg.Note = func(format string, a ...any) {
		if !o.quiet {
			fmt.Fprintln(stderr, "fbus:", args.OneLine(fmt.Sprintf(format, a...)))
		}
	}
	urls := flags.Args()
	verb := ""
	if len(urls) > 0 && slices.Contains([]string{"demo", "server", "config"}, urls[0]) {
		if verb = urls[0]; len(urls) > 1 {
			return usage("fbus mesh %s takes no operand, and got %s", verb, args.Shown(urls[1]))
		}
	}
	if verb == "server" || verb == "config" {
		if _, _, err := hostPort(o.listen); err != nil {
			return err
		}
	}
	switch verb {
	case "demo":
		return demo(ctx, stdout)
	case "server":
		return o.serve(ctx)
	case "config":
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
	if err := checkURLs(urls); err != nil {
		return err
	}
	if _, err := o.credentials(); err != nil { // before the node is waited for
		return err
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
