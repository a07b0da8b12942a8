package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
	"fbus/bus/tuning"

	"github.com/urfave/cli/v2"
)

// mapOptions are the flags of fbus map.
type mapOptions struct {
	nodeOptions
	items     fanout.Items
	name      string
	operands  []string
	output    string
	json      bool
	tag       bool
	unordered bool
	jobs      int
	hasJobs   bool
	retries   int
	timeout   durationValue
	haltNow   bool
	haltAfter int
	joblog    string
	resume    bool
	on        string
	barOptions
	quiet bool
}

func mapCommand() *cli.Command {
	o := &mapOptions{}
	return &cli.Command{
		Usage:     "call a function for each item",
		UsageText: "map [flags] NAME [ITEM…]",
		Description: `Makes one call for each ITEM, or each line of FILE or stdin, as many at once as the
function has slots. Arguments that are the same for all are --arg WORD or -f K=V. While calls take only a few milliseconds, as many again wait at the
node for a slot, unless -j, -t or --halt is given. Results are printed in the order of
the items. The exit status is 0, or 123 if a call failed. After Ctrl-C no further call
begins; a second one cancels running calls.

  ls *.jpg | fbus map --each file --arg 80x80 -o 'small/{/.}.png' thumb
  fbus map --joblog log --resume --retries 2 -a urls.txt fetch > pages
  fbus map --json wc one two three | jq -r 'select(.status != 0).item'

In -o FILE: {} is the item, {.} without extension, {/} its base name, {//} its
directory, {/.} base name without extension, {#} the call's number. What stands before
an item names a directory that the item cannot leave: with 'out/{}' or '{#}/{}' the item
../x fails with 65. FILE is on the disk before its call counts as done.

A job log has the columns of GNU parallel. If --arg, -f or -F send something with each item,
a hash of that follows the function's name there: --resume skips no item whose call was
different, and calls it again.

JSON fields: item (an array with -N), output, stderr (its last 1 MiB), status, source,
code, worker, seconds, call, tries; encoding and item_encoding are "base64" where output and item
are not UTF-8; message is set if fbus ended the call, file with -o.`,
		Flags: append(slices.Concat(itemFlags(&o.items), fieldFlags(&o.items.Fields), o.nodeOptions.flags("wait `D|forever` for a node, the function, and workers that were lost", "print how each failed call ended"), o.barOptions.flags()),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write each result to `FILE`, which appears only on exit status 0; missing directories are made", Destination: &o.output},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line for each call", Destination: &o.json, DisableDefaultText: true},
			&cli.BoolFlag{Name: "tag", Usage: "begin each line with the item and a tab", Destination: &o.tag, DisableDefaultText: true},
			&cli.BoolFlag{Name: "unordered", Usage: "print results as calls end", Destination: &o.unordered, DisableDefaultText: true},
			&cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Usage: "make `N` calls at once", Destination: &o.jobs, DefaultText: "the function's slots"},
			&cli.IntFlag{Name: "retries", Usage: "try `N` times more after a failure", Destination: &o.retries},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end a call after `D`, waiting included", Value: &o.timeout},
			&cli.GenericFlag{Name: "halt", Usage: "stop after N failures; now cancels running calls, soon lets them finish: `now|soon,fail=N`", Value: setter(o.setHalt)},
			&cli.StringFlag{Name: "joblog", Usage: "write a line for each call to `FILE`", Destination: &o.joblog},
			&cli.BoolFlag{Name: "resume", Usage: "skip items that are done according to the job log", Destination: &o.resume, DisableDefaultText: true},
			onFlag(&o.on),
			quietFlag(&o.quiet),
		),
		Action: func(ctx *cli.Context) error {
			o.hasJobs = ctx.IsSet("jobs")
			words := ctx.Args().Slice()
			if len(words) == 0 {
				return usage("map needs the name of a function").WithHint("fbus map NAME [ITEM…]; fbus ls shows what is offered")
			}
			o.name, o.operands = words[0], words[1:]
			return mapItems(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// setHalt sets --halt: now|soon,fail=N, or never.
func (o *mapOptions) setHalt(s string) error {
	o.haltNow, o.haltAfter = false, 0
	if s == "never" {
		return nil
	}
	when, what, _ := strings.Cut(s, ",")
	n, ok := strings.CutPrefix(what, "fail=")
	fail, err := strconv.Atoi(n)
	if !ok || err != nil || fail < 1 || when != "now" && when != "soon" {
		return errors.New("must be now,fail=N or soon,fail=N")
	}
	o.haltNow, o.haltAfter = when == "now", fail
	return nil
}

// itemFlags are the flags for items, which post has too.
func itemFlags(o *fanout.Items) []cli.Flag {
	o.Per, o.Each, o.Input = 1, "arg", inputOf
	return []cli.Flag{
		&cli.StringFlag{Name: "arg-file", Aliases: []string{"a"}, Usage: "read items from `FILE`, one a line", Destination: &o.File},
		&cli.BoolFlag{Name: "null", Aliases: []string{"0"}, Usage: "items end in NUL, not newline", Destination: &o.Null, DisableDefaultText: true},
		&cli.IntFlag{Name: "max-args", Aliases: []string{"N"}, Usage: "send `N` items with each call", Destination: &o.Per, DefaultText: "1"},
		&cli.StringFlag{Name: "each", Usage: "an item is an argument, the input, a document, or a file to send: `arg|raw|json|file`", Destination: &o.Each, DefaultText: "arg"},
		&cli.GenericFlag{Name: "arg", Usage: "send the argument `WORD` with each item, before it; again for more", Value: &listValue{list: &o.Args}},
		&cli.GenericFlag{Name: "item-field", Usage: "send each item as the field `NAME`, beside those of -f and -F", Value: setter(func(s string) error {
			if o.ItemField = s; s == "" {
				return errors.New("a field needs a name")
			}
			return nil
		})},
	}
}

// sayTyped tells a person that a file is the terminal, which is waited for, and how to end
// what is to be typed. f is an [io.Reader] since not all that is read are files.
func sayTyped(f io.Reader, what, it string, stderr io.Writer) {
	if t, ok := f.(terminal); ok {
		f = t.f
	}
	switch file, ok := f.(*os.File); {
	case !ok || !isTerminalFile(file):
	case background(int(file.Fd())):
		then := "fg"
		if _, instead, ok := strings.Cut(it, ";"); ok {
			then += ";" + instead
		}
		say(stderr, fmt.Sprintf("%s will be read from the terminal when this command is in the foreground: %s", what, then))
	default:
		say(stderr, fmt.Sprintf("reading %s from the terminal: Ctrl-D ends %s", what, it))
	}
}

func (o *mapOptions) check() error {
	if err := cmp.Or(o.items.Check(o.operands), checkFields(o.items.Fields)); err != nil {
		return err
	}
	switch {
	case !args.ValidName(o.name):
		return usage("invalid function name %q", o.name)
	case o.hasJobs && o.jobs < 1:
		return usage("-j must be at least 1")
	case o.jobs > maxJobs:
		return usage("-j must be at most %d", maxJobs)
	case o.retries < 0:
		return usage("--retries must not be negative")
	case o.timeout.set && o.timeout.d <= 0:
		return unlimited("-t")
	case o.resume && (o.joblog == "" || o.joblog == "-"):
		return usage("--resume needs --joblog FILE, which shows what is done")
	case o.output != "" && o.tag:
		return usage("--tag and -o exclude each other: --tag is for printed results")
	case o.json && o.tag:
		return usage("--tag and --json exclude each other: with --json, the member item names the call")
	}
	if err := checkTemplate(o.output); err != nil {
		return err
	}
	return o.barOptions.check()
}

// checkTemplate checks -o of a command with many results; "" is none.
func checkTemplate(output string) error {
	t := fanout.Template(output)
	switch {
	case t.Unknown() != "":
		return usage("-o %s: %s is not supported, only %s", output, t.Unknown(), strings.Join(fanout.Replacements, " "))
	case output != "" && !t.Varies():
		return usage("-o %s: all results would go to the same file", output).WithHint("%s, or > %s for one file", join("-o", output+".{#}"), output)
	}
	return nil
}

// maxJobs is below the number of calls that a node accepts from one connection, so that
// the node can still be asked something.
const maxJobs = 9000

func mapItems(o *mapOptions, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	items, err := o.items.Open(o.operands)
	if err != nil {
		return err
	}
	var names *fanout.Names
	if o.output != "" {
		names = fanout.NewNames(fanout.Template(o.output))
	}
	var log *fanout.Log
	if o.joblog != "" {
		lo := fanout.LogOptions{Path: o.joblog, Function: o.name, With: o.items.Mark(), Resume: o.resume}
		if names != nil && fanout.Template(o.output).Numbers() { // else the item still has its name
			lo.Done = names.Done
		}
		if log, err = fanout.OpenLog(lo); err != nil {
			return err
		}
		if n := log.Other(); n > 0 && !o.quiet {
			say(stderr, fmt.Sprintf("%s in the job log had other arguments: items are called again with these", plural(n, "call")))
		}
	}
	client, workers, err := o.reach(o.name, o.on, stderr)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := checkTakes("map", o.name, &o.items, workers); err != nil {
		return err
	}
	if !o.quiet {
		sayTyped(items.File, "items", "them", stderr)
	}
	r := &fanout.Runner{Config: fanout.Config{
		Client: client, Function: o.name, On: o.on, Jobs: o.jobs, Unordered: o.unordered,
		Patience: o.wait.d, Retries: o.retries, HaltAfter: o.haltAfter, HaltNow: o.haltNow,
		// A call that waits at the node uses up its time, and may be one too many.
		Ahead: o.jobs == 0 && o.timeout.d == 0 && o.haltAfter == 0,
	}}
	screen := &screen{w: stderr}
	if o.show(stderr, o.quiet) {
		total := 0
		if !log.Resumes() {
			total = max(0, items.Count())
		}
		screen.start(o.name, total, r.Progress, isTerminal(stderr))
	}
	out := &printer{
		name: o.name, out: newFlusher(screen.share(stdout, isTerminal(stdout))), screen: screen, tag: o.tag, json: o.json, log: log, names: names,
		grouped: o.items.Per > 1, verbose: o.verbose, timeout: o.timeout.d, title: taskItems,
	}
	if st, err := os.Stdout.Stat(); err == nil && st.Mode().IsRegular() && log != nil && names == nil {
		out.stdout = os.Stdout
	}
	begun, resumed := 0, atomic.Int64{}
	r.Next = func() (fanout.Task, error) {
		for {
			t, err := items.Next()
			switch {
			case err == io.EOF:
				screen.total(begun)
				return t, err
			case err != nil:
				return t, err
			case !log.Skips(t.Words):
				begun++
				return t, nil
			}
			resumed.Add(1)
		}
	}
	r.Request = func(t *fanout.Task) (*bus.Request, io.Closer, error) {
		req, file, err := o.items.Request(t.Words)
		if err != nil {
			return nil, nil, err
		}
		req.Timeout = o.timeout.d
		if screen.meter != nil {
			req.Progress = func(p bus.Progress) { screen.report(&p) }
		}
		closer, err := out.prepare(t, req, file)
		return req, closer, err
	}
	if names != nil {
		r.Finish = out.writeFile
	}
	r.Done, r.Rest, r.Notice = out.print, out.rest, screen.say
	ctx, stop := interruptible(r, screen, true)
	defer stop()
	defer tuning.OneProcessor().Stop()
	err = r.Run(ctx)
	screen.stop()
	err = cmp.Or(err, out.close())
	return o.summary(r.Progress(), int(resumed.Load()), screen, err)
}

// interruptible returns a context that HUP, INT or TERM ends. If it is gentle, the first
// INT only lets no further call begin.
func interruptible(r *fanout.Runner, screen *screen, gentle bool) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := catch()
	done := make(chan struct{})
	go func() { // ends with stop
		for again := !gentle; ; again = true {
			select {
			case s := <-signals:
				i := &interrupted{s.(syscall.Signal)}
				if s != syscall.SIGINT || again {
					cancel(i)
					return
				}
				waiting := r.Progress().Waiting
				r.Stop(i)
				if running := r.Running(); waiting || len(running) == 0 {
					screen.say("no further call is made")
				} else {
					screen.say("no further call is made; still running: %s: %s; Ctrl-C again cancels", plural(len(running), "call"), quotedItems(running))
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
	}
}

// quotedItems names the first few items of tasks.
func quotedItems(tasks []fanout.Task) string {
	var quoted []string
	for _, t := range tasks {
		quoted = append(quoted, strconv.Quote(args.Shorten(taskItems(&t))))
	}
	return few(quoted)
}

// maxFew is how many of a list a message names.
const maxFew = 3

// few names the first few of a list.
func few(list []string) string { return fewOf(list, len(list)) }

// fewOf is few for a list of so many, of which at least the first few are given.
func fewOf(list []string, total int) string {
	if n := total - maxFew; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:maxFew], ", "), n)
	}
	return strings.Join(list, ", ")
}

