package commands

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"
)

// offerOptions are the flags of fbus offer.
type offerOptions struct {
	*function
	workerOptions
}

func offerCommand() *cli.Command {
	o := &offerOptions{newFunction(), newWorkerOptions()}
	return &cli.Command{
		Usage:     "offer a program as a function",
		UsageText: "offer NAME [flags] -- PROGRAM [ARG…]",
		Description: `Each call starts PROGRAM. Its arguments arrive on stdin, as JSON unless --encoding
chooses another form. With --args argv they follow ARG… on the command line, and
placeholders there are replaced: {} by all, {1} by the first, {name} by a field. Offering
a name again, here or elsewhere, adds slots. A program that reads text needs no arguments: with
--takes input, calls that have some are refused. TERM or INT drains; a second one ends at once.

A PROGRAM that is started for a call finds FBUS_FUNCTION, FBUS_CALL_ID, FBUS_CALLER,
FBUS_DEADLINE and FBUS_NODE in its environment, and TRACEPARENT and TRACESTATE if its
caller has them. For a posted job there are FBUS_JOB_ID and FBUS_ATTEMPT too, and for one
that follows another job FBUS_PARENT_ID, FBUS_PARENT_FUNCTION, FBUS_PARENT_STATUS and
FBUS_PARENT_ATTEMPTS. Every program finds FBUS_SLOT, 0 to N-1 of --slots N, that no other of
its offer has at that time.

With --warm, N processes wait, each for one call. With --resident, a process serves many
calls: "lines" reads a line and answers a line, "json" speaks JSON-RPC 2.0, one message a
line. When a call is cancelled or its time is over, a json process gets the notification
$/cancelRequest, params {"id":ID}; it is replaced if it has not answered within --grace.

  fbus offer wc -- wc -w
  fbus offer greet --encoding lines -- sh -c 'read -r who; echo "hello $who"'
  fbus offer thumb -- convert - -resize {1} png:-
  fbus offer classify --warm 2 -- python3 classify.py
  fbus offer shout --resident lines -- perl -pe '$| = 1; $_ = uc'`,
		Flags: append(o.function.flags(), o.workerOptions.flags()...),
		Action: func(ctx *cli.Context) error {
			if err := o.operands(ctx.Args().Slice()); err != nil {
				return err
			}
			return offer(o, ctx.App.ErrWriter)
		},
	}
}

// operands takes NAME, -- and the program, and checks the flags.
func (o *offerOptions) operands(words []string) error {
	i := slices.Index(words, "--")
	switch {
	case len(words) == 0 || i == 0:
		return usage("fbus offer needs a name").WithHint("fbus offer NAME -- PROGRAM [ARG…]")
	case i < 0 || i == len(words)-1:
		return usage("%s: no program given", words[0]).WithHint("fbus offer %s -- PROGRAM [ARG…]", words[0])
	case i > 1:
		return usage("fbus offer takes one name before --, got %s", join(words[:i])).WithHint("%s", join("fbus", "offer", words[0], "--", words[1:i], words[i+1:]))
	}
	o.name, o.argv = words[0], words[i+1:]
	return o.check()
}

func offer(o *offerOptions, stderr io.Writer) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	return o.serve([]*function{o.function}, nil, stderr, signals, nil, func(w *worker) {
		if !o.quiet {
			say(stderr, w.offered[o.name].ready(o.workerName()))
		}
		notifyReady(w.log, "offering "+o.name)
	}, nil)
}

// ready returns the message for an offer that the node has accepted.
func (o *offered) ready(worker string) string {
	slots := plural(o.f.calls, "slot")
	if mode := o.f.mode(); mode != "" {
		slots += ", " + mode + ","
	}
	line := fmt.Sprintf("offering %s with %s as worker %s; arguments: %s", o.f.name, slots, worker, o.Arguments())
	if by := o.MemoryBy(); by != "" {
		line += fmt.Sprintf("; memory limited by %s", by)
	}
	return line
}
