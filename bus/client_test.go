//go:build linux

package bus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/wire"

	"go.uber.org/goleak"
)

// patience bounds every wait for an event: a test that reaches it has failed, on
// any machine.
const patience = time.Minute

func noLeaks(t testing.TB) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		for deadline := time.Now().Add(patience); ; {
			err := goleak.Find(before)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
}

func await[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("never came: %s", what)
		panic("unreachable")
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// serve runs a node at path; stop ends it, and may be called twice.
func serve(t testing.TB, path string) (n *node.Node, stop func()) {
	t.Helper()
	config := node.Config{Network: "test", Warn: func(format string, a ...any) {
		if text := fmt.Sprintf(format, a...); strings.Contains(text, "shutting down") { // no fault of a peer
			t.Errorf("a node warns: %s", text)
		}
	}}
	w, tcp := networks.Load(path)
	if tcp {
		config.Gate, config.Authority = w.(network).Authority, w.(network).Authority
	}
	n, err := node.New(config)
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	var listen func() error
	if tcp {
		l, err = net.Listen("tcp", path)
		listen = func() error { return n.ServeTCP(l) }
	} else {
		var ul *node.Listener
		ul, err = node.Listen(path, false)
		l, listen = ul, func() error { return n.Serve(ul) }
	}
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- listen() }() // ends when the listener is closed
	stop = sync.OnceFunc(func() {
		l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		n.Close()
	})
	t.Cleanup(stop)
	return n, stop
}

func start(t testing.TB) (*node.Node, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus.sock")
	n, _ := serve(t, path)
	return n, path
}

