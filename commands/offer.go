package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/exec"

	"github.com/urfave/cli/v2"
)

// offerOptions are the flags of fbus offer: what is offered, and how.
type offerOptions struct {
	function
	node    string
	wait    durationValue
	worker  string
	drain   durationValue
	quiet   bool
	verbose bool
}

// function describes one program as a function.
type function struct {
	name        string
	argv        []string
	slots       int
	args        string
	encoding    string
	options     bool
	timeout     durationValue
	grace       durationValue
	dir         string
	env         []string
	idempotent  bool
	description string
	maxOutput   sizeValue
	memory      sizeValue
	noNode      bool
}

func offerCommand() *cli.Command {
	o := &offerOptions{wait: durationValue{allow: true}, drain: durationValue{d: time.Minute}}
	o.grace.d = exec.DefaultGrace
	return &cli.Command{
		Name:      "offer",
		Usage:     "offer a program as a function",
		UsageText: "offer NAME [flags] -- PROGRAM [ARG…]",
		Description: `Each call starts PROGRAM. Its arguments arrive serialized on stdin, or on its
command line: with --args argv behind ARG…, or where placeholders stand, {} for
all, {1} for the first, {name} for a field. Offered again, here or elsewhere, a
name has more slots. TERM or INT drains; a second one ends at once.

  fbus offer wc -- wc -w
  fbus offer greet --encoding lines -- sh -c 'read -r who; echo "hello $who"'
  fbus offer thumb -- convert - -resize {1} png:-`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "slots", Usage: "take `N` calls at once", Destination: &o.slots, DefaultText: "the number of CPUs"},
			&cli.StringFlag{Name: "args", Usage: "where arguments go: `stdin|argv`", Destination: &o.args},
			&cli.StringFlag{Name: "encoding", Usage: "of arguments on stdin: `json|msgpack|lines|nul`", DefaultText: "json", Destination: &o.encoding},
			&cli.BoolFlag{Name: "allow-options", Usage: "let arguments on the command line begin with -", Destination: &o.options, DisableDefaultText: true},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end a call after `D`", Value: &o.timeout},
			&cli.GenericFlag{Name: "grace", Usage: "`D` between TERM and KILL", Value: &o.grace},
			&cli.GenericFlag{Name: "drain", Usage: "`D` to finish what runs at shutdown", Value: &o.drain},
			&cli.StringFlag{Name: "chdir", Aliases: []string{"C"}, Usage: "run PROGRAM in `DIR`", Destination: &o.dir},
			&cli.GenericFlag{Name: "env", Aliases: []string{"e"}, Usage: "add `K=V` to PROGRAM's environment; again for more", Value: &listValue{&o.env}},
			&cli.BoolFlag{Name: "idempotent", Usage: "a call may be run again when its worker is lost", Destination: &o.idempotent, DisableDefaultText: true},
			&cli.StringFlag{Name: "description", Usage: "`TEXT` for fbus ls and describe", Destination: &o.description},
			&cli.StringFlag{Name: "worker", Usage: "call this worker `NAME`; default: the host's name", Destination: &o.worker},
			&cli.GenericFlag{Name: "max-output", Usage: "end a call that prints more than `SIZE`", Value: &o.maxOutput},
			&cli.GenericFlag{Name: "memory", Usage: "let PROGRAM use at most `SIZE` of memory", Value: &o.memory},
			&cli.BoolFlag{Name: "no-node", Usage: "do not set FBUS_NODE for PROGRAM", Destination: &o.noNode, DisableDefaultText: true},
			nodeFlag(&o.node),
			&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node", Value: &o.wait},
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "say how each call ended"),
		},
		Action: func(ctx *cli.Context) error {
			if err := o.operands(ctx.Args().Slice(), ctx.IsSet("slots")); err != nil {
				return err
			}
			return offer(o, ctx.App.ErrWriter)
		},
	}
}

