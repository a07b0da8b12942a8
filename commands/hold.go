package commands

import (
	"fmt"
	"io"
	"slices"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// holdOptions are the flags of fbus hold and fbus release.
type holdOptions struct {
	lookOptions
	on       string
	hasOn    bool
	release  bool
	function string // that is asked; a test has its own
}

func holdCommand() *cli.Command {
	o := &holdOptions{function: "fbus.hold"}
	return &cli.Command{
		Usage:     "have jobs of a function wait, or workers get nothing new",
		UsageText: "hold [flags] [NAME…|--on GLOB]",
		Description: `Posted jobs of a held function wait; calls, and what runs, go on. With --on, workers whose
name matches get neither calls nor jobs; what they run goes on. This lasts until fbus
release, also when the node is started again. Without NAME and --on it lists what is held.

  fbus hold resize                  # while its disk is repaired
  fbus hold --on 'gpu*'             # before these machines are switched off
  fbus hold

fbus ls, describe and jobs show it. Only administrators may hold. With --json prints an
object for all that is held: function or on, and workers, how many it concerns now. The
function fbus.hold does the same.`,
		Flags:  o.flags(),
		Action: o.action,
	}
}

func releaseCommand() *cli.Command {
	o := &holdOptions{function: "fbus.release", release: true}
	return &cli.Command{
		Usage:     "end what fbus hold has begun",
		UsageText: "release [flags] NAME…|--on GLOB",
		Description: `  fbus release resize
  fbus release --on 'gpu*'

GLOB is the same as for fbus hold, which lists what is held. With --json prints what is
still held, as fbus hold does. The function fbus.release does the same.`,
		Flags:  o.flags(),
		Action: o.action,
	}
}

func (o *holdOptions) flags() []cli.Flag {
	return append(o.lookOptions.flags(), &cli.StringFlag{Name: "on", Usage: "workers whose name matches `GLOB`", Destination: &o.on})
}

func (o *holdOptions) action(ctx *cli.Context) error {
	o.hasOn = ctx.IsSet("on")
	return hold(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter)
}

func (o *holdOptions) check(names []string) error {
	switch {
	case o.hasOn && o.on == "":
		return usage("--on needs a glob of worker names")
	case o.hasOn && len(names) > 0:
		return usage("NAME and --on exclude each other: a function waits everywhere, a worker with all its functions")
	}
	for _, name := range names {
		if !args.ValidName(name) {
			return usage("invalid function name %q", name)
		}
	}
	return nil
}

func hold(o *holdOptions, names []string, stdout, stderr io.Writer) error {
	if err := o.check(names); err != nil {
		return err
	}
	lists := !o.hasOn && len(names) == 0
	if o.release && lists {
		return o.nothing()
	}
	doc, err := marshal(bus.HoldQuery{Functions: names, On: o.on})
	if err != nil {
		return err
	}
	data, err := o.call(o.function, args.JSON(doc))
	if err != nil {
		return noStore(err, o.function)
	}
	list, err := decodeLines[bus.HeldInfo](data)
	switch {
	case err != nil:
		return err
	case o.json:
		stdout.Write(data)
	case lists:
		heldTable(stdout, list)
	}
	if o.quiet || o.release {
		return nil
	}
	for _, h := range list { // a name may be a mistake
		if h.Workers == 0 && (slices.Contains(names, h.Function) || o.hasOn && h.On == o.on) {
			text := heldText(&h) + "; there is no such worker now"
			if near := o.similar(h.Function); near != "" {
				text += "; did you mean " + near + "?"
			}
			say(stderr, text)
		}
	}
	return nil
}

// nothing is the error of a release of nothing, with what is held.
func (o *holdOptions) nothing() error {
	data, err := o.call("fbus.hold", args.Args{})
	if err != nil {
		return noStore(err, "fbus.hold")
	}
	list, err := decodeLines[bus.HeldInfo](data)
	if err != nil {
		return err
	}
	e := usage("fbus release needs names of functions, or --on")
	switch {
	case len(list) == 0:
		return e.WithHint("nothing is held")
	case list[0].On != "":
		return e.WithHint("%s", join("fbus", "release", "--on", list[0].On))
	}
	return e.WithHint("%s; fbus hold lists what is held", join("fbus", "release", list[0].Function))
}

func heldTable(stdout io.Writer, list []bus.HeldInfo) {
	if len(list) == 0 {
		return
	}
	table(stdout, "HELD\tWORKERS", func(row func(...any)) {
		for _, h := range list {
			row(heldText(&h), h.Workers)
		}
	})
}

func heldText(h *bus.HeldInfo) string {
	if h.On != "" {
		return fmt.Sprintf("workers %s get nothing new", quoteWord(h.On))
	}
	return "jobs of " + h.Function + " wait"
}
