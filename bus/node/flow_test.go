package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/wire"
)

var soak = flag.Duration("soak", 400*time.Millisecond, "how long the tests of memory and latency keep a node busy")

// endlessly writes to a stream until that fails.
func endlessly(_ context.Context, stream io.Writer) bus.Result {
	for chunk := make([]byte, 64<<10); ; {
		if _, err := stream.Write(chunk); err != nil {
			return bus.Result{End: bus.End{Source: args.FromSignal, Status: 141, Code: "SIGPIPE"}}
		}
	}
}

// blockedWriter takes nothing until it is closed.
type blockedWriter chan struct{}

func (b blockedWriter) Write([]byte) (int, error) {
	<-b
	return 0, io.ErrClosedPipe
}

// TestNodeProcess is no test: it is the node that others measure.
func TestNodeProcess(t *testing.T) {
	path := os.Getenv("FBUS_TEST_NODE")
	if path == "" {
		t.Skip("plays a child process")
	}
	n, err := node.New(node.Config{Network: "test"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := node.Listen(path, false)
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends the process with its parent
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println("ready")
	n.Serve(l)
}

// process runs a node by itself, so that its memory can be told from others'.
type process struct {
	t    testing.TB
	pid  int
	path string
}

func startProcess(t testing.TB) *process {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus.sock")
	cmd := exec.Command(os.Args[0], "-test.run=^TestNodeProcess$")
	cmd.Env = append(os.Environ(), "FBUS_TEST_NODE="+path)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, error %v", line, err)
	}
	return &process{t, cmd.Process.Pid, path}
}

// peak is the most memory the node ever had resident, in bytes.
func (p *process) peak() int64 {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		p.t.Skip("no /proc to read memory from")
	}
	var kib int64
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	fmt.Sscan(after, &kib)
	return kib << 10
}

// thorough reports whether tests are to take their time: FBUS_SOAK=1.
func thorough() bool { return os.Getenv("FBUS_SOAK") != "" }

// small checks that the node has stayed under 64 MB.
func (p *process) small() {
	p.t.Helper()
	p.under(64e6)
}

func (p *process) under(limit int64) {
	p.t.Helper()
	if raceEnabled {
		limit *= 5 // shadow memory
	}
	if peak := p.peak(); peak > limit {
		p.t.Errorf("the node took %d bytes", peak)
	} else {
		p.t.Logf("the node took %.1f MB", float64(peak)/1e6)
	}
}

// watch makes calls beside for a while.
func (b *bystander) watch(d time.Duration) {
	b.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		b.works()
	}
	b.t.Logf("the worst call beside took %v", b.worst)
	b.sane(time.Second)
}

// TestSlowReaders: endless output that nobody takes costs the node a bounded
// amount, whether the program that called reads no more or its connection does.
func TestSlowReaders(t *testing.T) {
	noLeaks(t)
	p := startProcess(t)
	b := beside(t, p.path)
	w := dial(t, p.path)
	started := make(chan struct{}, 100)
	flood := func(ctx context.Context, inv *bus.Invocation) bus.Result {
		started <- struct{}{}
		stream := inv.Stdout
		if inv.Function == "err" {
			stream = inv.Stderr
		}
		return endlessly(ctx, stream)
	}
	offerFunc(t, w, "out", 100, flood)
	offerFunc(t, w, "err", 100, flood)
	// Clients whose writers are stuck.
	stuck := make(blockedWriter)
	ctx, stop := context.WithCancel(bg())
	c := dial(t, p.path)
	var calls []<-chan outcome
	for range 10 {
		calls = append(calls, post(ctx, c, bus.Request{Function: "out", Stdout: stuck}), post(ctx, c, bus.Request{Function: "err", Stderr: stuck}))
	}
	// Peers that read nothing from their sockets, with all the credit there is.
	for range 5 {
		r := rawUnix(t, nil, p.path).greet()
		for id := uint64(1); id <= 10; id++ {
			f := callFrame(id, []string{"out", "err"}[id%2], "")
			f.WindowOutput, f.WindowStderr = wire.MaxWindow, wire.MaxWindow
			r.send(f)
		}
	}
	for range 70 {
		await(t, "a call", started)
	}
	b.watch(*soak)
	p.small()
	close(stuck)
	stop()
	for _, ch := range calls {
		await(t, "the end", ch)
	}
}