func nodeFlag(dest *string) cli.Flag {
	return &cli.StringFlag{Name: "node", Usage: "talk to the node at `ADDR`, the path of its socket", Destination: dest}
}

// operands takes NAME, -- and the program, and checks what flags say alone.
func (o *offerOptions) operands(words []string, slotsSet bool) error {
	i := slices.Index(words, "--")
	switch {
	case len(words) == 0 || i == 0:
		return usage("offer what? a name is due").withHint("fbus offer NAME -- PROGRAM [ARG…]")
	case i < 0 && len(words) > 1:
		return usage("the program of %s must stand behind --", words[0]).withHint("%s", join("fbus", "offer", words[:1], "--", words[1:]))
	case i < 0 || i == len(words)-1:
		return usage("%s: no program is given", words[0]).withHint("fbus offer %s -- PROGRAM [ARG…]", words[0])
	case i > 1:
		return usage("one name is due before --, not %s", join(words[:i]))
	}
	o.name, o.argv = words[0], words[i+1:]
	if !slotsSet {
		o.slots = runtime.NumCPU()
	}
	return o.function.check()
}

func (f *function) check() error {
	switch {
	case !node.ValidName(f.name):
		return usage("%q is no function name: letters, digits, _ . - are due, at most 128, not . or - first", f.name)
	case strings.HasPrefix(f.name, "fbus."):
		return fail(exitDenied, "%s: names that begin with fbus. are the node's own", f.name)
	case f.slots < 1:
		return usage("--slots %d: at least 1 is due", f.slots)
	}
	for _, kv := range f.env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return usage("-e %s: NAME=VALUE is due", kv)
		}
	}
	return nil
}

// spec is the function as package exec takes it.
func (f *function) spec(log func(string, ...any)) (exec.Spec, error) {
	spec := exec.Spec{
		Name: f.name, Argv: f.argv, Dir: f.dir, Env: f.env, ArgsSet: f.args != "", AllowOptions: f.options,
		Timeout: f.timeout.d, Grace: f.grace.d, MaxOutput: f.maxOutput.n, Memory: f.memory.n, Slots: f.slots, Log: log,
	}
	var err error
	if f.args != "" {
		if spec.Args, err = exec.ParseArgMode(f.args); err != nil {
			return spec, usage("--args %s: stdin or argv is due", f.args)
		}
	}
	if f.encoding != "" {
		if spec.Encoding, err = exec.ParseEncoding(f.encoding); err != nil {
			return spec, usage("--encoding %s: json, msgpack, lines or nul is due", f.encoding)
		}
	}
	return spec, nil
}

// handler adapts a program to the bus.
func handler(fn *exec.Function, ended func(string, ...any)) bus.CallHandler {
	return func(ctx context.Context, inv *bus.Invocation) bus.Result {
		run, stop := context.WithCancelCause(context.Background())
		defer context.AfterFunc(ctx, func() {
			cause := context.Cause(ctx)
			if errors.Is(cause, bus.ErrDeadline) {
				cause = context.DeadlineExceeded
			}
			stop(cause)
		})()
		defer stop(nil)
		res := fn.Run(run, &exec.Call{
			ID: inv.Call, Caller: inv.Caller, Deadline: inv.Deadline,
			Kind: exec.Kind(inv.Kind), Args: inv.Args, HasInput: inv.HasInput, Input: inv.Input, Rest: inv.Rest,
			Stdout: inv.Stdout, Stderr: inv.Stderr,
		})
		if ended != nil {
			ended("call %s of %s: %s %d %s", inv.Call, inv.Caller, res.Source, res.Status, res.Code)
		}
		return bus.Result{Source: sourceOf[res.Source], Status: res.Status, Code: res.Code, Message: res.Message}
	}
}

var sourceOf = map[exec.Source]bus.Source{
	exec.SourceProgram: bus.FromProgram, exec.SourceSignal: bus.FromSignal, exec.SourceFbus: bus.FromBus,
}

