package commands

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"
)

// offerOptions are the flags of fbus offer: what is offered, and how.
type offerOptions struct {
	*function
	workerOptions
}

func offerCommand() *cli.Command {
	o := &offerOptions{newFunction(), newWorkerOptions()}
	return &cli.Command{
		Name:      "offer",
		Usage:     "offer a program as a function",
		UsageText: "offer NAME [flags] -- PROGRAM [ARG…]",
		Description: `Each call starts PROGRAM. Its arguments arrive serialized on stdin, or on its
command line: with --args argv behind ARG…, or where placeholders stand, {} for
all, {1} for the first, {name} for a field. Offered again, here or elsewhere, a
name has more slots. TERM or INT drains; a second one ends at once.

Started for a call PROGRAM has FBUS_FUNCTION, FBUS_CALL_ID, FBUS_CALLER, FBUS_DEADLINE
and FBUS_NODE in its environment; of a posted job FBUS_JOB_ID and FBUS_ATTEMPT as well,
after another job's end FBUS_PARENT_ID, FBUS_PARENT_FUNCTION, FBUS_PARENT_STATUS and
FBUS_PARENT_ATTEMPTS.

With --warm N processes wait, each for one call. With --resident they serve many:
lines is a line in and a line out, json is JSON-RPC 2.0, a message a line. When a call
is cancelled or its time is over, json gets the notification $/cancelRequest, params
{"id":ID}; a process that has not answered within --grace is replaced.

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

// operands takes NAME, -- and the program, and checks what flags say alone.
func (o *offerOptions) operands(words []string) error {
	i := slices.Index(words, "--")
	switch {
	case len(words) == 0 || i == 0:
		return usage("offer what? a name is due").WithHint("fbus offer NAME -- PROGRAM [ARG…]")
	case i < 0 && len(words) > 1:
		return usage("the program of %s must stand behind --", words[0]).WithHint("%s", join("fbus", "offer", words[:1], "--", words[1:]))
	case i < 0 || i == len(words)-1:
		return usage("%s: no program is given", words[0]).WithHint("fbus offer %s -- PROGRAM [ARG…]", words[0])
	case i > 1:
		return usage("one name is due before --, not %s", join(words[:i]))
	}
	o.name, o.argv = words[0], words[i+1:]
	return o.check()
}

func offer(o *offerOptions, stderr io.Writer) error {
	w, err := o.begin([]*function{o.function}, stderr)
	if err != nil {
		return err
	}
	defer w.close()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := o.start(ctx, cancel, w, signals); err != nil {
		return err
	}
	if !o.quiet {
		say(stderr, w.offered[o.name].ready(o.workerName()))
	}
	notifyReady(w.log, "offering "+o.name)
	return o.serve(ctx, cancel, w, nil, signals, nil, nil)
}

// ready is what is said when the offer stands.
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