// TestSlowReader: one reader that takes a little now and then.
func TestSlowReader(t *testing.T) {
	noLeaks(t)
	p := startProcess(t)
	b := beside(t, p.path)
	offerFunc(t, dial(t, p.path), "out", 1, func(ctx context.Context, inv *bus.Invocation) bus.Result { return endlessly(ctx, inv.Stdout) })
	r := rawUnix(t, nil, p.path).greet()
	f := callFrame(1, "out", "")
	f.WindowOutput = wire.MaxWindow
	r.send(f)
	got := 0
	for end := time.Now().Add(*soak); time.Now().Before(end); {
		k := len(want[*wire.DataFrame](r).Payload)
		r.send(&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: uint64(k)})
		got += k
		b.works()
	}
	t.Logf("%d MB were read, the worst call beside took %v", got>>20, b.worst)
	b.sane(time.Second)
	p.small()
	r.nc.Close()
}

// TestQueuedGigabytes: a thousand queued calls that each have a gigabyte to send
// hold next to nothing at the node.
func TestQueuedGigabytes(t *testing.T) {
	noLeaks(t)
	p := startProcess(t)
	b := beside(t, p.path)
	g := newGate()
	offerFunc(t, dial(t, p.path), "f", 1, g.handle)
	ctx, stop := context.WithCancel(bg())
	clients := []*bus.Client{dial(t, p.path), dial(t, p.path), dial(t, p.path)}
	var calls []<-chan outcome
	for i := range 1000 {
		calls = append(calls, post(ctx, clients[i%3], bus.Request{Function: "f", Input: &endless{left: 1 << 30}}))
	}
	eventually(t, "a queue", func() bool {
		o := await(t, "fbus.functions", post(bg(), b.client, bus.Request{Function: "fbus.functions", Args: args.List("f")}))
		return strings.Contains(o.out, `"queued":999,`)
	})
	b.watch(*soak / 2)
	p.small()
	stop()
	for _, ch := range calls {
		wantErr(t, await(t, "the end", ch).err, context.Canceled)
	}
}

// TestFullBuffers: queued calls with whole inputs fill the buffers; then new
// ones are busy, those queued are served, and no connection is closed.
func TestFullBuffers(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{Queue: 10000})
	g := newGate()
	offerFunc(t, dial(t, path), "f", 1, g.handle)
	sender := dial(t, path)
	offerFunc(t, sender, "big", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write(make([]byte, 1<<20))
		return bus.Result{}
	})
	reading, half := io.Pipe()
	bulk := post(bg(), dial(t, path), bus.Request{Function: "big", Stdout: half})
	c := rawUnix(t, n, path).greet()
	input := strings.Repeat("x", wire.MaxInlineInput)
	// One at a time, each with an answer: while frames are read their buffers count
	// as well.
	for id, full := uint64(1), false; !full; id += 2 {
		c.send(callFrame(id, "f", input), callFrame(id+1, "-", ""))
		for {
			f := want[*wire.EndFrame](c)
			full = full || f.ID == id && string(f.Code) == args.CodeBusy
			if f.ID == id+1 {
				break
			}
		}
		if held := n.BudgetUsed(); full != (held >= node.DefaultBuffers) && held > node.DefaultBuffers+1<<20 {
			t.Fatalf("%d bytes are held", held)
		}
	}
	o := await(t, "busy", post(bg(), dial(t, path), bus.Request{Function: "f", Input: strings.NewReader(input)}))
	wantErr(t, o.err, bus.ErrBusy)
	if k := n.Metrics().Node.RefusedCalls[args.CodeBusy]; k != 2 {
		t.Errorf("%d calls are counted as refused", k)
	}
	// So is a call with long arguments; its connection stands.
	o = await(t, "busy", post(bg(), dial(t, path), bus.Request{Function: "f", Args: args.List(strings.Repeat("x", wire.MaxArgs-100))}))
	wantErr(t, o.err, bus.ErrBusy)
	// What runs goes on, frames that come in pieces included.
	got := make(chan int64, 1)
	go func() {
		k, _ := io.Copy(io.Discard, reading)
		got <- k
	}()
	if o := await(t, "the call that runs", bulk); o.err != nil {
		t.Error(o.err)
	}
	half.Close()
	if k := await(t, "its output", got); k != 1<<20 {
		t.Errorf("%d bytes", k)
	}
	c.nc.Close()
	eventually(t, "room", func() bool { return n.BudgetUsed() < 1<<20 && n.Open() == 0 })
}