// offered is a program that is on the bus.
type offered struct {
	*exec.Function
	name string
}

// newWorker makes a worker of some functions; none is on the bus yet. The
// functions are to be closed. ended, if not nil, is told how calls end.
func newWorker(list []*function, log, ended func(string, ...any)) (*bus.Worker, []offered, error) {
	w := &bus.Worker{Notice: log}
	var fns []offered
	for _, f := range list {
		spec, err := f.spec(log)
		if err == nil {
			var fn *exec.Function
			if fn, err = exec.New(spec); err == nil {
				fns = append(fns, offered{fn, f.name})
				w.Add(bus.Offer{
					Name: f.name, Slots: f.slots, Idempotent: f.idempotent, Description: f.description, Arguments: fn.Arguments(),
				}, handler(fn, ended))
				continue
			}
		}
		closeAll(fns)
		return nil, nil, err
	}
	return w, fns, nil
}

func closeAll(fns []offered) {
	for _, fn := range fns {
		fn.Close()
	}
}

func offer(o *offerOptions, stderr io.Writer) error {
	log := logger(stderr)
	if err := exec.BecomeReaper(); err != nil {
		return fail(exitInternal, "%v", err)
	}
	var ended func(string, ...any)
	if o.verbose {
		ended = log
	}
	w, fns, err := newWorker([]*function{&o.function}, log, ended)
	if err != nil {
		return err
	}
	defer closeAll(fns)
	// A worker's memory is its own; what it passes on is bounded by windows.
	tuneMemory()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	dial := bus.DialOptions{Name: o.worker, Instance: bus.NewInstance()}
	if dial.Name == "" {
		dial.Name = hostname()
	}
	wait := o.wait
	w.Dial = func(ctx context.Context) (*bus.Client, error) {
		c, p, err := connect(ctx, o.node, wait, &dial)
		if err == nil && !o.noNode {
			for _, fn := range fns {
				fn.SetNode(p.addr)
			}
		}
		return c, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- w.Start(ctx) }() // ends with the first connection
	select {
	case err = <-started:
	case sig := <-signals:
		cancel()
		<-started
		return statusOnly(exitSignal + int(sig.(syscall.Signal)))
	}
	if err != nil {
		return err
	}
	wait = durationValue{} // from now on the worker keeps its own time
	if !o.quiet {
		say(stderr, o.ready(w, fns[0].Function, dial.Name))
	}
	return workUntil(ctx, cancel, w, fns, signals, o.drain.d, log)
}

// ready is what is said when the offer stands.
func (o *offerOptions) ready(w *bus.Worker, fn *exec.Function, worker string) string {
	slots := "1 slot"
	if o.slots != 1 {
		slots = fmt.Sprintf("%d slots", o.slots)
	}
	line := fmt.Sprintf("offering %s with %s as worker %s; arguments: %s", o.name, slots, worker, fn.Arguments())
	if by := fn.MemoryBy(); by != "" {
		line += fmt.Sprintf("; memory limited by %s", by)
	}
	return line
}

// workUntil serves until a signal, then drains; a second signal kills.
func workUntil(ctx context.Context, cancel context.CancelFunc, w *bus.Worker, fns []offered, signals <-chan os.Signal, drain time.Duration, log func(string, ...any)) error {
	served := make(chan error, 1)
	go func() { served <- w.Run(ctx) }() // ends when cancelled, or denied
	var err error
	select {
	case err = <-served:
	case <-signals:
		cancel()
		<-served
	}
	limit, stop := drainTime(drain, signals)
	defer stop()
	if w.Drain(limit) != nil {
		log("calls were ended before they had finished")
		for _, fn := range fns {
			fn.Kill()
		}
	}
	w.Close()
	return err
}

// logger writes messages, one line at a time.
func logger(stderr io.Writer) func(string, ...any) {
	var mu sync.Mutex
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		say(stderr, fmt.Sprintf(format, args...))
	}
}