func dial(t testing.TB, path string) *bus.Client {
	t.Helper()
	c, err := bus.Dial(context.Background(), address(path), dialOptions(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func offer(t testing.TB, c *bus.Client, name string, slots int, h bus.Handler) *bus.Offering {
	t.Helper()
	off, err := c.Offer(context.Background(), bus.Offer{Name: name, Slots: slots}, h)
	if err != nil {
		t.Fatal(err)
	}
	return off
}

func echo(_ context.Context, inv *bus.Invocation) bus.Result {
	if inv.Rest() != nil {
		inv.Stdout.Write(inv.Head())
		io.Copy(inv.Stdout, inv.Rest())
		return bus.Result{}
	}
	return bus.Result{Output: inv.Head()}
}

// holder is a handler that runs until it is cancelled, and tells why.
type holder struct {
	started chan *bus.Invocation
	causes  chan error
}

func newHolder() *holder {
	return &holder{make(chan *bus.Invocation, 1000), make(chan error, 1000)}
}

func (h *holder) handle(ctx context.Context, inv *bus.Invocation) bus.Result {
	h.started <- inv
	<-ctx.Done()
	h.causes <- context.Cause(ctx)
	return bus.Result{End: bus.End{Source: args.FromSignal, Status: 143, Code: "SIGTERM"}}
}

// overrun makes a call whose time has to pass while it runs: again with a longer
// one if it was over before.
func (h *holder) overrun(t testing.TB, call func(limit time.Duration)) {
	t.Helper()
	for limit := 20 * time.Millisecond; len(h.started) == 0 && !t.Failed(); limit *= 2 {
		call(limit)
	}
	await(t, "the call", h.started)
	wantErr(t, await(t, "CANCEL", h.causes), bus.ErrDeadline)
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

// later makes a call and delivers its error.
func later(ctx context.Context, c *bus.Client, req *bus.Request) <-chan error {
	ch := make(chan error, 1)
	go func() { // ends with the call
		_, err := c.Call(ctx, req)
		ch <- err
	}()
	return ch
}

func bg() context.Context { return context.Background() }

// TestCancel: the caller is told at once, the worker why.
func TestCancel(t *testing.T) { over(t, testCancel) }

func testCancel(t *testing.T, path string) {
	noLeaks(t)
	n, _ := serve(t, path)
	h := newHolder()
	offer(t, dial(t, path), "f", 1, h.handle)
	c := dial(t, path)
	ctx, cancel := context.WithCancelCause(bg())
	mine := errors.New("mine")
	call := later(ctx, c, &bus.Request{Function: "f"})
	await(t, "the call", h.started)
	cancel(mine)
	wantErr(t, await(t, "the end", call), mine)
	wantErr(t, await(t, "CANCEL", h.causes), bus.ErrCancelled)
	h.overrun(t, func(limit time.Duration) {
		call := later(bg(), c, &bus.Request{Function: "f", Timeout: limit})
		wantErr(t, await(t, "the deadline", call), bus.ErrDeadline)
	})
	h.overrun(t, func(limit time.Duration) {
		ctx, stop := context.WithTimeout(bg(), limit)
		defer stop()
		err := await(t, "the deadline", later(ctx, c, &bus.Request{Function: "f"}))
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, bus.ErrDeadline) {
			t.Errorf("error %v", err)
		}
	})
	ctx, stop := context.WithCancel(bg())
	stop()
	wantErr(t, await(t, "the end", later(ctx, c, &bus.Request{Function: "f"})), context.Canceled)
	eventually(t, "no call", func() bool { return n.Open() == 0 })
	offer(t, c, "g", 1, echo)
	if _, err := c.Call(bg(), &bus.Request{Function: "g"}); err != nil {
		t.Errorf("after all this: %v", err)
	}
}

// TestStatuses: every way to end has its own error, and the result with it.
func TestStatuses(t *testing.T) { over(t, testStatuses) }

func testStatuses(t *testing.T, path string) {
	noLeaks(t)
	serve(t, path)
	c := dial(t, path)
	var next bus.Result
	offer(t, c, "f", 1, func(context.Context, *bus.Invocation) bus.Result { return next })
	for status := range 256 {
		if status == 75 {
			continue // says busy
		}
		next = bus.Exit(status)
		res, err := c.Call(bg(), &bus.Request{Function: "f"})
		var exit *bus.ExitError
		if res.Status != status || res.OK() != (err == nil) || (status != 0 && (!errors.As(err, &exit) || exit.Status != status)) {
			t.Errorf("status %d: %+v, error %v", status, res, err)
		}
	}
	next = bus.Result{End: bus.End{Source: args.FromSignal, Status: 137, Code: "SIGKILL"}}
	_, err := c.Call(bg(), &bus.Request{Function: "f"})
	var exit *bus.ExitError
	if !errors.As(err, &exit) || exit.Code != "SIGKILL" || exit.Source != args.FromSignal {
		t.Errorf("error %v", err)
	}
	for code, want := range map[string]error{args.CodeBadInput: bus.ErrBadInput, args.CodeDenied: &args.Error{Code: "worker.denied"}, "new": &args.Error{Code: "new"}} {
		next = bus.Result{End: bus.End{Source: args.FromBus, Status: args.StatusOf(code), Code: code, Message: "why"}}
		_, err := c.Call(bg(), &bus.Request{Function: "f"})
		wantErr(t, err, want)
		if err.Error() != "why" {
			t.Errorf("error %v", err)
		}
	}
	next = bus.Result{End: bus.End{Source: args.FromBus, Status: 75, Code: "full"}}
	var be *args.Error
	if _, err := c.Call(bg(), &bus.Request{Function: "f"}); !errors.As(err, &be) || be.Status() != 75 {
		t.Errorf("a code that is not known with status 75: error %v, status %d", err, be.Status())
	}
	// What no frame can say costs the handler's call, not the connection.
	for _, bad := range []bus.Result{bus.Exit(-1), bus.Exit(256), bus.Exit(1 << 40), {End: bus.End{Source: 9}}, {End: bus.End{Source: args.FromBus, Code: "done"}}, {End: bus.End{Source: args.FromSignal}}} {
		next = bad
		if _, err := c.Call(bg(), &bus.Request{Function: "f"}); err == nil || c.Err() != nil {
			t.Fatalf("result %+v: error %v, connection %v", bad, err, c.Err())
		}
	}
	if _, err := c.Call(bg(), &bus.Request{Function: "f", Retries: -1, Timeout: -1, WaitFunction: -1}); c.Err() != nil {
		t.Errorf("negative numbers: error %v, connection %v", err, c.Err())
	}
}

// TestBytesAreExact: input and output of every size that is special, in chunks
// of any size, with stderr beside them.
func TestBytesAreExact(t *testing.T) { over(t, testBytesAreExact) }

func testBytesAreExact(t *testing.T, path string) {
	noLeaks(t)
	serve(t, path)
	offer(t, dial(t, path), "cat", 4, func(_ context.Context, inv *bus.Invocation) bus.Result {
		in := io.MultiReader(bytes.NewReader(inv.Head()))
		if inv.Rest() != nil {
			in = io.MultiReader(bytes.NewReader(inv.Head()), inv.Rest())
		}
		buf := make([]byte, 100000)
		for k := 1; ; k = k*7%99991 + 1 {
			n, err := in.Read(buf[:k])
			inv.Stdout.Write(buf[:n])
			inv.Stderr.Write(buf[:n])
			if err != nil {
				return bus.Result{}
			}
		}
	})
	const big = 8 << 20 // twice the largest window
	c := dial(t, path)
	for _, size := range []int{0, 1, 4095, 4096, 4097, 32767, 32768, 32769, 65535, 65536, 65537, 1 << 20, 1<<20 + 1, big} {
		data := make([]byte, size)
		x := uint32(size)
		for i := range data { // xorshift: no two places look alike
			x ^= x << 13
			x ^= x >> 17
			x ^= x << 5
			data[i] = byte(x)
		}
		for name, input := range map[string]io.Reader{"known": bytes.NewReader(data), "unknown": &stutter{data: data}, "file": asFile(t, data)} {
			if size == big && name != "unknown" {
				continue
			}
			var stdout, stderr bytes.Buffer
			if _, err := c.Call(bg(), &bus.Request{Function: "cat", Input: input, Stdout: &stdout, Stderr: &stderr}); err != nil {
				t.Fatalf("%d bytes, %s: %v", size, name, err)
			}
			if !bytes.Equal(stdout.Bytes(), data) || !bytes.Equal(stderr.Bytes(), data) {
				t.Errorf("%d bytes, %s: %d and %d came back", size, name, stdout.Len(), stderr.Len())
			}
		}
	}
}

// stutter reads in pieces of any size, the end with the last or after it.
type stutter struct {
	data []byte
	k    int
}

func (s *stutter) Read(p []byte) (int, error) {
	s.k = s.k*7%99991 + 1
	n := copy(p[:min(len(p), s.k)], s.data)
	s.data = s.data[n:]
	if len(s.data) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func asFile(t testing.TB, data []byte) *os.File {
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestHandlerOutput: what a handler returns as output arrives, however long and
// whatever was written before.
func TestHandlerOutput(t *testing.T) { over(t, testHandlerOutput) }

func testHandlerOutput(t *testing.T, path string) {
	noLeaks(t)
	serve(t, path)
	c := dial(t, path)
	offer(t, c, "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		io.WriteString(inv.Stdout, "first ")
		return bus.Result{Output: make([]byte, len(inv.Head())*1000)}
	})
	for _, k := range []int{0, 1, 64, 65, 300, 20000} {
		var out bytes.Buffer
		if _, err := c.Call(bg(), &bus.Request{Function: "f", Input: strings.NewReader(strings.Repeat("x", k)), Stdout: &out}); err != nil || out.Len() != 6+1000*k {
			t.Errorf("%d of %d bytes, error %v", out.Len(), 6+1000*k, err)
		}
	}
}

// failing is a writer or reader that fails after some bytes.
type failing struct {
	left int
	err  error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func (f *failing) Read(p []byte) (int, error) {
	if f.left <= 0 {
		return 0, f.err
	}
	n := min(f.left, len(p))
	f.left -= n
	return n, nil
}

func flood(stream func(*bus.Invocation) io.Writer, size int) bus.Handler {
	return func(_ context.Context, inv *bus.Invocation) bus.Result {
		for chunk := make([]byte, 10000); size < 0 || size > 0; {
			n := len(chunk)
			if size > 0 {
				n = min(n, size)
				size -= n
			}
			if _, err := stream(inv).Write(chunk[:n]); err != nil {
				return bus.Result{End: bus.End{Source: args.FromSignal, Status: 141, Code: "SIGPIPE"}}
			}
		}
		return bus.Result{}
	}
}

func stdout(inv *bus.Invocation) io.Writer { return inv.Stdout }
func stderr(inv *bus.Invocation) io.Writer { return inv.Stderr }

// TestWriterFails: a stdout that can not be written ends the program, as a
// closed pipe does; a stderr that can not be does not.
func TestWriterFails(t *testing.T) { over(t, testWriterFails) }

func testWriterFails(t *testing.T, path string) {
	noLeaks(t)
	n, _ := serve(t, path)
	c := dial(t, path)
	offer(t, dial(t, path), "endless", 1, flood(stdout, -1))
	full := errors.New("disk full")
	err := await(t, "the end", later(bg(), c, &bus.Request{Function: "endless", Stdout: &failing{100000, full}}))
	wantErr(t, err, full)
	eventually(t, "the program's end", func() bool { return n.Open() == 0 })
	offer(t, dial(t, path), "chatty", 1, flood(stderr, 2<<20))
	wantErr(t, await(t, "the end", later(bg(), c, &bus.Request{Function: "chatty", Stderr: &failing{100000, full}})), full)
	offer(t, dial(t, path), "short", 1, echo)
	wantErr(t, await(t, "the end", later(bg(), c, &bus.Request{Function: "short", Input: strings.NewReader("x"), Stdout: &failing{0, full}})), full)
	eventually(t, "no call", func() bool { return n.Open() == 0 })
}

// TestReaderFails: an input that can not be read does not look complete.
func TestReaderFails(t *testing.T) { over(t, testReaderFails) }

func testReaderFails(t *testing.T, path string) {
	noLeaks(t)
	n, _ := serve(t, path)
	sawEOF := make(chan error, 1)
	offer(t, dial(t, path), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		_, err := io.Copy(io.Discard, inv.Rest())
		sawEOF <- err
		return bus.Result{}
	})
	bad := errors.New("bad sector")
	wantErr(t, await(t, "the end", later(bg(), dial(t, path), &bus.Request{Function: "f", Input: &failing{100000, bad}})), bad)
	if err := await(t, "the handler", sawEOF); err == nil {
		t.Error("the program saw a clean end of its input")
	}
	eventually(t, "no call", func() bool { return n.Open() == 0 })
}

// blocked is an input that never comes.
type blocked struct{ until chan struct{} }

func (b *blocked) Read([]byte) (int, error) {
	<-b.until
	return 0, io.EOF
}

// TestInputThatNeverComes: a call starts and ends without it.
func TestInputThatNeverComes(t *testing.T) { over(t, testInputThatNeverComes) }

func testInputThatNeverComes(t *testing.T, path string) {
	noLeaks(t)
	serve(t, path)
	offer(t, dial(t, path), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		return bus.Result{Output: []byte("done")}
	})
	in := &blocked{make(chan struct{})}
	var out bytes.Buffer
	c := dial(t, path)
	if err := await(t, "the end", later(bg(), c, &bus.Request{Function: "f", Input: in, Stdout: &out})); err != nil || out.String() != "done" {
		t.Errorf("%q, error %v", out.String(), err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := await(t, "the end", later(bg(), c, &bus.Request{Function: "f", Input: r})); err != nil {
		t.Error(err)
	}
	close(in.until)
	w.Close()
	r.Close()
}

// TestNodeLost: every call fails at once, and says that it may have run.
func TestNodeLost(t *testing.T) { over(t, testNodeLost) }

func testNodeLost(t *testing.T, path string) {
	noLeaks(t)
	n, stop := serve(t, path)
	h := newHolder()
	offer(t, dial(t, path), "f", 2, h.handle)
	c := dial(t, path)
	calls := []<-chan error{
		later(bg(), c, &bus.Request{Function: "f"}), later(bg(), c, &bus.Request{Function: "f"}), later(bg(), c, &bus.Request{Function: "f"}),
	}
	await(t, "a call", h.started)
	await(t, "a call", h.started)
	eventually(t, "three calls", func() bool { return n.Open() == 3 })
	stop()
	for _, call := range calls {
		if err := await(t, "the end", call); !errors.Is(err, bus.ErrDraining) && !errors.Is(err, bus.ErrNodeLost) {
			t.Errorf("error %v", err)
		}
	}
	await(t, "the handler's end", h.causes)
	await(t, "the connection's end", c.Done())
	wantErr(t, c.Err(), bus.ErrNodeLost)
	_, err := c.Call(bg(), &bus.Request{Function: "f"})
	wantErr(t, err, bus.ErrNodeLost)
	_, err = c.Offer(bg(), bus.Offer{Name: "g", Slots: 1}, echo)
	wantErr(t, err, bus.ErrNodeLost)
	_, err = bus.Dial(bg(), address(path), dialOptions(path))
	wantErr(t, err, &args.Error{Code: args.CodeNoNode})
}

// TestDrainEndsCallsThatCross: a call that comes when a node has drained, and closes its connections, was not
// run, and does not look as if it may have.
func TestDrainEndsCallsThatCross(t *testing.T) { over(t, testDrainEndsCallsThatCross) }

func testDrainEndsCallsThatCross(t *testing.T, path string) {
	noLeaks(t)
	n, stop := serve(t, path)
	offer(t, dial(t, path), "f", 4, echo)
	var calls []<-chan error
	ready := make(chan bool, 8)
	for range cap(ready) {
		c, end := dial(t, path), make(chan error, 1)
		calls = append(calls, end)
		go func() { // ends with the connection
			for first := true; c.Err() == nil; first = false {
				_, err := c.Call(bg(), &bus.Request{Function: "f"})
				if first {
					ready <- true
				}
				if err != nil && strings.Contains(err.Error(), "may have run") {
					t.Error(err)
				}
			}
			end <- c.Err()
		}()
	}
	for range cap(ready) {
		await(t, "a call", ready)
	}
	if err := n.Drain(bg()); err != nil {
		t.Error(err)
	}
	stop()
	for _, end := range calls {
		wantErr(t, await(t, "the end", end), bus.ErrNodeLost)
	}
}

// TestClose: what is under way fails, handlers are cancelled and waited for.
func TestClose(t *testing.T) { over(t, testClose) }

func testClose(t *testing.T, path string) {
	noLeaks(t)
	serve(t, path)
	w, c := dial(t, path), dial(t, path)
	h := newHolder()
	offer(t, w, "f", 5, h.handle)
	call := later(bg(), c, &bus.Request{Function: "f", Input: &stutter{data: make([]byte, 1<<20)}})
	await(t, "the call", h.started)
	c.Close()
	wantErr(t, await(t, "the end", call), bus.ErrNodeLost)
	wantErr(t, await(t, "CANCEL", h.causes), bus.ErrCancelled)
	c = dial(t, path)
	call = later(bg(), c, &bus.Request{Function: "f"})
	await(t, "the call", h.started)
	w.Close()
	if len(h.causes) != 1 {
		t.Error("Close did not wait for the handler")
	}
	wantErr(t, await(t, "the end", call), bus.ErrWorkerLost)
	w.Close() // twice is once
}

// TestConcurrentUse: one client, many callers of everything.
func TestConcurrentUse(t *testing.T) { over(t, testConcurrentUse) }

func testConcurrentUse(t *testing.T, path string) {
	noLeaks(t)
	n, _ := serve(t, path)
	w, c := dial(t, path), dial(t, path)
	off := offer(t, w, "f", 8, echo)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for k := range 25 {
				data := bytes.Repeat([]byte{byte(i), byte(k)}, 1+i*k*50)
				ctx, stop := context.WithCancel(bg())
				if (i+k)%5 == 0 {
					go stop()
				}
				var out bytes.Buffer
				_, err := c.Call(ctx, &bus.Request{Function: "f", Input: &stutter{data: data}, Stdout: &out})
				if err != nil && ctx.Err() == nil || err == nil && !bytes.Equal(out.Bytes(), data) {
					t.Errorf("call %d of %d: %d of %d bytes, error %v", k, i, out.Len(), len(data), err)
				}
				stop()
			}
		})
	}
	for slots := range 20 {
		if err := off.SetSlots(bg(), slots%8+1); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	eventually(t, "no call", func() bool { return n.Open() == 0 })
}

// TestRefusedAtOnce: what a node says before it hangs up is heard, though it
// reads nothing of ours.
func TestRefusedAtOnce(t *testing.T) {
	noLeaks(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done, closed := make(chan struct{}), make(chan struct{}, 1)
	go func() { // ends with the listener
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Write(wire.Append(nil, &wire.ErrorFrame{Code: []byte(args.CodeDenied), Message: []byte("not you")}))
			nc.Close()
			closed <- struct{}{}
		}
	}()
	for range 100 {
		nc, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		<-closed // so HELLO can not be written
		if _, err = bus.NewClient(bg(), nc, nil); !errors.Is(err, bus.ErrDenied) {
			t.Fatalf("error %v", err)
		}
		if nc, err = net.Dial("unix", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		<-closed
		c, err := bus.NewClient(bg(), nc, &bus.Options{Eager: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Call(bg(), &bus.Request{Function: "f"}); !errors.Is(err, bus.ErrDenied) {
			t.Fatalf("call: error %v", err)
		}
		if _, err := c.Offer(bg(), bus.Offer{Name: "f", Slots: 1}, nil); !errors.Is(err, bus.ErrDenied) {
			t.Fatalf("offer: error %v", err)
		}
		c.Close()
	}
	l.Close()
	<-done
}

// TestOlderNode: a node of version 1.0 serves this client, which sends it no frame of 1.1 and finds
// the reports that it drops no error. A client that wants fewer rights refuses it, before anything
// that was to run with those is sent.
func TestOlderNode(t *testing.T) {
	noLeaks(t)
	connect := func(o *bus.Options) (*bus.Client, net.Conn, error) {
		near, far := net.Pipe()
		far.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { far.Close() })
		go far.Write(wire.Append(nil, &wire.HelloFrame{Major: 1, Network: []byte("n"), Connection: []byte("x-1")})) // ends when it is read
		read := make(chan error, 1)
		go func() { // ends with HELLO
			_, err := nextFrame(far, new(wire.Decoder))
			read <- err
		}()
		c, err := bus.NewClient(bg(), near, o)
		if e := await(t, "HELLO", read); e != nil {
			t.Fatal(e)
		}
		return c, far, err
	}

	for _, rights := range [][]string{{}, {"call:f"}} {
		_, far, err := connect(&bus.Options{Rights: rights, Eager: true})
		if wantErr(t, err, &args.Error{Code: args.CodeVersion}); !strings.Contains(fmt.Sprint(err), "version 1.0") {
			t.Error(err)
		}
		if f, err := nextFrame(far, new(wire.Decoder)); err == nil && wire.TypeOf(f) != wire.TypeError {
			t.Errorf("it sends %T", f)
		}
	}

	c, far, err := connect(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go c.Offer(bg(), bus.Offer{Name: "f", Slots: 1, Attributes: map[string]string{"tool": ""}}, func(_ context.Context, inv *bus.Invocation) bus.Result { // ends with OFFERED
		inv.Progress(bus.Progress{Done: 1, Total: 2})
		return bus.Exit(0)
	})
	for _, send := range []wire.Frame{nil, &wire.OfferedFrame{Seq: 1}, &wire.CallFrame{ID: 1, Name: []byte("f"), Flags: wire.FlagInputEnd}} {
		if send != nil {
			far.Write(wire.Append(nil, send))
		}
		if _, offered := send.(*wire.OfferedFrame); offered {
			continue
		}
		f, err := nextFrame(far, new(wire.Decoder))
		if want := map[bool]wire.Type{true: wire.TypeOffer, false: wire.TypeEnd}[send == nil]; err != nil || wire.TypeOf(f) != want {
			t.Errorf("%T, error %v; want type %d", f, err, want)
		}
	}
}

// nextFrame reads a frame.
func nextFrame(r io.Reader, d *wire.Decoder) (wire.Frame, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return d.Decode(body)
}

// TestHostileNode: a node that breaks the protocol fails what is under way.
func TestHostileNode(t *testing.T) {
	hello := &wire.HelloFrame{Major: 1, Network: []byte("n"), Connection: []byte("x-1")}
	type hostile struct {
		hello, send []byte
		code        string
	}
	cases := map[string]hostile{
		"says nothing and closes":    {nil, nil, args.CodeNoNode},
		"another version":            {wire.Append(nil, &wire.HelloFrame{Major: 2}), nil, args.CodeVersion},
		"an error":                   {wire.Append(nil, &wire.ErrorFrame{Code: []byte("wrong_network")}), nil, args.CodeNetwork},
		"text":                       {[]byte("HTTP/1.1 400"), nil, args.CodeNoNode},
		"a call first":               {wire.Append(nil, &wire.CallFrame{ID: 1}), nil, args.CodeProtocol},
		"END never opened":           {wire.Append(nil, hello), wire.Append(nil, &wire.EndFrame{ID: 7}), args.CodeNodeLost},
		"END beyond the credit":      {wire.Append(nil, hello), wire.Append(nil, &wire.EndFrame{ID: 1, Output: make([]byte, wire.InitialWindow+1)}), args.CodeNodeLost},
		"DATA beyond the credit":     {wire.Append(nil, hello), wire.Append(nil, &wire.DataFrame{ID: 1, Stream: wire.Stderr, Payload: make([]byte, wire.InitialWindow+1)}), args.CodeNodeLost},
		"too much credit":            {wire.Append(nil, hello), bytes.Repeat(wire.Append(nil, &wire.GrantFrame{ID: 1, Bytes: 4 << 20}), 3), args.CodeNodeLost},
		"an answer to no offer":      {wire.Append(nil, hello), wire.Append(nil, &wire.OfferedFrame{Seq: 3}), args.CodeNodeLost},
		"an offer":                   {wire.Append(nil, hello), wire.Append(nil, &wire.OfferFrame{Seq: 3}), args.CodeNodeLost},
		"a second HELLO":             {wire.Append(nil, hello), wire.Append(nil, hello), args.CodeNodeLost},
		"a length bomb":              {wire.Append(nil, hello), []byte{0xff, 0, 0, 0}, args.CodeNodeLost},
		"half a frame":               {wire.Append(nil, hello), []byte{0, 0, 0, 3, 0x92}, args.CodeNodeLost},
		"an error mid-call":          {wire.Append(nil, hello), wire.Append(nil, &wire.ErrorFrame{Code: []byte("superseded")}), args.CodeNodeLost},
		"an end between frames":      {wire.Append(nil, hello), nil, args.CodeNodeLost},
		"a call of nothing we offer": {wire.Append(nil, hello), append(wire.Append(nil, &wire.CallFrame{ID: 1, Name: []byte("x")}), wire.Append(nil, &wire.CallFrame{ID: 1, Name: []byte("x")})...), args.CodeNodeLost},
	}
	for _, code := range []string{"busy", "denied", "revoked", "expired", "internal", "usage", "protocol", "acme.new"} {
		sent := wire.Append(nil, &wire.ErrorFrame{Code: []byte(code), Message: []byte("the reason")})
		cases["ERROR "+code+" mid-call"] = hostile{wire.Append(nil, hello), sent, args.CodeNodeLost}
		cases["ERROR "+code+" for HELLO"] = hostile{sent, nil, code}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			near, far := net.Pipe()
			gone := make(chan struct{})
			opened := make(chan struct{}, 1)
			go func() { // ends with the connection
				defer close(gone)
				for {
					typ, err := readType(far)
					if err != nil {
						return
					}
					if typ == wire.TypeCall {
						opened <- struct{}{}
					}
				}
			}()
			go func() { // ends with the connection
				far.Write(tc.hello)
				if tc.send == nil && tc.code != args.CodeNodeLost {
					far.Close()
				}
			}()
			c, err := bus.NewClient(bg(), near, nil)
			if err == nil {
				call := later(bg(), c, &bus.Request{Function: "f", Input: &blocked{gone}})
				await(t, "CALL", opened)
				far.Write(tc.send)
				far.Close()
				err = await(t, "the end", call)
				c.Close()
			}
			wantErr(t, err, &args.Error{Code: tc.code})
			if opens := tc.code == args.CodeNodeLost; opens != strings.HasSuffix(err.Error(), ": the call may have run") {
				t.Errorf("it says %q", err)
			} else if e := args.AsError(err, ""); opens && (e.Status() != 255 || errors.Is(err, bus.ErrDenied) || errors.Is(err, bus.ErrBusy)) {
				t.Errorf("status %d of %#v", e.Status(), err)
			} else if strings.HasPrefix(name, "ERROR ") && !strings.HasPrefix(err.Error(), "the reason") {
				t.Errorf("no reason in %q", err)
			}
			far.Close()
			<-gone
		})
	}
}

// readType reads a frame and tells its type.
func readType(r io.Reader) (wire.Type, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, err
	}
	f, err := new(wire.Decoder).Decode(body)
	if err != nil {
		return 0, err
	}
	return wire.TypeOf(f), nil
}

// TestOfferGivenUp: an offer whose maker did not wait for the answer does not
// stand.
func TestOfferGivenUp(t *testing.T) {
	noLeaks(t)
	n, path := start(t)
	c := dial(t, path)
	ctx, stop := context.WithCancel(bg())
	stop()
	for range 20 {
		off, err := c.Offer(ctx, bus.Offer{Name: "f", Slots: 1}, echo)
		if err == nil { // the answer was there first
			off.Withdraw(bg())
		}
	}
	offer(t, c, "other", 1, echo)
	if f := n.Functions("f"); len(f) != 0 {
		t.Errorf("%+v", f)
	}
}

// newWorker is a worker of one function that keeps its instance.
func newWorker(path, name string, slots int, h bus.Handler) *bus.Worker {
	o := dialOptions(path)
	o.Name = "w"
	w := &bus.Worker{Options: o, Dial: func(ctx context.Context, o *bus.Options) (*bus.Client, error) {
		return bus.Dial(ctx, address(path), o)
	}}
	w.Add(bus.Offer{Name: name, Slots: slots}, h)
	return w
}

// TestWorkerReconnects: after its node has come back at the same path a worker
// offers again, by itself.
func TestWorkerReconnects(t *testing.T) { over(t, testWorkerReconnects) }

func testWorkerReconnects(t *testing.T, path string) {
	noLeaks(t)
	_, stop := serve(t, path)
	w := newWorker(path, "f", 3, echo)
	if err := w.Start(bg()); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(bg())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	for range 2 {
		stop()
		var n *node.Node
		n, stop = serve(t, path)
		eventually(t, "the offer", func() bool { f := n.Functions("f"); return len(f) == 1 && f[0].Slots == 3 })
		if _, err := dial(t, path).Call(bg(), &bus.Request{Function: "f"}); err != nil {
			t.Error(err)
		}
	}
	end()
	if err := await(t, "Run", ran); err != nil {
		t.Error(err)
	}
	w.Close()
}

// TestHeldSlotsAreNotOffered: slots whose calls have not returned since the node
// was lost come back one by one, and never more than there are.
func TestHeldSlotsAreNotOffered(t *testing.T) { over(t, testHeldSlotsAreNotOffered) }

func testHeldSlotsAreNotOffered(t *testing.T, path string) {
	noLeaks(t)
	_, stop := serve(t, path)
	const slots = 4
	var now, most atomic.Int32
	started, release := make(chan struct{}, 1000), make(chan struct{}, 1000)
	w := newWorker(path, "f", slots, func(context.Context, *bus.Invocation) bus.Result {
		k := now.Add(1)
		for old := most.Load(); k > old && !most.CompareAndSwap(old, k); old = most.Load() {
		}
		started <- struct{}{}
		<-release // whatever happens: its tree takes long to die
		now.Add(-1)
		return bus.Result{}
	})
	if err := w.Start(bg()); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(bg())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	c := dial(t, path)
	for range slots {
		later(bg(), c, &bus.Request{Function: "f"})
		await(t, "a call", started)
	}
	for held := slots; held >= 1; held -= 2 {
		stop()
		var n *node.Node
		n, stop = serve(t, path)
		slotsAre := func(want int) func() bool {
			return func() bool {
				f := n.Functions("f")
				return len(f) == 1 && f[0].Slots == want || want == 0 && len(f) == 0 && n.Info().Sessions > 0
			}
		}
		eventually(t, "the free slots", slotsAre(slots-held))
		c := dial(t, path)
		var calls []<-chan error
		for range 20 {
			calls = append(calls, later(bg(), c, &bus.Request{Function: "f", WaitFunction: bus.WaitFor(time.Hour)}))
		}
		for range slots - held {
			await(t, "a call in a free slot", started)
		}
		release <- struct{}{}
		release <- struct{}{} // each lets some call go: of the old connection or the new one
		await(t, "a call in a slot come free", started)
		await(t, "a call in a slot come free", started)
		for range 18 + slots {
			release <- struct{}{}
		}
		for _, call := range calls {
			if err := await(t, "a call", call); err != nil {
				t.Error(err)
			}
		}
		for len(started) > 0 {
			<-started
		}
		eventually(t, "all slots", slotsAre(slots))
		for len(release) > 0 {
			<-release
		}
		for range held - 2 { // for the next round
			later(bg(), c, &bus.Request{Function: "f"})
			await(t, "a call", started)
		}
	}
	if most.Load() > slots {
		t.Errorf("%d ran at once with %d slots", most.Load(), slots)
	}
	end()
	await(t, "Run", ran)
	w.Close()
}

// TestSlotsComeBackTogether: calls of a lost connection that return at the same
// moment give all their slots back.
func TestSlotsComeBackTogether(t *testing.T) { over(t, testSlotsComeBackTogether) }

func testSlotsComeBackTogether(t *testing.T, path string) {
	noLeaks(t)
	_, stop := serve(t, path)
	const slots = 16
	for range 10 {
		started, release := make(chan struct{}, slots), make(chan struct{})
		w := newWorker(path, "f", slots, func(context.Context, *bus.Invocation) bus.Result {
			started <- struct{}{}
			<-release
			return bus.Result{}
		})
		if err := w.Start(bg()); err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(bg())
		ran := make(chan error, 1)
		go func() { ran <- w.Run(ctx) }()
		c := dial(t, path)
		for range slots {
			later(bg(), c, &bus.Request{Function: "f"})
			await(t, "a call", started)
		}
		stop()
		var n *node.Node
		n, stop = serve(t, path)
		eventually(t, "the worker", func() bool { return n.Info().Sessions == 1 })
		close(release)
		eventually(t, "all slots", func() bool { f := n.Functions("f"); return len(f) == 1 && f[0].Slots == slots })
		end()
		await(t, "Run", ran)
		w.Close()
		eventually(t, "no offer", func() bool { return len(n.Functions("f")) == 0 })
	}
}

// TestDrainedWorkerOffersNothing, though calls of a lost connection return.
func TestDrainedWorkerOffersNothing(t *testing.T) { over(t, testDrainedWorkerOffersNothing) }

func testDrainedWorkerOffersNothing(t *testing.T, path string) {
	noLeaks(t)
	_, stop := serve(t, path)
	started, release := make(chan struct{}, 10), make(chan struct{})
	w := newWorker(path, "f", 2, func(context.Context, *bus.Invocation) bus.Result {
		started <- struct{}{}
		<-release
		return bus.Result{}
	})
	if err := w.Start(bg()); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(bg())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	later(bg(), dial(t, path), &bus.Request{Function: "f"})
	await(t, "a call", started)
	stop()
	n, _ := serve(t, path)
	eventually(t, "the free slot", func() bool { f := n.Functions("f"); return len(f) == 1 && f[0].Slots == 1 })
	end()
	await(t, "Run", ran)
	drained := make(chan error, 1)
	go func() { drained <- w.Drain(bg()) }()
	eventually(t, "no offer", func() bool { return len(n.Functions("f")) == 0 })
	close(release)
	if err := await(t, "Drain", drained); err != nil {
		t.Error(err)
	}
	offer(t, dial(t, path), "later", 1, echo) // anything the worker had sent is in by now
	if f := n.Functions("f"); len(f) != 0 {
		t.Errorf("offered after the drain: %+v", f)
	}
	w.Close()
}

// TestDeniedIsFinal: a worker that is denied does not try again.
func TestDeniedIsFinal(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(t.TempDir(), "bus.sock")
	_, stop := serve(t, path)
	wantErr(t, newWorker(path, "fbus.x", 1, echo).Start(bg()), bus.ErrDenied)
	w := newWorker(path, "f", 1, echo)
	if err := w.Start(bg()); err != nil {
		t.Fatal(err)
	}
	stop()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the listener
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Write(wire.Append(nil, &wire.ErrorFrame{Code: []byte(args.CodeDenied), Message: []byte("no more")}))
			nc.Close()
		}
	}()
	ran := make(chan error, 1)
	go func() { ran <- w.Run(bg()) }()
	wantErr(t, await(t, "Run", ran), bus.ErrDenied)
	l.Close()
	w.Close()
}

func TestForeignAddress(t *testing.T) {
	for addr, code := range map[bus.Addr]string{
		bus.TCP("localhost:10101"): args.CodeNoCertificate, bus.TCP("x"): args.CodeNoCertificate, bus.Unix(filepath.Join(t.TempDir(), "none")): args.CodeNoNode,
	} {
		_, err := bus.Dial(bg(), addr, nil)
		wantErr(t, err, &args.Error{Code: code})
		if !strings.Contains(fmt.Sprint(err), addr.String()) {
			t.Errorf("error %v does not name %s", err, addr)
		}
	}
}

// TestLongInputCannotStart: a call whose input is a long file, a part of which the worker has
// taken, is made again when that worker cannot start it.
func TestLongInputCannotStart(t *testing.T) { over(t, testLongInputCannotStart) }

func testLongInputCannotStart(t *testing.T, path string) {
	noLeaks(t)
	n, _ := serve(t, path)
	why := args.CannotStart(args.Errorf(args.CodeNotFound, "gone"))
	var broken *bus.Worker
	broken = newWorker(path, "f", 5, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		io.ReadFull(inv.Input, make([]byte, 100000))
		broken.SetLimit(ctx, "f", 0, "", why)
		return bus.Result{End: why.End()}
	})
	if err := broken.Start(bg()); err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	offer(t, dial(t, path), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		all, _ := io.ReadAll(inv.Input)
		return bus.Result{Output: fmt.Append(nil, len(all))}
	})
	file, err := os.Create(filepath.Join(t.TempDir(), "input"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const size = 300000
	file.Write(make([]byte, size))
	file.Seek(0, io.SeekStart)
	var out bytes.Buffer
	if _, err := dial(t, path).Call(bg(), &bus.Request{Function: "f", Input: file, Stdout: &out}); err != nil || out.String() != fmt.Sprint(size) {
		t.Errorf("%q, error %v", out.String(), err)
	}
	if f := n.Functions("f"); len(f) != 1 || f[0].Slots != 1 || f[0].Note != "gone" {
		t.Errorf("%+v", f)
	}
	_, err = dial(t, path).Call(bg(), &bus.Request{Function: "f", On: "nobody"})
	if errors.Is(err, bus.ErrCannotStart) {
		t.Errorf("error %v", err)
	}
	broken.SetLimit(bg(), "f", 5, "", nil)
	if f := n.Functions("f"); len(f) != 1 || f[0].Slots != 6 || f[0].Note != "" {
		t.Errorf("%+v", f)
	}
}