// TestStalledCallsShareAConnection: a hundred callers that take nothing do not
// keep the hundred and first from its output.
func TestStalledCallsShareAConnection(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	w := dial(t, path)
	offerFunc(t, w, "out", 100, func(ctx context.Context, inv *bus.Invocation) bus.Result { return endlessly(ctx, inv.Stdout) })
	const size = 8 << 20
	offerFunc(t, w, "big", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write(make([]byte, size))
		return bus.Result{}
	})
	c := dial(t, path)
	ctx, stop := context.WithCancel(bg())
	stuck := make(blockedWriter)
	reached := make(chan struct{}, 100)
	var calls []<-chan outcome
	for range 100 {
		calls = append(calls, post(ctx, c, bus.Request{Function: "out", Stdout: &signal{stuck, reached}}))
	}
	for range 100 {
		await(t, "a stalled call", reached)
	}
	o := await(t, "the call beside", post(bg(), c, bus.Request{Function: "big"}))
	if o.err != nil || len(o.out) != size {
		t.Errorf("%d bytes, error %v", len(o.out), o.err)
	}
	close(stuck)
	stop()
	for _, ch := range calls {
		await(t, "the end", ch)
	}
}

// signal says that a write has begun, once.
type signal struct {
	io.Writer
	reached chan<- struct{}
}

func (s *signal) Write(p []byte) (int, error) {
	if s.reached != nil {
		s.reached <- struct{}{}
		s.reached = nil
	}
	return s.Writer.Write(p)
}

// TestStalledInput: a worker that reads no input stops that caller, who can
// still cancel, and nobody else.
func TestStalledInput(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	b := beside(t, path)
	g := newGate()
	offerFunc(t, dial(t, path), "f", 20, g.handle)
	c := dial(t, path)
	ctx, stop := context.WithCancel(bg())
	var calls []<-chan outcome
	for range 20 {
		calls = append(calls, post(ctx, c, bus.Request{Function: "f", Input: &endless{left: 1 << 40}}))
	}
	for range 20 {
		await(t, "a call", g.started)
	}
	b.watch(*soak / 10)
	if o := await(t, "a call on that connection", post(bg(), c, bus.Request{Function: "beside"})); o.err != nil {
		t.Error(o.err)
	}
	stop()
	for _, ch := range calls {
		wantErr(t, await(t, "the end", ch).err, context.Canceled)
	}
	eventually(t, "the workers' ends", func() bool { return n.Live() == 0 })
	b.sane(time.Second)
	if n.Exposure() != 0 {
		t.Errorf("an exposure of %d is left", n.Exposure())
	}
}

