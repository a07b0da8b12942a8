package commands

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/tuning"
	"fbus/bus/wire"
	"fbus/exec"
	"fbus/exec/keeper"

	"github.com/urfave/cli/v2"
)

// worker is a worker of the bus and the programs that it offers.
type worker struct {
	bus   *bus.Worker
	log   func(string, ...any)
	ended func(string, ...any) // if not nil, called at the end of each call
	room  chan struct{}        // of programs at once, over all functions; nil: no limit

	mu      sync.Mutex // protects the fields below; not held while a program is called, which may call back
	node    string     // FBUS_NODE of the programs
	offered map[string]*offered
	running map[*offered]struct{} // the same and replaced ones, until they are closed
	retired sync.WaitGroup        // the replaced ones
}

// offered is a program that is on the bus.
type offered struct {
	*exec.Function
	f *function

	// mu of the worker protects the fields below.
	note    string      // why no process is ready
	slots   int         // calls for which programs can be started now
	limited *args.Error // why these are fewer than f.calls; nil: they are not
}

// newWorker makes a worker of these functions, whose programs find the bus at node, if
// it is known yet. At most so many of them run at once, 0: no limit. It offers nothing yet. The
// caller must close it. If stop returns true, the functions that are left are not started: the error is
// errStopped.
func newWorker(list []*function, most int, node string, log, ended func(string, ...any), stop func() bool) (*worker, error) {
	w := &worker{
		bus: &bus.Worker{Notice: log, MaxRunning: min(most, maxSlots)}, log: log, ended: ended, node: node,
		offered: map[string]*offered{}, running: map[*offered]struct{}{},
	}
	if most > 0 {
		w.room = make(chan struct{}, most)
	}
	made, failed := make([]*offered, len(list)), make([]error, len(list))
	severally(len(list), func(i int) {
		if failed[i] = errStopped; !stop() {
			made[i], failed[i] = w.make(list[i])
		}
	})
	var wrong problems
	for i, o := range made {
		if failed[i] == errStopped {
			w.close()
			return nil, errStopped
		}
		if failed[i] != nil {
			wrong = append(wrong, explain(failed[i]))
			continue
		}
		w.mu.Lock()
		w.offered[o.f.name] = o
		w.bus.Add(w.offer(o), w.handler(o))
		w.tell(o)
		w.mu.Unlock()
	}
	if len(wrong) > 0 {
		w.close()
		return nil, wrong.err()
	}
	return w, nil
}

// errStopped is that a signal came while functions were started.
var errStopped = errors.New("stopped while functions were started")

// atOnce is how many functions are started, or closed, at a time: each waits for processes.
const atOnce = 8