// summary reports failures, and returns the error that ends the command.
func (o *mapOptions) summary(n fanout.Progress, resumed int, screen *screen, err error) error {
	if n.Failed > 0 {
		screen.say("%s: %d of %s failed", o.name, n.Failed, plural(n.Ended, "call"))
	}
	if resumed > 0 && o.verbose {
		screen.say("skipped, done before: %s", plural(resumed, "item"))
	}
	succeeded := plural(n.Ended-n.Failed, "call") + " had succeeded"
	var e *args.Error
	var sig *interrupted
	switch {
	case errors.As(err, &sig):
		if !o.quiet {
			screen.say("interrupted: %s", succeeded)
		}
		return sig
	case errors.As(err, &e):
		f := explain(troubled(err, o.node, o.name))
		lost := e.Code == args.CodeDraining || e.Code == args.CodeNodeLost
		if lost {
			f.Code = args.CodeNodeLost
		}
		if lost || e.Code == args.CodeRevoked || e.Code == args.CodeExpired {
			f.Message = fmt.Sprintf("%s: %s: %s", o.name, f.Message, succeeded)
			f.Hint = "with --joblog FILE, --resume continues an interrupted run"
			if o.joblog != "" {
				f.Hint = "--resume continues this run"
			}
			f.Hint += "; " + doctorLine(o.node, []string{o.name}) + " examines the node"
		}
		return f
	case err != nil:
		return err
	case n.Failed > 0:
		return statusOnly(exitSomeFailed)
	}
	return nil
}
