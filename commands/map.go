package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
	"fbus/bus/find"

	"github.com/urfave/cli/v2"
)

// mapOptions are the flags of fbus map.
type mapOptions struct {
	itemOptions
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
	wait      durationValue
	halt      haltValue
	joblog    string
	resume    bool
	on        string
	node      string
	keepAlive keepAliveValue
	bar       bool
	noBar     bool
	quiet     bool
	verbose   bool
}

func mapCommand() *cli.Command {
	o := &mapOptions{wait: durationValue{allow: true}}
	return &cli.Command{
		Name:      "map",
		Usage:     "call a function for each item",
		UsageText: "map [flags] NAME [ITEM…]",
		Description: `One call for each ITEM, or each line of FILE or stdin, as many at once as the
function has slots. While calls are over in a few milliseconds, as many again wait
at the node for a slot: not so with -j, -t or --halt. Results come out in the order
of the items. The exit status is 0, or 123 if a call failed. Ctrl-C begins no further
call, a second one cancels.

  ls *.jpg | fbus map --each file -o 'small/{/.}.png' thumb
  fbus map --joblog log --resume --retries 2 -a urls.txt fetch > pages
  fbus map --json wc one two three | jq -r 'select(.status != 0).item'

In -o FILE: {} is the item, {.} without extension, {/} its base name, {//} its
directory, {/.} base name without extension, {#} the call's number. JSON fields:
item (an array with -N), output, stderr (its last 1 MiB), status, source, code, worker,
seconds, call, tries; encoding and item_encoding are "base64" where output and item
are not UTF-8; message is why fbus ended a call; file is there with -o.`,
		Flags: append(o.itemOptions.flags(),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write each result to `FILE`, which appears only on exit status 0", Destination: &o.output},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line for each call", Destination: &o.json, DisableDefaultText: true},
			&cli.BoolFlag{Name: "tag", Usage: "begin each line with the item and a tab", Destination: &o.tag, DisableDefaultText: true},
			&cli.BoolFlag{Name: "unordered", Usage: "print results as they come", Destination: &o.unordered, DisableDefaultText: true},
			&cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Usage: "make `N` calls at once", Destination: &o.jobs, DefaultText: "the function's slots"},
			&cli.IntFlag{Name: "retries", Usage: "try `N` times more after a failure", Destination: &o.retries},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end a call after `D`, waiting included", Value: &o.timeout},
			&cli.GenericFlag{Name: "halt", Usage: "end after N failures, cancelling what runs or not: `now|soon,fail=N`", Value: &o.halt},
			&cli.StringFlag{Name: "joblog", Usage: "write a line for each call to `FILE`", Destination: &o.joblog},
			&cli.BoolFlag{Name: "resume", Usage: "skip items that the job log shows done", Destination: &o.resume, DisableDefaultText: true},
			onFlag(&o.on),
			nodeFlag(&o.node),
			keepAliveFlag(&o.keepAlive),
			&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node, the function, and workers that were lost", Value: &o.wait},
			&cli.BoolFlag{Name: "bar", Usage: "show progress even if stderr is no terminal", Destination: &o.bar, DisableDefaultText: true},
			&cli.BoolFlag{Name: "no-bar", Usage: "do not show progress", Destination: &o.noBar, DisableDefaultText: true},
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "say how each failed call ended"),
		),
		Action: func(ctx *cli.Context) error {
			o.hasJobs = ctx.IsSet("jobs")
			for _, name := range []string{"arg-file", "output", "joblog"} {
				if ctx.IsSet(name) && ctx.String(name) == "" {
					return usage("--%s: the name of a file is due, not nothing", name)
				}
			}
			words := ctx.Args().Slice()
			if len(words) == 0 {
				return usage("map what? a function's name is due").WithHint("fbus map NAME [ITEM…]; fbus ls shows what is offered")
			}
			o.name, o.operands = words[0], words[1:]
			return mapItems(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// haltValue is --halt: now|soon,fail=N, or never.
type haltValue struct {
	now  bool
	fail int
}

// Set implements flag.Value.
func (v *haltValue) Set(s string) error {
	*v = haltValue{}
	if s == "never" {
		return nil
	}
	when, what, _ := strings.Cut(s, ",")
	n, ok := strings.CutPrefix(what, "fail=")
	fail, err := strconv.Atoi(n)
	if !ok || err != nil || fail < 1 || when != "now" && when != "soon" {
		return fmt.Errorf("now,fail=N or soon,fail=N is due")
	}
	*v = haltValue{now: when == "now", fail: fail}
	return nil
}

// String implements flag.Value.
func (v *haltValue) String() string { return "" }

func (o *mapOptions) check() error {
	if err := o.itemOptions.check(o.operands); err != nil {
		return err
	}
	t := parseTemplate(o.output)
	switch {
	case !args.ValidName(o.name):
		return usage("%q is no function name", o.name)
	case o.hasJobs && o.jobs < 1:
		return usage("-j %d: at least 1 is due", o.jobs)
	case o.jobs > maxJobs:
		return usage("-j %d: at most %d calls can be made at once", o.jobs, maxJobs)
	case o.retries < 0:
		return usage("--retries %d: at least 0 is due", o.retries)
	case o.timeout.set && o.timeout.d <= 0:
		return usage("-t %s: more than nothing is due", formatDuration(o.timeout.d))
	case o.resume && (o.joblog == "" || o.joblog == "-"):
		return usage("--resume needs --joblog FILE: it says what is done")
	case t.unknown() != "":
		return usage("-o %s: there is no %s here, only %s", o.output, t.unknown(), strings.Join(replacements, " "))
	case o.output != "" && !t.varies():
		return usage("-o %s: all results would go to the same file", o.output).WithHint("%s, or > %s for one file", join("-o", o.output+".{#}"), o.output)
	case o.output != "" && o.tag:
		return usage("--tag is for what is printed: it does not go with -o")
	case o.json && o.tag:
		return usage("--tag and --json exclude each other: with --json, item says what a result is of")
	case o.bar && o.noBar:
		return usage("--bar and --no-bar exclude each other")
	}
	return nil
}

// maxJobs is how many calls a node takes from one connection, less some for
// questions.
const maxJobs = 9000

func mapItems(o *mapOptions, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	items, err := o.open(o.operands)
	if err != nil {
		return err
	}
	var files *fileOutputs
	if o.output != "" {
		files = newFileOutputs(parseTemplate(o.output))
	}
	var log *jobLog
	if o.joblog != "" {
		var told func(int, string)
		if files != nil && strings.Contains(o.output, "{#}") { // else an item has the name that it had
			told = files.done
		}
		if log, err = openJobLog(o.joblog, o.name, o.resume, told); err != nil {
			return err
		}
	}
	client, p, err := reach(o.node, o.name, o.on, o.wait, o.keepAlive.d)
	if err != nil {
		return err
	}
	defer client.Close()
	if o.verbose {
		say(stderr, fmt.Sprintf("node: %s (%s)", p.Addr, p.Why))
	}
	if !o.quiet {
		items.sayWhence(stderr)
	}
	return o.run(client, items, log, files, stdout, stderr)
}

// reach connects to a node on which somebody offers the function.
func reach(address, name, on string, wait durationValue, keepAlive time.Duration) (*bus.Client, find.Place, error) {
	client, p, err := connect(context.Background(), address, wait, &bus.Options{Name: hostname(), KeepAlive: keepAlive})
	if err != nil {
		return nil, p, err
	}
	if err := awaitFunction(client, name, on, wait); err != nil {
		client.Close()
		return nil, p, troubled(err, address, name)
	}
	return client, p, nil
}

// awaitFunction fails if nobody offers the function within the time.
func awaitFunction(client *bus.Client, name, on string, wait durationValue) error {
	deadline := time.Now().Add(wait.d)
	for {
		n, err := fanout.Slots(context.Background(), client, name, on)
		switch {
		case err != nil || n > 0:
			return err
		case !wait.forever && !time.Now().Before(deadline):
			msg := name + ": no such function"
			if on != "" {
				msg = fmt.Sprintf("%s: no worker whose name matches %s", name, on)
			}
			return &args.Error{Code: args.CodeNoFunction, Message: msg}
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// run makes the calls.
func (o *mapOptions) run(client *bus.Client, items *itemReader, log *jobLog, files *fileOutputs, stdout, stderr io.Writer) error {
	r := &fanout.Runner{
		Patience: o.wait.d, // how long a lost function is waited for
		Client:   client, Function: o.name, On: o.on, Jobs: o.jobs, Unordered: o.unordered,
		Retries: o.retries, HaltAfter: o.halt.fail, HaltNow: o.halt.now,
		// A call that waits for a slot spends its time, and may be one too many.
		Ahead: o.jobs == 0 && o.timeout.d == 0 && o.halt.fail == 0,
	}
	screen := &screen{w: stderr}
	if o.bar || !o.noBar && !o.quiet && isTerminal(stderr) {
		total := 0
		if log == nil || len(log.done) == 0 {
			total = max(0, items.count())
		}
		screen.start(o.name, total, r.Progress, isTerminal(stderr))
	}
	p := &printer{
		name: o.name, out: newFlusher(screen.beside(stdout, isTerminal(stdout))), screen: screen, tag: o.tag, json: o.json, log: log,
		grouped: o.per > 1, verbose: o.verbose, timeout: o.timeout.d,
	}
	if p.files = files; files != nil {
		r.Finish = files.write
	}
	seq, begun := 0, 0
	r.Next = func() (fanout.Task, error) {
		for {
			words, err := items.next()
			if err == io.EOF {
				screen.total(begun)
			}
			if err != nil {
				return fanout.Task{}, err
			}
			if seq++; !log.skips(words) {
				begun++
				return fanout.Task{Seq: seq, Words: words}, nil
			}
			p.resumed.Add(1)
		}
	}
	r.Request = func(t *fanout.Task) (*bus.Request, io.Closer, error) {
		if err := p.attend(t); err != nil {
			return nil, nil, err
		}
		req, file, err := o.itemOptions.request(t.Words)
		if err != nil {
			return nil, nil, err
		}
		req.Timeout = o.timeout.d
		return req, p.stderr(t, req, file), nil
	}
	r.Done, r.Rest = p.print, p.rest
	r.Notice = screen.say
	ctx, stop := interruptible(r, screen, true)
	defer stop()
	defer oneProcessor().stop()
	err := r.Run(ctx)
	return o.summary(r, p, screen, err)
}

// interruptible ends with HUP, INT or TERM; if it is gentle, with a second INT:
// the first begins nothing further.
func interruptible(r *fanout.Runner, screen *screen, gentle bool) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
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
				r.Stop(i)
				if running := r.Running(); r.Progress().Waiting || len(running) == 0 {
					screen.say("no further call is made")
				} else {
					screen.say("no further call is made; still running: %s: %s; Ctrl-C again cancels", calls(len(running)), quotedItems(running))
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
	const most = 3
	var b strings.Builder
	for i, t := range tasks[:min(len(tasks), most)] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(shorten([]byte(label(t.Words)))))
	}
	if n := len(tasks) - most; n > 0 {
		fmt.Fprintf(&b, " and %d more", n)
	}
	return b.String()
}

func calls(n int) string {
	if n == 1 {
		return "1 call"
	}
	return fmt.Sprintf("%d calls", n)
}

// summary says what failed, and turns how it all ended into our own end.
func (o *mapOptions) summary(r *fanout.Runner, p *printer, screen *screen, err error) error {
	screen.stop()
	if e := p.close(); e != nil && err == nil {
		err = e
	}
	n := r.Progress()
	if n.Failed > 0 {
		screen.say("%s: %d of %s failed", o.name, n.Failed, calls(n.Ended))
	}
	if p.resumed.Load() > 0 && o.verbose {
		screen.say("%d items were done before", p.resumed.Load())
	}
	var be *args.Error
	var sig *interrupted
	switch {
	case errors.As(err, &sig):
		if !o.quiet {
			screen.say("interrupted: %s had succeeded", calls(n.Ended-n.Failed))
		}
		return sig
	case errors.As(err, &be):
		f := explain(troubled(err, o.node, o.name))
		lost := be.Code == args.CodeDraining || be.Code == args.CodeNodeLost
		if lost {
			f.Code = args.CodeNodeLost
		}
		if lost || be.Code == args.CodeRevoked || be.Code == args.CodeExpired {
			f.Message = fmt.Sprintf("%s: %s: %s had succeeded", o.name, f.Message, calls(n.Ended-n.Failed))
			f.Hint = "with --joblog FILE, --resume goes on where this ends"
			if o.joblog != "" {
				f.Hint = "--resume goes on where this has ended"
			}
			f.Hint += "; " + doctorLine(o.node, []string{o.name}) + " looks at the node"
		}
		return f
	case err != nil:
		return err
	case n.Failed > 0:
		return statusOnly(exitSomeFailed)
	}
	return nil
}