// TestInputNotTaken: a program that reads nothing of a long input and ends well
// has ended well.
func TestInputNotTaken(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	offerFunc(t, dial(t, path), "f", 1, func(context.Context, *bus.Invocation) bus.Result {
		return bus.Result{Output: []byte("done")}
	})
	c := dial(t, path)
	for range 200 {
		o := await(t, "the call", post(bg(), c, bus.Request{Function: "f", Input: &endless{left: 1 << 30}}))
		if o.err != nil || o.out != "done" {
			t.Fatalf("%q, error %v", o.out, o.err)
		}
	}
	eventually(t, "no credit left out", func() bool { return n.Exposure() == 0 })
}

// TestStderrFlood arrives whole, and does not keep stdout.
func TestStderrFlood(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	const size = 16 << 20
	offerFunc(t, dial(t, path), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		done := make(chan struct{})
		go func() { // ends with the flood
			defer close(done)
			inv.Stderr.Write(bytes.Repeat([]byte("e"), size))
		}()
		io.WriteString(inv.Stdout, "out")
		<-done
		return bus.Result{}
	})
	var stderr lockedBuffer
	o := await(t, "the call", post(bg(), dial(t, path), bus.Request{Function: "f", Stderr: &stderr}))
	if o.err != nil || o.out != "out" || len(stderr.String()) != size {
		t.Errorf("%q, %d bytes of stderr, error %v", o.out, len(stderr.String()), o.err)
	}
}

// TestCreditOnTheWire: the node grants a sender no more than its receiver has
// granted, and never more than 4 MiB at once; nothing without a grant.
func TestCreditOnTheWire(t *testing.T) {
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		n, path := start(t, node.Config{})
		w, c := connect(t, n, path).greet(), connect(t, n, path).greet()
		w.offer("f", 9, 0)
		// No credit: the worker gets none, until there is.
		f := callFrame(1, "f", "")
		f.WindowOutput, f.WindowStderr = 0, 0
		c.send(f)
		if got := want[*wire.CallFrame](w); got.WindowOutput != 0 || got.WindowStderr != 0 {
			t.Errorf("windows of %d and %d", got.WindowOutput, got.WindowStderr)
		}
		c.send(&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 5})
		if g := want[*wire.GrantFrame](w); g.Bytes != 5 || g.Stream != wire.Output {
			t.Errorf("%+v", g)
		}
		w.send(&wire.DataFrame{ID: 1, Stream: wire.Output, Payload: []byte("12345")})
		if d := want[*wire.DataFrame](c); string(d.Payload) != "12345" {
			t.Errorf("%+v", d)
		}
		w.send(exit(1, 0))
		want[*wire.EndFrame](c)
		// Input: granted by the worker, and only that much.
		c.send(openFrame(2, "f"))
		want[*wire.CallFrame](w)
		w.send(&wire.GrantFrame{ID: 2, Bytes: 3})
		if g := want[*wire.GrantFrame](c); g.ID != 2 || g.Bytes != 3 || g.Stream != wire.Input {
			t.Errorf("%+v", g)
		}
		c.send(&wire.DataFrame{ID: 2, Payload: []byte("abc")}, &wire.EOFFrame{ID: 2})
		if d := want[*wire.DataFrame](w); string(d.Payload) != "abc" {
			t.Errorf("%+v", d)
		}
		want[*wire.EOFFrame](w)
		// More than was granted costs the worker its connection, and the caller
		// only that call.
		w.send(&wire.DataFrame{ID: 2, Stream: wire.Stderr, Payload: make([]byte, 300<<10)})
		if code := w.closed(); code != args.CodeProtocol {
			t.Errorf("code %q", code)
		}
		if e := want[*wire.EndFrame](c); string(e.Code) != args.CodeWorkerLost {
			t.Errorf("%+v", e)
		}
	})
}

