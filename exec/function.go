package exec

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"fbus/bus/args"
	"fbus/exec/keeper"
)

// Function is a program that can be called. Its methods may be used from
// several goroutines.
type Function struct {
	spec    Spec
	program program
	words   template
	pool    *keeper.Pool
	slots   chan struct{} // nil: no limit
	warm    *warm         // nil: nothing is started ahead
	stay    *residents    // nil: no process stays
	ownNode string        // FBUS_NODE from Spec.Env, for calls without another
	outage  outage
	numbers numbers
	ran     atomic.Int64 // programs that were executed and have exited

	mu      sync.Mutex // guards what follows
	node    string
	running map[*run]struct{}
	closed  bool
	killed  bool           // Close need not be kind
	ends    sync.WaitGroup // one for every running call; Add only under mu while not closed
}

// New checks that spec can be run at all and starts its first keeper, and the
// processes that wait for calls. The error is an *args.Error wherever the offer is
// at fault. Close ends what New began.
func New(spec Spec) (*Function, error) {
	f, err := plan(spec)
	if err != nil {
		return nil, err
	}
	f.pool, err = keeper.NewPool(f.setup())
	if err != nil {
		return nil, args.CannotStart(args.AsError(err, args.CodeCannotRun))
	}
	if spec.Slots > 0 {
		f.slots = make(chan struct{}, spec.Slots)
	}
	switch {
	case spec.Warm > 0:
		f.warm = newWarm(f)
	case spec.Resident != NotResident:
		f.stay = newResidents(f)
		f.stay.begin()
	}
	return f, nil
}

// Check refuses what New would refuse, but starts nothing. It returns the phrase of
// Arguments.
func Check(spec Spec) (arguments string, err error) {
	f, err := plan(spec)
	if err != nil {
		return "", err
	}
	return f.Arguments(), nil
}

// plan returns a function of which nothing is started.
func plan(spec Spec) (*Function, error) {
	if len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return nil, usage("", "no program is given")
	}
	if spec.Grace <= 0 {
		spec.Grace = DefaultGrace
	}
	prog, err := findProgram(&spec)
	if err != nil {
		return nil, err
	}
	words, err := parseTemplate(&spec)
	if err != nil {
		return nil, err
	}
	if words.dynamic {
		spec.Args = ArgsArgv
	}
	if err := checkModes(&spec); err != nil {
		return nil, err
	}
	f := &Function{spec: spec, program: prog, words: words, node: spec.Node, running: make(map[*run]struct{})}
	f.ownNode, _ = lookup(spec.Env, "FBUS_NODE")
	f.outage.f = f
	f.numbers.most = (spec.Slots + max(spec.Pipeline, 1) - 1) / max(spec.Pipeline, 1)
	return f, nil
}

// setup returns what all processes of this function have in common.
func (f *Function) setup() keeper.Setup {
	return keeper.Setup{
		Path: f.program.path, Argv: f.spec.Argv, Env: baseEnviron(&f.spec), Dir: f.program.dir,
		Grace: f.spec.Grace, Memory: f.spec.Memory,
	}
}

// started notes that a program was executed.
func (f *Function) started() {
	f.ran.Add(1)
	f.outage.succeeded()
}

func (f *Function) logf(format string, args ...any) {
	if f.spec.Log != nil {
		f.spec.Log(format, args...)
	}
}

// Arguments describes in one phrase how this function takes its arguments.
func (f *Function) Arguments() string {
	switch {
	case f.spec.Takes == TakesInput:
		return "none: it takes input on stdin"
	case f.spec.Resident == LineByLine:
		return "a line on stdin, resident"
	case f.spec.Resident == JSONRPC:
		return "JSON-RPC params, resident"
	case f.spec.Warm > 0:
		return phrases[f.spec.Encoding] + " on stdin, warm"
	case f.spec.Args == ArgsStdin:
		return phrases[f.spec.Encoding] + " on stdin"
	}
	if !f.words.dynamic {
		return "command line"
	}
	return "command line: " + f.words.uses()
}

var phrases = [...]string{
	args.EncodeJSON: "JSON", args.EncodeMsgpack: "msgpack", args.EncodeLines: "lines", args.EncodeNUL: "NUL-terminated strings",
}

