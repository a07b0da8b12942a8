package commands

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/paths"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// inviteOptions are the flags of fbus invite.
type inviteOptions struct {
	look   lookOptions
	ticket bus.Invitation // without its TTL, which follows
	ttl    durationValue
	uses   countValue
	output string

	hasName bool
}

func inviteCommand() *cli.Command {
	o := &inviteOptions{}
	return &cli.Command{
		Usage:     "make a ticket that lets another machine in",
		UsageText: "invite [--token|--for-node] --call GLOB|--offer GLOB|--monitor|--relay|--admin … [flags]",
		Description: `A ticket is a file, or its text, and as secret as a key. Its holder gets exactly the
rights in it. By default it is an invitation: "fbus join" exchanges it, once, for an
identity with a new key. With --uses N, that many machines may join with it. Each gets an
identity of its own, NAME-1, NAME-2, …, and revoking NAME revokes them all. A --reusable
ticket is used as it is, by any number of users: in FBUS_TICKET, or with any TLS library.
--ttl limits the ticket. An identity renews itself until it is revoked, or with --ephemeral
until it was disconnected for an hour; a reusable ticket gives access until --ttl is over.

  fbus invite --offer 'resize*' --name gpu-box --ttl 1h -o gpu.ticket
  fbus invite --offer 'resize*' | ssh gpu-box fbus join -
  fbus invite --offer 'resize*' --name farm --uses 20 --ephemeral -o farm.ticket
  fbus invite --call 'resize*' --call wc --name ci --ttl 30d --reusable -o ci.ticket
  fbus invite --for-node --name b -o b.ticket
  token=$(fbus invite --token --call 'resize*' --name web --ttl 90d)

A --token is for HTTP and the like: a line of text that its holder sends to a gateway, which
asks the node what it allows. It is printed this once; the node keeps its SHA-256. Its holder
cannot connect with it, and it allows --call and --monitor alone.

With --for-node the machine that joins can run fbus serve as a second node of the network: it
verifies tickets itself, and passes invite, revoke and renewals on to this one. With --admin
too, administrators of that node may invite and revoke.

A GLOB matches names of functions: * any characters, ? one character, [a-z] one of a
class. No glob matches the node's own functions (fbus.…): --admin allows those, and --monitor
the ones that show what others do.`,
		Flags: []cli.Flag{
			&cli.GenericFlag{Name: "call", Usage: "may call functions whose name matches `GLOB`; repeatable", Value: &listValue{list: &o.ticket.Call}},
			&cli.GenericFlag{Name: "offer", Usage: "may offer functions whose name matches `GLOB`; repeatable", Value: &listValue{list: &o.ticket.Offer}},
			&cli.BoolFlag{Name: "admin", Usage: "may administer the node: invite, revoke, see and cancel all calls", Destination: &o.ticket.Admin, DisableDefaultText: true},
			&cli.BoolFlag{Name: "monitor", Usage: "may see functions, calls, jobs, log and metrics of everybody, but nothing of what is sent", Destination: &o.ticket.Monitor, DisableDefaultText: true},
			&cli.BoolFlag{Name: "relay", Usage: "may make calls for others: programs see ticket:NAME/CALLER, and the holder answers for CALLER", Destination: &o.ticket.Relay, DisableDefaultText: true},
			&cli.GenericFlag{Name: "ttl", Usage: "valid for `D`; default 1d, or 30d if reusable or a token", Value: &o.ttl},
			&cli.BoolFlag{Name: "for-node", Usage: "for a second node of the network, with its rights; --admin can be added", Destination: &o.ticket.Node, DisableDefaultText: true},
			&cli.StringFlag{Name: "name", Usage: "call it `NAME`: programs see ticket:NAME as FBUS_CALLER", Destination: &o.ticket.Name},
			&cli.GenericFlag{Name: "address", Usage: "the node's address, `HOST[:PORT]`; repeatable; default the addresses of its machine", Value: &listValue{list: &o.ticket.Addresses}},
			&cli.BoolFlag{Name: "token", Usage: "a bearer token for a gateway, and no ticket: it is printed once, alone", Destination: &o.ticket.Token, DisableDefaultText: true},
			&cli.BoolFlag{Name: "reusable", Usage: "for any number of users, without fbus join", Destination: &o.ticket.Reusable, DisableDefaultText: true},
			&cli.GenericFlag{Name: "uses", Usage: "`N` machines may join with it, each with an identity of its own; default 1", Value: &o.uses},
			&cli.BoolFlag{Name: "ephemeral", Usage: "a machine that joins with it goes when it was disconnected for an hour", Destination: &o.ticket.Ephemeral, DisableDefaultText: true},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write it to `FILE`, mode 0600, which must not exist; default stdout", Destination: &o.output},
			nodeFlag(&o.look.node),
			quietFlag(&o.look.quiet),
			verboseFlag(&o.look.verbose, "report which node was used"),
		},
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				if trust.CheckGlob(ctx.Args().First()) == nil {
					return explain(err).WithHint("%s", join("fbus", "invite", "--call", ctx.Args().First()))
				}
				return err
			}
			o.hasName = ctx.IsSet("name")
			return invite(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func (o *inviteOptions) check() error {
	rights := trust.Rights{Call: o.ticket.Call, Offer: o.ticket.Offer, Admin: o.ticket.Admin, Monitor: o.ticket.Monitor, Relay: o.ticket.Relay}
	if o.ticket.Node {
		if err := o.checkNode(); err != nil {
			return err
		}
	} else if rights.Empty() && o.ticket.Token {
		return usage("a token needs a right: --call GLOB or --monitor").WithHint("fbus invite --token --call 'resize*' --name web")
	} else if rights.Empty() {
		return usage("a ticket needs a right: --call GLOB, --offer GLOB, --monitor, --relay or --admin").WithHint("fbus invite --call 'resize*' -o ci.ticket")
	}
	if err := rights.Check(); err != nil {
		return asUsage(err)
	}
	if o.hasName {
		if err := trust.CheckName(o.ticket.Name); err != nil {
			return asUsage(err)
		}
	}
	if o.ttl.set && o.ttl.d < trust.MinTTL {
		return usage("--ttl must be at least %s, not %s", formatDuration(trust.MinTTL), formatDuration(o.ttl.d))
	}
	if o.ticket.Token {
		const rights, use = "it allows --call and --monitor alone", "it is sent to a gateway as it is, and nobody joins with it"
		for _, f := range []struct {
			name string
			set  bool
			why  string
		}{
			{"offer", len(o.ticket.Offer) > 0, rights}, {"admin", o.ticket.Admin, rights}, {"relay", o.ticket.Relay, rights},
			{"reusable", o.ticket.Reusable, use}, {"uses", o.uses.set, use}, {"ephemeral", o.ticket.Ephemeral, use}, {"address", len(o.ticket.Addresses) > 0, use},
		} {
			if f.set {
				return usage("--token and --%s exclude each other: a token is for a gateway's clients; %s", f.name, f.why).WithHint("without --token this is a ticket")
			}
		}
	}
	switch {
	case o.uses.set && o.uses.n < 1:
		return usage("--uses must be at least 1")
	case o.uses.set && o.ticket.Reusable:
		return usage("--uses and --reusable exclude each other: a reusable ticket is for any number of users")
	case o.ticket.Ephemeral && o.ticket.Reusable:
		return usage("--ephemeral and --reusable exclude each other: nobody joins with a reusable ticket")
	}
	for _, a := range o.ticket.Addresses {
		if err := wire.CheckAddress(a); err != nil {
			return usage("--address: %v", err).WithHint(find.AddrHint)
		}
	}
	return nil
}

// checkNode checks the options of a ticket for a second node.
func (o *inviteOptions) checkNode() error {
	t := &o.ticket
	switch {
	case len(t.Call)+len(t.Offer) > 0 || t.Monitor || t.Relay:
		return usage("a ticket for a node has its rights: %s; only --admin can be added", trust.NodeRights(false))
	case t.Reusable || t.Ephemeral || t.Token || o.uses.set:
		return usage("a ticket for a node is for one machine that stays: it cannot be reusable, ephemeral, for several uses or a token")
	}
	return nil
}

// asUsage turns an error about a ticket's rules into a usage error.
func asUsage(err error) error {
	e := explain(err)
	e.Code = args.CodeUsage
	return e
}

func invite(o *inviteOptions, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	q := o.ticket
	q.TTL, q.Uses = o.ttl.d.Seconds(), o.uses.n
	for i, a := range q.Addresses {
		q.Addresses[i] = wire.WithPort(a)
	}
	document, err := json.Marshal(q)
	if err != nil {
		return err
	}
	out, err := openSecret(o.output, stdout)
	if err != nil {
		return err
	}
	answer, err := o.look.call("fbus.invite", args.JSON(document))
	if err != nil {
		out.remove()
		return err
	}
	made := readInvited(answer, q.Token)
	if made.text == nil {
		out.remove()
		return fail(args.CodeInternal, "the node's answer is not a token: %v", made.err)
	}
	if err := out.write(made.text, stderr); err != nil {
		out.remove()
		return o.takeBack(&made, err)
	}
	if !o.look.quiet {
		for line := range strings.SplitSeq(made.describe(o.output), "\n") {
			say(stderr, line)
		}
	}
	return nil
}

// invited is a ticket or a token that was issued.
type invited struct {
	text         []byte // for its holder
	kind         string
	name, serial string
	token        *bus.TokenInfo // nil: a ticket
	err          error          // of reading the answer
}

// readInvited reads the answer of fbus.invite. A ticket is passed on even if it cannot be read.
func readInvited(answer []byte, token bool) invited {
	if !token {
		t, err := trust.ParseTicket(answer)
		if err != nil {
			return invited{text: answer, kind: "ticket", err: err}
		}
		return invited{text: answer, kind: "ticket", name: t.Name, serial: t.Serial}
	}
	made := invited{kind: "token", err: errors.New("it has no token")}
	if list, err := decodeLines[bus.TokenInfo](answer); err != nil {
		made.err = err
	} else if len(list) == 1 && list[0].Token != "" {
		t := list[0]
		made = invited{text: []byte(t.Token + "\n"), kind: "token", name: t.Name, serial: t.Serial, token: &t}
	}
	return made
}

// takeBack revokes a ticket or token that could not be written. Nobody has it, and it would stay
// valid until its expiry.
func (o *inviteOptions) takeBack(made *invited, unwritten error) error {
	f := *explain(unwritten)
	if made.err != nil {
		f.Message += "; the node's answer cannot be read: " + made.err.Error()
		f.Hint = "fbus tickets shows whether there is a ticket that nobody holds"
		return &f
	}
	if _, err := o.look.ask("fbus.revoke", made.serial); err != nil {
		f.Message += fmt.Sprintf("; %s %s was issued but not written, and could not be revoked: %s", made.kind, made.name, explain(err).Message)
		f.Hint = join("fbus", "revoke", made.serial)
		if o.look.node != "" {
			f.Hint = join("fbus", "revoke", "--node", o.look.node, made.serial)
		}
		return &f
	}
	f.Message += fmt.Sprintf("; %s %s was revoked", made.kind, made.name)
	return &f
}

// describe describes the rights, and the next step. file is what it was written to.
func (made *invited) describe(file string) string {
	switch t := made.token; {
	case made.err != nil:
		return "the node's answer cannot be read: " + made.err.Error()
	case t != nil:
		return fmt.Sprintf("token %s: %s; until %s; a gateway takes it: Authorization: Bearer TOKEN\nit is not shown again; fbus revoke %s ends it",
			t.Name, t.Rights, t.Expires.Local().Format("2006-01-02 15:04 MST"), t.Name)
	}
	return describeTicket(made.text, file)
}

// describeTicket describes a ticket's rights and its next step.
func describeTicket(text []byte, file string) string {
	t, err := trust.ParseTicket(text)
	if err != nil {
		return "the node's answer cannot be read: " + err.Error()
	}
	// An invitation's rights and uses are only in its comment.
	rights, use, then := t.Rights.String(), "", ""
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "rights":
			rights = value
		case "use":
			use, _, _ = strings.Cut(value, ":")
		case "then":
			then = value
		}
	}
	end := t.Expires.Local().Format("2006-01-02 15:04 MST")
	if t.Joining {
		return fmt.Sprintf("ticket %s: %s; until %s; use it %s: fbus join %s\n%s: fbus revoke %s", t.Name, rights, end, use, find.TicketWord(file), then, t.Name)
	}
	return fmt.Sprintf("ticket %s: %s; until %s; use it as it is: FBUS_TICKET=%s", t.Name, rights, end, find.TicketWord(file))
}

