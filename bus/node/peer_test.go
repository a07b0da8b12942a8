package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"go.uber.org/goleak"
)

// patience bounds every wait for an event: a test that reaches it has failed, on
// any machine.
const patience = time.Minute

// noLeaks fails the test if a goroutine is left that it has started. It is to
// be called first, so that it looks last.
func noLeaks(t testing.TB) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for {
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

// eventually polls what no event tells of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
		runtime.Gosched()
		time.Sleep(200 * time.Microsecond)
	}
}

// await waits for a channel to be closed or to deliver.
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

// raw is a peer that sends what the test says, frame by frame or byte by byte.
type raw struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

func newRaw(t testing.TB, nc net.Conn) *raw {
	t.Cleanup(func() { nc.Close() })
	nc.SetReadDeadline(time.Now().Add(patience))
	return &raw{t: t, nc: nc, r: bufio.NewReaderSize(nc, 64<<10)}
}

// rawUnix connects over the node's socket.
func rawUnix(t testing.TB, _ *node.Node, path string) *raw {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return newRaw(t, nc)
}

// rawPipe connects in memory: no descriptor, every write waits for the reader.
func rawPipe(t testing.TB, n *node.Node, _ string) *raw {
	t.Helper()
	near, served := newPipe(t, n, "uid:0")
	t.Cleanup(func() {
		near.Close()
		await(t, "the end of ServeConn", served)
	})
	return newRaw(t, near)
}

var transports = map[string]func(testing.TB, *node.Node, string) *raw{"unix": rawUnix, "pipe": rawPipe, "tls": rawTLS}

// over runs a test over each transport.
func over(t *testing.T, f func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw)) {
	for name, connect := range transports {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			f(t, connect)
		})
	}
}

func encode(frames ...wire.Frame) []byte {
	var b []byte
	for _, f := range frames {
		b = wire.Append(b, f)
	}
	return b
}

// write sends bytes; whoever has been closed on finds that out by reading.
func (p *raw) write(b []byte) { p.nc.Write(b) }

func (p *raw) send(frames ...wire.Frame) { p.write(encode(frames...)) }

// next reads a frame.
func (p *raw) next() (wire.Frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(p.r, body); err != nil {
		return nil, err
	}
	return new(wire.Decoder).Decode(body)
}

// want reads until a frame of that type comes, and fails if none does.
func want[F wire.Frame](p *raw) F {
	p.t.Helper()
	for {
		f, err := p.next()
		if err != nil {
			p.t.Fatalf("waiting for %v: %v", reflect.TypeFor[F](), err)
		}
		if f, ok := f.(F); ok {
			return f
		}
		if e, ok := f.(*wire.ErrorFrame); ok {
			p.t.Fatalf("waiting for %v: the node says %s: %s", reflect.TypeFor[F](), e.Code, e.Message)
		}
	}
}

// closed reads to the end of the connection and returns the code that was given.
func (p *raw) closed() string {
	p.t.Helper()
	code := ""
	for {
		f, err := p.next()
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			p.t.Fatal("the connection was not closed")
		}
		if err != nil {
			return code
		}
		if e, ok := f.(*wire.ErrorFrame); ok {
			code = string(e.Code)
		}
	}
}

func hello() *wire.HelloFrame { return &wire.HelloFrame{Major: wire.Major, Name: []byte("raw")} }

// greet exchanges HELLO.
func (p *raw) greet() *raw { return p.named("raw") }

// offer offers a function.
func (p *raw) offer(name string, slots, flags uint64) {
	p.t.Helper()
	p.send(&wire.OfferFrame{Seq: 1, Name: []byte(name), Slots: slots, Flags: flags})
	if a := want[*wire.OfferedFrame](p); len(a.Code) > 0 {
		p.t.Fatalf("offer of %s: %s: %s", name, a.Code, a.Message)
	}
}

// callFrame is a call with a whole input.
func callFrame(id uint64, name, input string) *wire.CallFrame {
	return &wire.CallFrame{
		ID: id, Name: []byte(name), Input: []byte(input), Flags: wire.FlagInputEnd,
		WaitSlot: wire.Forever, WindowOutput: wire.InitialWindow, WindowStderr: wire.InitialWindow,
	}
}

// openFrame is a call whose input is to follow.
func openFrame(id uint64, name string) *wire.CallFrame {
	f := callFrame(id, name, "")
	f.Flags = 0
	return f
}