// MemoryBy names what limits programs to Spec.Memory: "cgroup", "rlimit", or ""
// without a limit.
func (f *Function) MemoryBy() string { return f.pool.MemoryBy() }

// SetNode sets FBUS_NODE for calls from now on; "" unsets it. Processes that
// were started with another one are replaced, resident ones after their calls.
func (f *Function) SetNode(addr string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.node = addr
	if f.closed {
		return
	}
	switch {
	case f.warm != nil:
		f.warm.setNode(f.nodeFor(addr))
	case f.stay != nil:
		f.stay.setNode(f.nodeFor(addr))
	}
}

func (f *Function) nodeFor(addr string) string { return cmp.Or(addr, f.ownNode) }

// Run runs the program for one call. It returns when the program and all that
// it started are gone and what they wrote was passed on; when a resident
// process has answered, or when it is gone. A resident's answer, or the last
// 64 KiB of it, is in the Result.
func (f *Function) Run(ctx context.Context, c *Call) Result {
	if err := f.spec.Takes.refuse(c); err != nil {
		return failure(err)
	}
	if f.stay != nil {
		return f.stay.run(ctx, c)
	}
	in, err := f.prepare(c)
	if err != nil {
		return failure(err)
	}
	r := &run{f: f, call: c, in: in}
	if !f.enter(r) {
		return notOffered()
	}
	defer f.leave(r)
	return r.do(ctx)
}

// limited returns a context that ends with the time of a run. A wait for room does not count:
// nothing runs yet.
func (f *Function) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if f.spec.Timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, f.spec.Timeout, errTimeout)
}

// enter counts a call, unless the function is closed. r is nil if a resident serves it.
func (f *Function) enter(r *run) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.ends.Add(1)
	if r != nil {
		f.running[r] = struct{}{}
		r.node = f.nodeFor(f.node)
	}
	return true
}

func (f *Function) leave(r *run) {
	f.mu.Lock()
	delete(f.running, r)
	f.mu.Unlock()
	f.ends.Done()
}

// Kill kills every process of every running call at once. The calls end as
// cancelled.
func (f *Function) Kill() {
	f.mu.Lock()
	f.killed = true
	held := slices.Collect(maps.Keys(f.running))
	f.mu.Unlock()
	for _, r := range held {
		r.end(cancelled, true)
	}
	if f.stay != nil {
		f.stay.kill()
	}
}

// Close lets no further Run start, waits for those under way, and ends the
// processes that wait for calls and the keepers.
func (f *Function) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.outage.close()
	f.ends.Wait()
	f.mu.Lock()
	killed := f.killed
	f.mu.Unlock()
	switch {
	case f.warm != nil:
		f.warm.close(killed)
	case f.stay != nil:
		f.stay.close(killed)
	}
	f.pool.Close()
}

// numbers gives each process of a function its FBUS_SLOT.
type numbers struct {
	most int // of them; 0: no limit

	mu  sync.Mutex // protects the field below
	use []int      // processes, by number
}

// take returns the lowest free number. If a process that is being replaced still has the
// last one, its successor shares it.
func (n *numbers) take() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := slices.Index(n.use, 0)
	switch {
	case k >= 0:
	case n.most == 0 || len(n.use) < n.most:
		k = len(n.use)
		n.use = append(n.use, 0)
	default:
		k = slices.Index(n.use, slices.Min(n.use))
	}
	n.use[k]++
	return k
}

func (n *numbers) release(k int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.use[k]--
}

// enterSlot waits for a slot, and for room; the error is ctx's.
func (f *Function) enterSlot(ctx context.Context) error {
	if err := enter(ctx, f.slots); err != nil {
		return err
	}
	err := enter(ctx, f.spec.Room)
	if err != nil {
		leave(f.slots)
	}
	return err
}

// enter waits until there is room for one more in a channel, which may be nil.
func enter(ctx context.Context, in chan struct{}) error {
	if in != nil {
		select {
		case in <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := ctx.Err()
	if err != nil {
		leave(in)
	}
	return err
}

func leave(in chan struct{}) {
	if in != nil {
		<-in
	}
}