// severally calls do with each number below n, some at a time.
func severally(n int, do func(i int)) {
	var all sync.WaitGroup
	var next atomic.Int64
	for range min(n, atOnce) {
		all.Go(func() { // ends with the last number
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	all.Wait()
}

// make starts what a function needs before its first call.
func (w *worker) make(f *function) (*offered, error) {
	o := &offered{f: f, slots: f.calls}
	spec, err := f.spec(w.log)
	if err != nil {
		return nil, err
	}
	if !f.noNode {
		w.mu.Lock()
		spec.Node = w.node
		w.mu.Unlock()
	}
	spec.Room = w.room
	spec.Note = func(why string) { w.noted(o, why) }
	spec.Limit = func(slots int, why *args.Error) { w.limit(o, slots, why) }
	if o.Function, err = exec.New(spec); err != nil {
		return nil, f.at(err)
	}
	w.mu.Lock()
	w.running[o] = struct{}{}
	node := w.node
	w.mu.Unlock()
	if node != spec.Node && !f.noNode { // it was found in the meantime
		o.SetNode(node)
	}
	return o, nil
}

// offer returns the function in the form that the bus needs.
func (w *worker) offer(o *offered) bus.Offer {
	return bus.Offer{
		Name: o.f.name, Slots: o.f.calls, Idempotent: o.f.idempotent, Description: o.f.description,
		Arguments: o.Arguments(), Takes: o.f.takes, Schema: o.f.schema, Attributes: o.f.attributes,
	}
}

// noted takes the reason why a function has no process ready.
func (w *worker) noted(o *offered, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o.note = why
	if w.offered[o.f.name] == o && o.limited == nil {
		w.bus.SetNote(o.f.name, why)
	}
}

// limit takes the number of calls for which a function's program can be started.
func (w *worker) limit(o *offered, slots int, why *args.Error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o.slots, o.limited = slots, why
	w.tell(o)
}

// tell reports to the bus how many slots a function has, and why it has fewer than it should,
// or no process ready, unless the function was replaced. w.mu is held.
func (w *worker) tell(o *offered) {
	name, ctx := o.f.name, context.Background() // it ends with the connection
	switch {
	case w.offered[name] != o:
	case o.limited == nil:
		w.bus.SetLimit(ctx, name, o.f.calls, o.note, nil)
	case o.slots > 0:
		w.bus.SetLimit(ctx, name, o.slots, o.limited.Message, nil)
	default:
		w.bus.SetLimit(ctx, name, 0, o.note, o.limited)
	}
}

// put adds a function while the worker runs, or replaces the one of its name, whose
// calls may take as long as drain to end. If it fails, the old one stays.
func (w *worker) put(ctx context.Context, f *function, drain time.Duration) error {
	o, err := w.make(f)
	if err != nil {
		return err
	}
	old, err := w.bus.Put(ctx, w.offer(o), w.handler(o))
	if err != nil {
		w.retire(ctx, o, old, 0)
		return err
	}
	w.mu.Lock()
	was := w.offered[f.name]
	w.offered[f.name] = o
	w.tell(o) // it may have changed in the meantime
	w.mu.Unlock()
	if was != nil {
		w.retire(ctx, was, old, drain)
	}
	return nil
}

// remove withdraws a function; its calls may take as long as drain to end.
func (w *worker) remove(ctx context.Context, name string, drain time.Duration) {
	r := w.bus.Remove(ctx, name)
	w.mu.Lock()
	o := w.offered[name]
	delete(w.offered, name)
	w.mu.Unlock()
	w.retire(ctx, o, r, drain)
}

// retire closes a program when its calls have ended, or their time is up.
func (w *worker) retire(ctx context.Context, o *offered, r *bus.Retired, drain time.Duration) {
	w.retired.Go(func() { // ends with the calls, or the time
		limit, cancel := context.WithTimeout(ctx, drain)
		defer cancel()
		if r.Wait(limit) != nil && ctx.Err() == nil {
			w.log("%s: calls of the old version were ended before they finished", o.f.name)
			o.Kill()
		}
		w.drop(o)
	})
}

// drop closes a program after its running calls.
func (w *worker) drop(o *offered) {
	o.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.running, o)
}

// get returns the offered function of that name, or nil.
func (w *worker) get(name string) *offered {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.offered[name]
}

// names lists the offered functions.
func (w *worker) names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.offered))
}

// setNode sets where the programs find the bus.
func (w *worker) setNode(addr string) {
	w.mu.Lock()
	w.node = addr
	w.mu.Unlock()
	for _, o := range w.all() {
		if !o.f.noNode {
			o.SetNode(addr)
		}
	}
}

// kill ends all calls at once.
func (w *worker) kill() {
	for _, o := range w.all() {
		o.Kill()
	}
}

// all lists the offered functions, and replaced ones that are not closed yet.
func (w *worker) all() []*offered {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.running))
}

// close closes the connection, and all programs after their running calls.
func (w *worker) close() {
	w.bus.Close()
	w.retired.Wait()
	w.mu.Lock()
	w.offered = map[string]*offered{}
	w.mu.Unlock()
	list := w.all()
	severally(len(list), func(i int) { w.drop(list[i]) })
}

// handler adapts a program to the bus.
func (w *worker) handler(fn *offered) bus.Handler {
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
		call := &exec.Call{
			ID: inv.Call, Caller: inv.Caller, Deadline: inv.Deadline,
			Job: inv.Job, Attempt: inv.Attempt, Origin: inv.Origin, Trace: inv.Trace,
			Kind: inv.Kind, Args: inv.Args, HasInput: inv.HasInput, Input: inv.Head(), Rest: inv.Rest(),
			Stdout: inv.Stdout, Stderr: inv.Stderr,
		}
		if fn.f.reports() {
			call.Progress = func(done, total uint64, text string) {
				inv.Progress(bus.Progress{Done: done, Total: total, Text: text})
			}
		}
		res := fn.Run(run, call)
		if w.ended != nil {
			w.ended("call %s of %s: %s %d %s", inv.Call, inv.Caller, res.Source, res.Status, res.Code)
		}
		if res.Source == args.FromBus {
			res.Message, res.Hint = asFlags(res.Message), asFlags(res.Hint)
		}
		return bus.Result{End: res.End, Output: res.Output}
	}
}

// forOthers returns a node's address for processes in other directories.
func forOthers(addr bus.Addr) string {
	path, err := filepath.Abs(addr.String())
	if addr.Network() != "unix" || err != nil || wire.CheckPath(path) != nil { // then a relative one may do
		return addr.String()
	}
	return path
}