// TestWindowsGrow, and never beyond 4 MiB, however large the steps.
func TestWindowsGrow(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	w, c := rawUnix(t, n, path).greet(), rawUnix(t, n, path).greet()
	w.offer("f", 1, 0)
	f := callFrame(1, "f", "")
	f.WindowOutput = wire.MaxWindow
	c.send(f)
	credit := int64(want[*wire.CallFrame](w).WindowOutput)
	most := credit
	for range 200 {
		size := min(credit, 60<<10)
		w.send(&wire.DataFrame{ID: 1, Stream: wire.Output, Payload: make([]byte, size)})
		credit -= size
		for got := 0; got < int(size); {
			d := want[*wire.DataFrame](c)
			got += len(d.Payload)
		}
		c.send(&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: uint64(size)})
		// Whatever was granted by now; an answer to an OFFER comes behind it.
		w.send(&wire.OfferFrame{Seq: 2, Name: []byte("g"), Slots: 1})
		for {
			f, err := w.next()
			if err != nil {
				t.Fatal(err)
			}
			if g, ok := f.(*wire.GrantFrame); ok {
				credit += int64(g.Bytes)
				most = max(most, credit)
			}
			if _, ok := f.(*wire.OfferedFrame); ok {
				break
			}
		}
	}
	if most <= wire.InitialWindow || most > wire.MaxWindow {
		t.Errorf("the worker had a credit of %d at most", most)
	}
}

// TestRelayBeside: many streams in both directions at once, each exact.
func TestRelayBeside(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	cat := func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write(inv.Head())
		if inv.Rest() != nil {
			io.Copy(inv.Stdout, inv.Rest())
		}
		return bus.Result{}
	}
	for i := range 3 {
		offerFunc(t, named(t, path, fmt.Sprint(i)), "cat", 10, cat)
	}
	var calls []<-chan outcome
	c := []*bus.Client{dial(t, path), dial(t, path)}
	for i := range 30 {
		data := bytes.Repeat([]byte{byte(i), byte(i * 7), 1}, 100000+i)
		calls = append(calls, post(bg(), c[i%2], bus.Request{Function: "cat", Input: io.MultiReader(bytes.NewReader(data))}))
	}
	for i, ch := range calls {
		o := await(t, "a stream", ch)
		if data := bytes.Repeat([]byte{byte(i), byte(i * 7), 1}, 100000+i); o.err != nil || o.out != string(data) {
			t.Errorf("stream %d: %d of %d bytes, error %v", i, len(o.out), len(data), o.err)
		}
	}
	eventually(t, "no credit left out", func() bool { return n.Exposure() == 0 })
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
}

// TestStreamsOfCalls: fbus.calls shows how far each stream of a call is.
func TestStreamsOfCalls(t *testing.T) {
	_, path := start(t, node.Config{})
	worker := rawUnix(t, nil, path).greet()
	worker.offer("hold", 1, 0)
	caller := rawUnix(t, nil, path).greet()
	f := openFrame(1, "hold")
	f.Input, f.WindowOutput, f.WindowStderr = []byte("abc"), 100, 10
	caller.send(f)
	want[*wire.CallFrame](worker)
	worker.write(encode(&wire.GrantFrame{ID: 1, Bytes: 7}, &wire.DataFrame{ID: 1, Stream: wire.Output, Payload: []byte("four")}))
	want[*wire.GrantFrame](caller)
	want[*wire.DataFrame](caller)
	caller.write(encode(&wire.DataFrame{ID: 1, Payload: []byte("de")}))
	want[*wire.DataFrame](worker)

	c := dial(t, path)
	streams := func() string {
		o := await(t, "fbus.calls", post(bg(), c, bus.Request{Function: "fbus.calls"}))
		var i bus.CallInfo
		if err := json.Unmarshal([]byte(o.out), &i); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(i.Input, i.Output, i.Stderr)
	}
	if got := streams(); got != "{5 5 0 true} {4 96 0 true} {0 10 0 true}" {
		t.Error(got)
	}
	caller.write(encode(&wire.EOFFrame{ID: 1}))
	want[*wire.EOFFrame](worker)
	if got := streams(); got != "{5 5 0 false} {4 96 0 true} {0 10 0 true}" {
		t.Error(got)
	}
}