// secretFile is the private output file of a ticket.
type secretFile struct {
	f *os.File // nil: w
	w io.Writer
}

// openSecret creates a file of mode 0600, never through a link and never over an
// existing file. Without a path it uses stdout, unless that is another user's file: its
// owner can read it whatever its mode.
func openSecret(path string, stdout io.Writer) (*secretFile, error) {
	if path != "" && path != "-" {
		f, err := paths.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return nil, usage("output: %s exists, and a ticket does not replace a file", path).WithHint("remove it, or use another name")
		}
		if err != nil {
			return nil, usage("output: %v", err)
		}
		return &secretFile{f: f, w: f}, nil
	}
	if st, err := os.Stdout.Stat(); err == nil && st.Mode().IsRegular() {
		if owner := int(st.Sys().(*syscall.Stat_t).Uid); owner != os.Geteuid() {
			return nil, fail(args.CodeDenied, "output: it is a file of %s, who could read the ticket", userName(owner)).WithHint("-o FILE makes a file of your own")
		}
	}
	if paths.IsSubstitute(os.Stdout) { // a ticket would be lost in it
		return nil, fail(args.CodeInternal, "output: stdout is closed").WithHint("fbus invite -o FILE")
	}
	return &secretFile{w: stdout}, nil
}

func (s *secretFile) write(text []byte, stderr io.Writer) error {
	if s.f == nil {
		// A closed reader must return an error and not end the process, because the ticket must
		// then be revoked.
		signal.Ignore(syscall.SIGPIPE)
		defer signal.Reset(syscall.SIGPIPE)
		warnReadable(stderr)
	}
	_, err := s.w.Write(text)
	if s.f != nil {
		err = errors.Join(err, s.f.Sync(), s.f.Close())
	}
	if err != nil {
		return fail(args.CodeInternal, "output: %v", err)
	}
	return nil
}

// warnReadable warns if others can read the file on stdout. Its mode stays: it may be a log, or
// meant for a group.
func warnReadable(stderr io.Writer) {
	st, err := os.Stdout.Stat()
	if err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o044 != 0 {
		say(stderr, fmt.Sprintf("warning: others can read the output file, mode %04o: chmod 600 it; -o FILE creates it with that mode", st.Mode().Perm()))
	}
}

// remove removes a file that received no ticket.
func (s *secretFile) remove() {
	if s.f != nil {
		s.f.Close()
		os.Remove(s.f.Name())
	}
}
