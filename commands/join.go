package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// joinOptions are the flags of fbus join.
type joinOptions struct {
	ticket string
	node   string
	quiet  bool

	own string // addresses in the ticket, if node is another one
}

func joinCommand() *cli.Command {
	o := &joinOptions{}
	return &cli.Command{
		Usage:     "join a network with a ticket",
		UsageText: "join [flags] TICKET",
		Description: `TICKET is a file, or - for stdin, with the ticket's text, or one line with its base64.
An invitation is exchanged for an identity of this user, whose key is made here and never
leaves the machine. A reusable ticket is stored as it is. After that every command finds
the network by itself, unless a node runs on this machine. If the connection is lost,
join again with the same ticket.

  fbus join gpu.ticket && fbus offer resize -- ./resize.sh

With a ticket for a node, this user's fbus serve is then another node of that network.

There is one identity for each network: joining under another name moves the old one to
NETWORK.NAME.pem. That of a node stays, and the new one is put there. They are in $FBUS_HOME/joined, or in joined in fbus's configuration
directory.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "node", Usage: "the node's address, `HOST[:PORT]`, instead of the ticket's", Destination: &o.node},
			quietFlag(&o.quiet),
		},
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() != 1 {
				return usage("fbus join takes one operand: a ticket's file, or - for stdin").WithHint("fbus invite makes tickets")
			}
			o.ticket = ctx.Args().First()
			return joinNetwork(o, ctx.App.ErrWriter)
		},
	}
}

// joinNetwork stores a ticket's identity for this user.
func joinNetwork(o *joinOptions, stderr io.Writer) error {
	if o.ticket == "-" && !o.quiet {
		sayTyped(os.Stdin, "the ticket", "it", stderr)
	}
	t, err := readTicket(o.ticket)
	if err != nil {
		return err
	}
	if o.node != "" {
		if err := wire.CheckAddress(o.node); err != nil {
			return usage("--node: %v", err).WithHint(find.AddrHint)
		}
		o.own, t.Addresses = strings.Join(t.Addresses, " or "), []string{wire.WithPort(o.node)}
	}
	home, err := find.HomeDir()
	if err != nil {
		return fail(args.CodeInternal, "%v", err).WithHint("set FBUS_HOME to a writable directory")
	}
	if t.Node && founded(home, t.Network) {
		return fail(args.CodeOtherNetwork, "this user has the CA of a network %s: its fbus serve is the first node of that one", t.Network).
			WithHint("join as another user, or with another FBUS_HOME; or, if nobody uses that network, remove %s first", filepath.Join(home, "networks", t.Network))
	}
	dir := filepath.Join(home, "joined")
	j, err := trust.OpenJoined(dir)
	if err != nil {
		return err
	}
	defer j.Close()
	before, _ := j.Load(t.Network) // nil if there is none
	// A signal ends the process. The next try repeats unfinished work.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if t.Joining {
		t, err = o.exchange(ctx, j, t)
	} else {
		if err = o.admitted(ctx, t); err == nil {
			err = j.Save(t)
		}
	}
	if err != nil {
		return err
	}
	aside := before != nil && before.Server != nil && t.Server == nil
	if !o.quiet {
		file := filepath.Join(dir, t.Network+".pem")
		if aside {
			file = j.Aside(t)
		}
		say(stderr, fmt.Sprintf("joined network %s as %s: %s; until %s", t.Network, t.Name, t.Rights, t.Expires.Local().Format("2006-01-02")))
		say(stderr, "stored in "+file)
	}
	if aside && !o.quiet {
		say(stderr, fmt.Sprintf("this user stays a node of network %s, %s, whose identity commands use by default", t.Network, before.Name))
		say(stderr, "hint: FBUS_TICKET="+args.Quote(j.Aside(t))+" before a command uses the new one; to end the node, remove "+args.Quote(filepath.Join(dir, t.Network+".pem"))+" and join again")
	}
	if t.Server != nil {
		if err := o.firstList(ctx, dir, t); err != nil {
			say(stderr, "warning: the list of revoked tickets is not there yet: "+explain(err).Message+": fbus serve gets it")
		}
		if !o.quiet {
			serve := "fbus serve"
			if several, _ := nodeNetworks(); len(several) > 1 {
				serve += " --network " + t.Network
			}
			say(stderr, serve+" is now a node of that network; its first node is at "+strings.Join(t.Addresses, ", "))
		}
	}
	if before != nil && before.Name != t.Name && !aside && !o.quiet {
		say(stderr, fmt.Sprintf("the earlier identity %s was moved aside and is no longer used", before.Name))
		say(stderr, "hint: FBUS_TICKET="+args.Quote(j.Aside(before))+" before a command uses it")
	}
	return nil
}

// firstList gets the list of revoked tickets, without which a second node admits nobody. The
// node may then be started while the first one is away.
func (o *joinOptions) firstList(ctx context.Context, dir string, t *trust.Ticket) error {
	s, err := trust.OpenSecond(dir, t.Network, 0, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := o.dial(ctx, t)
	if err != nil {
		return err
	}
	defer c.Close()
	text, err := output(ctx, c, "fbus.trust", args.Args{})
	if err != nil {
		return err
	}
	return s.Update(text, trust.FromFirst)
}

func readTicket(name string) (*trust.Ticket, error) {
	if name != "-" {
		return trust.ReadTicket(name, find.ShownFile(name, "TICKET"))
	}
	text, err := io.ReadAll(io.LimitReader(inputOf(os.Stdin), 1<<20))
	if err != nil {
		return nil, fail(args.CodeInternal, "stdin: %v", err)
	}
	return trust.ParseTicket(text)
}

// exchange turns an invitation into an identity. The key is on the disk before the
// request, so that a lost reply costs nothing.
func (o *joinOptions) exchange(ctx context.Context, j *trust.Joined, t *trust.Ticket) (*trust.Ticket, error) {
	request, err := j.Begin(t)
	if err != nil {
		return nil, err
	}
	cert, err := o.ask(ctx, t, request)
	if err == nil {
		return j.Finish(t, cert)
	}
	var e *args.Error
	if !errors.As(err, &e) {
		return nil, err
	}
	switch e.Code {
	case args.CodeUsed, args.CodeExpired, args.CodeRevoked: // for good
		j.Abandon(t)
	}
	return nil, err
}

// ask has the node sign a request.
func (o *joinOptions) ask(ctx context.Context, t *trust.Ticket, request []byte) ([]byte, error) {
	c, err := o.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	cert, err := output(ctx, c, "fbus.join", args.List(string(request)))
	if errors.Is(err, bus.ErrNodeLost) {
		f := *explain(err)
		err = o.troubled(f.WithHint("join again with the same ticket: fbus join %s", find.TicketWord(o.ticket)))
	}
	return cert, err
}

// admitted checks that the network admits a ticket that needs no exchange.
func (o *joinOptions) admitted(ctx context.Context, t *trust.Ticket) error {
	c, err := o.dial(ctx, t)
	if err != nil {
		return err
	}
	return c.Close()
}

// dial connects with a ticket.
func (o *joinOptions) dial(ctx context.Context, t *trust.Ticket) (*bus.Client, error) {
	c, err := bus.Dial(ctx, bus.Addr{}, &bus.Options{Name: hostname(), Identity: find.ForTicket(t)})
	if err != nil {
		err = o.troubled(err)
	}
	return c, err
}

// troubled adds to an error the fbus doctor command that examines it.
func (o *joinOptions) troubled(err error) error {
	command := []string{"fbus", "doctor"}
	if f := *explain(err); f.Code == args.CodeNoNode && o.own != "" && strings.Contains(f.Message, "exchanges no invitations") { // a second node answers
		err = f.WithHint("without --node the ticket's own address is used: %s", o.own)
	}
	if o.node != "" {
		command = append(command, "--node", o.node)
	}
	return &trouble{remote: true, err: err, doctor: "FBUS_TICKET=" + find.TicketWord(o.ticket) + " " + args.Quote(command...)}
}
