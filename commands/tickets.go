package commands

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"

	"github.com/urfave/cli/v2"
)

func ticketsCommand() *cli.Command {
	o := &lookOptions{}
	all := false
	return &cli.Command{
		Usage:     "list the tickets and tokens that were issued",
		UsageText: "tickets [flags]",
		Description: `A ticket's holder may connect until it expires or is revoked. An invitation that was
used is listed as the identity it was exchanged for; one for several machines has the
number of its uses, and its identities are listed too. A bearer token is listed
like a ticket.

  fbus tickets --json | jq -r 'select(.connected > 0) | .name'

JSON fields: serial, name, kind (token; none: a ticket), rights (call:GLOB, offer:GLOB, admin,
monitor, relay), state (invited, active, revoked, burnt), reusable, uses and used (of an invitation for several machines), via (the
serial of that invitation), ephemeral, node (of a second node), mesh (of the mesh beside the first node, which has a node's rights), issued, issued_by (the serial of the ticket that asked
for it, if one did), through (the serial of the second node at which it asked), expires, seen and from (last entry; an ephemeral identity is seen as
long as it is connected), key (SHA-256 of the public key, or of the token), first (of a renewed
identity: its first serial), into (the serial that replaced it), ended and by (when it was used or revoked, from where), connected (connections now).`,
		Flags: append(o.flags(), &cli.BoolFlag{Name: "all", Usage: "also those that were revoked or used, or have expired", Destination: &all, DisableDefaultText: true}),
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				return err
			}
			return tickets(o, all, ctx.App.Writer)
		},
	}
}

func tickets(o *lookOptions, all bool, stdout io.Writer) error {
	list, _, err := askFor[bus.TicketInfo](o, "fbus.tickets")
	if err != nil {
		return err
	}
	now := trust.Now()
	if !all {
		list = slices.DeleteFunc(list, func(t bus.TicketInfo) bool { return !t.Live(now) || t.Into != "" && t.Connected == 0 })
	}
	if o.json {
		for _, t := range list {
			printJSON(stdout, t) // a write error is reported at the end
		}
		return nil
	}
	if len(list) == 0 {
		return nil
	}
	table(stdout, "NAME\tRIGHTS\tSTATE\tISSUED\tEXPIRES\tSEEN\tFROM\tCONNECTED", func(row func(...any)) {
		for _, t := range list {
			row(t.Name, t.Rights, stateOf(&t.Record, now), localTime(t.Issued), localTime(t.Expires), localTime(t.Seen), orDash(t.From), t.Connected)
		}
	})
	return nil
}

// stateOf formats a ticket's state for people.
func stateOf(r *trust.Record, now time.Time) string {
	switch live := r.State == trust.Active || r.State == trust.Invited; {
	case live && now.After(r.Expires):
		return "expired"
	case live && r.Kind == trust.Token:
		return "token"
	case live && r.Reusable:
		return "reusable"
	}
	state := string(r.State)
	if r.Uses > 1 {
		state += fmt.Sprintf(", %d of %d used", r.Used, r.Uses)
	}
	if r.Ephemeral {
		state += ", ephemeral"
	}
	switch {
	case r.Mesh:
		state += ", mesh"
	case r.Node:
		state += ", node"
	}
	return state
}

func localTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}

func revokeCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Usage:     "revoke a ticket or a token",
		UsageText: "revoke [flags] NAME|SERIAL",
		Description: `Revoking ends tickets and tokens, immediately and permanently. Connections close and calls are cancelled: those
of the ticket, of the identity it was exchanged for, and of tickets that were issued with
it. A gateway that was given a token learns of its end at once. fbus tickets lists the names. Revoking a ticket again reports what was revoked then.

  fbus revoke ci

JSON fields: serials, issued (names of tickets that were issued with it), connections
(how many were closed), before (when they were revoked, if not now).`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() != 1 {
				return usage("fbus revoke takes one operand: the name or serial of a ticket or token").WithHint("fbus tickets lists them")
			}
			return revoke(o, ctx.Args().First(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func revoke(o *lookOptions, ticket string, stdout, stderr io.Writer) error {
	data, err := o.call("fbus.revoke", args.List(ticket))
	if err != nil {
		return err
	}
	if o.json {
		_, err := stdout.Write(data)
		return err
	}
	list, err := decodeLines[bus.RevokedInfo](data)
	if err != nil || len(list) != 1 {
		return fail(args.CodeInternal, "the node did not report what it revoked")
	}
	if !o.quiet {
		what := ticket
		if issued := list[0].Issued; len(issued) > 0 {
			what += ", and the tickets that were issued with it (" + strings.Join(issued, ", ") + ")"
		}
		if at := list[0].Before; !at.IsZero() {
			say(stderr, fmt.Sprintf("revoked already, at %s: %s", at.Format(time.RFC3339), what))
			return nil
		}
		say(stderr, fmt.Sprintf("revoked %s: %s closed", what, plural(list[0].Connections, "connection")))
	}
	return nil
}