// workerOptions are the flags of the commands that are workers.
type workerOptions struct {
	node      string
	wait      durationValue
	worker    string
	drain     durationValue
	keepAlive durationValue
	quiet     bool
	verbose   bool

	maxRunning countValue // programs at once, over all functions; 0: no limit; a flag of fbus up
}

func newWorkerOptions() workerOptions {
	return workerOptions{wait: durationValue{allow: true}, drain: durationValue{d: time.Minute}}
}

func (o *workerOptions) flags() []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{Name: "drain", Usage: "let running calls finish for `D` at shutdown", Value: &o.drain},
		&cli.StringFlag{Name: "worker", Usage: "call this worker `NAME`; default: the host's name", Destination: &o.worker},
		nodeFlag(&o.node),
		keepAliveFlag(&o.keepAlive, clientKeepAlive),
		&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node", Value: &o.wait},
		quietFlag(&o.quiet),
		verboseFlag(&o.verbose, "report how each call ended"),
	}
}

func nodeFlag(dest *string) cli.Flag {
	return &cli.StringFlag{Name: "node", Usage: "talk to the node at `ADDR`, a path or HOST[:PORT]", Destination: dest}
}

func (o *workerOptions) workerName() string { return cmp.Or(o.worker, hostname()) }

// checkWorkerName refuses names that nodes give to each other.
func checkWorkerName(name string) error {
	if strings.HasPrefix(name, "@") {
		return usage("worker %s: a name that begins with @ is that of another node", name)
	}
	return nil
}

// serve offers these functions until a signal, then drains, starting with the node if it
// runs in this process. A second signal kills. It calls ready after the first offers, and
// reload at each hangup.
func (o *workerOptions) serve(list []*function, n *servedNode, stderr io.Writer, signals, hangups <-chan os.Signal, ready func(*worker), reload func(context.Context, *worker)) error {
	if err := checkWorkerName(o.worker); err != nil {
		return err
	}
	if err := keeper.BecomeReaper(); err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	defer keeper.ReapStrangers()()
	log, ended := logger(stderr)
	if !o.verbose {
		ended = nil
	}
	outliveReaders()
	tuned := tuning.Start(memoryMark)
	defer tuned.Stop()
	if n != nil {
		tuned.Follow(n.Node)
	}
	p, _ := find.Node(o.node) // processes that are started ahead need it
	w, err := newWorker(list, o.maxRunning.n, forOthers(p.Addr), log, ended, func() bool { return len(signals) > 0 })
	if err == errStopped {
		return statusOnly(exitSignal + int((<-signals).(syscall.Signal)))
	}
	if err != nil {
		return err
	}
	defer w.close()
	warnOfLimits(list, log)
	wait := o.wait
	w.bus.Options = &bus.Options{Name: o.workerName(), KeepAlive: o.keepAlive.d}
	w.bus.Dial = func(ctx context.Context, dial *bus.Options) (*bus.Client, error) {
		c, p, err := connect(ctx, o.node, wait, dial)
		if err == nil {
			w.setNode(forOthers(p.Addr))
		}
		return c, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- w.bus.Start(ctx) }() // ends with the first connection
	select {
	case err := <-started:
		wait = durationValue{} // later the worker itself decides when to try again
		if err != nil {
			return troubled(err, o.node)
		}
	case sig := <-signals:
		cancel()
		<-started
		return statusOnly(exitSignal + int(sig.(syscall.Signal)))
	}
	ready(w)
	served := make(chan error, 1)
	go func() { served <- w.bus.Run(ctx) }() // ends when it is cancelled or denied
	running := w.bus.Running
	if n != nil {
		running = n.Open // queued calls will run here
	}
	defer watchdog(w.log, func() { running() })()
	err = work(ctx, served, signals, hangups, func(ctx context.Context) { reload(ctx, w) })
	defer notifyDraining(w.log, running, o.drain.d)()
	limit, stop := drainTime(o.drain.d, signals)
	defer stop()
	if n != nil && err == nil {
		n.drain(limit, o.drain.d) // its queued calls still run here
	}
	cancel()
	if err == nil {
		err = <-served
	}
	if w.bus.Drain(limit) != nil {
		w.log("calls were ended before they finished")
		w.bus.Disconnect() // first, or the caller of a program that ends quickly would see it as cancelled
		w.kill()
	}
	return troubled(err, o.node)
}

// work returns at a signal, or when the worker has ended by itself. It cancels a reload
// that is running then.
func work(ctx context.Context, served chan error, signals, hangups <-chan os.Signal, reload func(context.Context)) error {
	var reloads sync.WaitGroup
	defer reloads.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reloads.Go(func() { // ends with ctx
		for {
			select {
			case <-hangups: // one at a time: the next one waits in the channel
				reload(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	select {
	case err := <-served:
		return err
	case <-signals:
		return nil
	}
}