func exit(id, status uint64) *wire.EndFrame {
	return &wire.EndFrame{ID: id, Status: status, Code: []byte("exit")}
}

// settled checks that node and counts are as if nothing had happened.
func settled(t testing.TB, n *node.Node, want node.Books) {
	t.Helper()
	want.Budget = 0 // when want was taken, something was still being written
	deadline := time.Now().Add(patience)
	for n.Books() != want {
		if time.Now().After(deadline) {
			t.Fatalf("counts are %+v, they were %+v", n.Books(), want)
		}
		time.Sleep(200 * time.Microsecond)
	}
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
}

// offerFunc offers a function over a client.
func offerFunc(t testing.TB, c *bus.Client, name string, slots int, h bus.Handler) *bus.Offering {
	t.Helper()
	off, err := c.Offer(context.Background(), bus.Offer{Name: name, Slots: slots}, h)
	if err != nil {
		t.Fatal(err)
	}
	return off
}

// bystander is a client and a worker that behave, beside what the test does.
type bystander struct {
	t      testing.TB
	client *bus.Client
	pace   *pace
	worst  time.Duration
	mu     sync.Mutex
}

func beside(t testing.TB, path string) *bystander {
	t.Helper()
	p := watchPace(t)
	w := dial(t, path)
	offerFunc(t, w, "beside", 2, echo)
	return &bystander{t: t, client: dial(t, path), pace: p}
}

// pace looks how late the machine wakes who sleeps. A limit in a test is that of
// a machine with nothing else to do.
type pace struct{ worst atomic.Int64 }

// watchPace looks until the test ends.
func watchPace(t testing.TB) *pace {
	p, stop, done := &pace{}, make(chan struct{}), make(chan struct{})
	go func() { // ends with the test
		defer close(done)
		for {
			const nap = time.Millisecond
			t0 := time.Now()
			select {
			case <-stop:
				return
			case <-time.After(nap):
			}
			p.worst.Store(max(p.worst.Load(), int64(time.Since(t0)-nap)))
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return p
}

// limit is what may take as long on a machine that is as slow as this one was: a
// call goes through a dozen hands, each of which may have had to wait.
func (p *pace) limit(d time.Duration) time.Duration {
	return d + 20*time.Duration(p.worst.Load())
}

// works makes a call, and holds how long it took.
func (b *bystander) works() {
	b.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	var out lockedBuffer
	t0 := time.Now()
	_, err := b.client.Call(ctx, &bus.Request{Function: "beside", Input: strings.NewReader("still here"), Stdout: &out})
	if err != nil || out.String() != "still here" {
		b.t.Errorf("call beside: %q, error %v", out.String(), err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.worst = max(b.worst, time.Since(t0))
}

// sane checks the latency of the calls so far.
func (b *bystander) sane(limit time.Duration) {
	b.t.Helper()
	if limit = b.pace.limit(limit); b.worst > limit {
		b.t.Errorf("a call beside took %v, more than %v", b.worst, limit)
	}
}

// lockedBuffer may be written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newPipe serves one end of a pipe for a caller of that identity; served is
// closed at its end.
func newPipe(t testing.TB, n *node.Node, caller string) (near net.Conn, served <-chan struct{}) {
	near, far := net.Pipe()
	ch := make(chan struct{})
	go func() { // ends with the connection
		defer close(ch)
		n.ServeConn(far, node.Peer{Caller: caller})
	}()
	return near, ch
}

// rawOf connects in memory as a user who may do everything.
func rawOf(t testing.TB, n *node.Node, caller string) *raw {
	near, served := newPipe(t, n, caller)
	t.Cleanup(func() {
		near.Close()
		await(t, "the end of ServeConn", served)
	})
	return newRaw(t, near).greet()
}

// rawGuest connects over a socket as the holder of a ticket that may call and offer everything.
func rawGuest(t testing.TB, n *node.Node, caller string) *raw {
	t.Helper()
	near, far, err := node.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		n.ServeConn(far, node.Peer{Caller: caller, Rights: &trust.Rights{Call: []string{"*"}, Offer: []string{"*"}}})
	}()
	t.Cleanup(func() {
		near.Close()
		await(t, "the end of ServeConn", served)
	})
	return newRaw(t, near).greet()
}

// named sends a HELLO with a name.
func (p *raw) named(name string) *raw {
	p.t.Helper()
	h := hello()
	h.Name = []byte(name)
	p.send(h)
	want[*wire.HelloFrame](p)
	return p
}
