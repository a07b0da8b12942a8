package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/wire"

	"github.com/vmihailenco/msgpack/v5"
)

// Modes of the first byte of an input: how the others become a byte stream.
const (
	modeRaw    = iota // as they are
	modeFramed        // length, body, length, body: each gets a right prefix
	modeScript        // a small program: see program
	modes
)

// stream makes the bytes that a peer sends from a fuzzer's input.
func stream(data []byte, opening ...wire.Frame) []byte {
	if len(data) == 0 {
		return nil
	}
	mode, data := data[0]%modes, data[1:]
	out := encode(opening...)
	switch mode {
	case modeRaw:
		return data // nothing is said before: HELLO is fuzzed too
	case modeFramed:
		for len(data) > 0 {
			n := min(int(data[0]), len(data)-1)
			out = binary.BigEndian.AppendUint32(out, uint32(n))
			out = append(out, data[1:1+n]...)
			data = data[1+n:]
		}
	case modeScript:
		out = append(out, program(data)...)
	}
	return out
}

// names that a script uses: those of the workers beside, the fuzzer's own, and
// wrong ones.
var names = []string{"echo", "hold", "flood", "no", "mine", "fbus.calls", "fbus.x", "-", ""}

// program reads frames from bytes: few ids and names, so that they meet.
func program(data []byte) []byte {
	var out []byte
	next := func() uint64 {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return uint64(b)
	}
	sizes := []int{0, 1, 100, 4 << 10, 32 << 10, 64 << 10, 200 << 10, 1000 << 10}
	for len(data) > 0 && len(out) < 2<<20 {
		op, id := next(), next()%6
		switch op % 12 {
		case 0, 1:
			f := callFrame(id, names[next()%uint64(len(names))], strings.Repeat("i", sizes[next()%5]))
			f.Caller = []byte([]string{"", "", "alice", "bob", "a b", "alice"}[id])
			o := next()
			f.Flags = o & 3
			f.Retries = o >> 2 & 3
			if o>>4&1 == 1 {
				f.WaitSlot = 0
			}
			if o>>5&1 == 1 {
				f.Timeout = 1
			}
			if o>>6&1 == 1 {
				f.WindowOutput = 0
			}
			if o>>7&1 == 1 {
				f.Kind, f.Args = args.KindList, []byte{0x91, 0xa1, 'a'}
			}
			out = wire.Append(out, f)
		case 2:
			out = wire.Append(out, &wire.DataFrame{ID: id, Stream: wire.Stream(next() % 3), Payload: make([]byte, sizes[next()%8])})
		case 3:
			out = wire.Append(out, &wire.EOFFrame{ID: id})
		case 4, 5:
			out = wire.Append(out, &wire.GrantFrame{ID: id, Stream: wire.Stream(next() % 3), Bytes: uint64(sizes[next()%8])})
		case 6:
			out = wire.Append(out, &wire.CancelFrame{ID: id, Code: []byte([]string{"", args.CodeDeadline}[next()%2])})
		case 7:
			f := exit(id, []uint64{0, 75, 1, 255}[next()%4])
			o := next()
			f.Source = args.Source(o % 3)
			if o>>2&1 == 1 {
				f.Code = []byte(args.CodeBusy)
			}
			f.Output = make([]byte, sizes[o>>3%8])
			out = wire.Append(out, f)
		case 8:
			out = wire.Append(out, &wire.OfferFrame{Seq: id, Name: []byte(names[next()%uint64(len(names))]), Slots: next() % 5, Flags: next()})
		case 9:
			switch next() % 4 {
			case 0:
				out = wire.Append(out, hello())
			case 1:
				out = wire.Append(out, &wire.ErrorFrame{Code: []byte("x")})
			case 2:
				out = wire.Append(out, &wire.OfferedFrame{Seq: id})
			default:
				out = append(out, 0, 0, 0, 2, 0x91, 99) // a type from the future
			}
		default:
			out = append(out, variant(next(), id, next(), next())...)
		}
	}
	return out
}

// variant is a frame of frames.jsonl with another id, and one element replaced or, with those behind it,
// left out.
func variant(which, id, at, by uint64) []byte {
	list := templates()
	f := slices.Clone(list[which%uint64(len(list))])
	f[1] = []byte{byte(id)}
	if f[0][0] == byte(wire.TypeHello) {
		f[1] = []byte{wire.Major}
	}
	at = 1 + at%uint64(len(f)) // the last one leaves it as it is
	if at < uint64(len(f)) {
		if by %= uint64(len(elements) + 1); by < uint64(len(elements)) {
			f[at] = []byte(elements[by])
		} else {
			f = f[:at]
		}
	}
	body := append([]byte{0xdc, 0, byte(len(f))}, slices.Concat(f...)...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// elements are encodings of what stands in frames, or may not.
var elements = []string{
	"\x00", "\x01", "\x02", "\x05", "\x0f", "\xcc\xff", "\xce\x00\x40\x00\x00", "\xce\xff\xff\xff\xff", "\xcf\x00\x1f\xff\xff\xff\xff\xff\xff", "\xff", "\xc0", "\xc3",
	"\xa0", "\xa4echo", "\xa4hold", "\xa4mine", "\xa1*", "\xa2[x", "\xa2#1", "\xa8a\nb\x1b[0m\xff", "\xd9\xff" + strings.Repeat("x", 255), "\xda\x10\x00" + strings.Repeat("y", 4096),
	"\xc4\x00", "\xc4\x02\x00\xff", "\x90", "\x91\xa5admin", "\x92\xa5relay\xa8progress", "\x91\xa6call:*", "\x91\xc0", "\x91\x91\x91\x91\x90",
	"\x80", "\x81\xa4tool\xa0", "\x81\xa3x.y\xa1z", "\x81\xa0\x01", "\x81\x91\x01\x02", "\xb0worker.deadline.", "\xa4busy", "\xa8deadline",
	"\xd97" + "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}

// templates are the elements of the small frames in frames.jsonl, each as bytes: what is added
// there is fuzzed too.
var templates = sync.OnceValue(func() (list [][][]byte) {
	for _, frame := range vectorFrames() {
		d := msgpack.NewDecoder(bytes.NewReader(frame[4:]))
		n, err := d.DecodeArrayLen()
		if err != nil {
			panic(err)
		}
		f := make([][]byte, n)
		for i := range f {
			if f[i], err = d.DecodeRaw(); err != nil {
				panic(err)
			}
		}
		list = append(list, f)
	}
	return list
})

// vectorFrames are the small frames in frames.jsonl.
func vectorFrames() (list [][]byte) {
	text, err := os.ReadFile("../testdata/frames.jsonl")
	for line := range bytes.Lines(text) {
		var v struct {
			Hex string `json:"hex"`
		}
		err = errors.Join(err, json.Unmarshal(line, &v))
		frame, e := hex.DecodeString(v.Hex)
		if err = errors.Join(err, e); len(frame) <= 1000 {
			list = append(list, frame)
		}
	}
	if err != nil {
		panic(err)
	}
	return list
}

// seed adds the vectors, each alone and all in a row, and some scripts.
func seed(f *testing.F) {
	framed, rawAll := []byte{modeFramed}, []byte{modeRaw}
	for i, frame := range vectorFrames() {
		rawAll = append(rawAll, frame...)
		f.Add(append([]byte{modeRaw}, frame...))
		if len(frame)-4 < 256 {
			one := append([]byte{byte(len(frame) - 4)}, frame[4:]...)
			framed = append(framed, one...)
			f.Add(append([]byte{modeFramed}, one...))
		}
		for at := range len(templates()[i]) {
			f.Add([]byte{modeScript, 10, 1, byte(i), byte(at), byte(i + at)})
		}
	}
	f.Add(framed)
	f.Add(rawAll)
	for _, s := range []string{
		"\x00\x01\x00\x01\x01", "\x00\x01\x01\x00\x00\x06\x01\x00", "\x00\x01\x02\x00\x01\x04\x01\x01\x05", "\x00\x01\x00\x00\x00\x02\x01\x00\x03\x03\x01",
		"\x08\x01\x04\x02\x01\x00\x01\x04\x02\x81\x02\x01\x01\x00\x07\x01\x01\x00", "\x08\x01\x04\x01\x00\x07\x01\x00\x00\x08\x01\x04\x00\x00",
		"\x08\x01\x04\x02\x01\x04\x01\x00\x07\x02\x01\x01\x03\x07\x01\x00\x00", "\x00\x01\x03\x02\x01", "\x00\x01\x05\x00\x41", "\x00\x01\x01\x00\x21",
	} {
		f.Add(append([]byte{modeScript}, s...))
	}
}

// house is a node with workers and a caller that behave; all executions of a
// fuzz target share one.
type house struct {
	node   *node.Node
	caller *bus.Client
	base   node.Books
}

func newHouse(f *testing.F) *house {
	n, err := node.New(node.Config{Network: "test", Queue: 20})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(n.Close)
	h := &house{node: n}
	w := h.client(f, "worker")
	for name, handler := range map[string]bus.Handler{
		"echo": func(_ context.Context, inv *bus.Invocation) bus.Result {
			if inv.Rest() != nil {
				io.Copy(inv.Stdout, inv.Rest())
			}
			return bus.Result{Output: inv.Head()}
		},
		"hold": func(ctx context.Context, _ *bus.Invocation) bus.Result {
			<-ctx.Done()
			return bus.Result{}
		},
		"flood": func(_ context.Context, inv *bus.Invocation) bus.Result {
			for chunk := make([]byte, 10000); ; {
				if _, err := inv.Stdout.Write(chunk); err != nil {
					return bus.Result{}
				}
				inv.Stderr.Write(chunk[:10])
			}
		},
		"no":     func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(75) },
		"beside": echo,
	} {
		if _, err := w.Offer(context.Background(), bus.Offer{Name: name, Slots: 2}, handler); err != nil {
			f.Fatal(err)
		}
	}
	other := h.client(f, "other")
	if _, err := other.Offer(context.Background(), bus.Offer{Name: "no", Slots: 1}, echo); err != nil {
		f.Fatal(err)
	}
	if _, err := other.Offer(context.Background(), bus.Offer{Name: "mine", Slots: 1}, echo); err != nil {
		f.Fatal(err) // or a call whose worker was lost waits five seconds for another
	}
	h.caller = h.client(f, "caller")
	h.base = n.Books()
	h.base.Budget = 0 // HELLO may still be on its way
	return h
}

func (h *house) client(f *testing.F, name string) *bus.Client {
	near, far := net.Pipe()
	go h.node.ServeConn(far, node.Peer{Caller: "uid:0"}) // ends with the connection
	c, err := bus.NewClient(context.Background(), near, &bus.Options{Name: name})
	if err != nil {
		f.Fatal(err)
	}
	return c
}

// session plays a peer: it sends what the fuzzer wants, reads everything, and
// hangs up when all is sent and linger has returned. Then the node's counts
// must be what they were.
func (h *house) session(t *testing.T, send []byte, linger func()) {
	t.Helper()
	near, far := net.Pipe()
	served, read := make(chan struct{}), make(chan struct{})
	go func() { // ends with the connection
		defer close(served)
		h.node.ServeConn(far, node.Peer{Caller: "uid:0"})
	}()
	go func() { // ends with the connection
		defer close(read)
		io.Copy(io.Discard, near)
	}()
	near.Write(send) // fails when the node has closed
	if err := h.node.Audit(); err != nil {
		t.Error(err)
	}
	linger()
	near.Close()
	<-read
	<-served
}

// settle waits until the node's counts are what they were, and checks that a
// call beside still works.
func (h *house) settle(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for h.node.Books() != h.base {
		if time.Now().After(deadline) {
			t.Fatalf("counts are %+v, they were %+v: %v", h.node.Books(), h.base, h.node.Calls())
		}
		runtime.Gosched()
	}
	if err := h.node.Audit(); err != nil {
		t.Error(err)
	}
	var out lockedBuffer
	if _, err := h.caller.Call(context.Background(), &bus.Request{Function: "beside", Input: strings.NewReader("x"), Stdout: &out, Timeout: patience}); err != nil || out.String() != "x" {
		t.Errorf("call beside: %q, error %v", out.String(), err)
	}
}

// FuzzSession: whatever a peer sends, it harms nobody else and leaves nothing.
func FuzzSession(f *testing.F) {
	seed(f)
	h := newHouse(f)
	var before int
	f.Fuzz(func(t *testing.T, data []byte) {
		if before == 0 {
			before = runtime.NumGoroutine()
		}
		h.session(t, stream(data, relayHello()), func() {})
		h.settle(t)
		noMoreGoroutines(t, before)
	})
}

// FuzzWorkerSession: a worker that does what the fuzzer wants gets calls from a
// caller that behaves; each of those ends.
func FuzzWorkerSession(f *testing.F) {
	seed(f)
	h := newHouse(f)
	var before int
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		if before == 0 {
			before = runtime.NumGoroutine()
		}
		offer := &wire.OfferFrame{Seq: 1, Name: []byte("mine"), Slots: 5, Flags: uint64(data[0] >> 7)}
		near, far := net.Pipe()
		served := make(chan struct{})
		go func() { // ends with the connection
			defer close(served)
			h.node.ServeConn(far, node.Peer{Caller: "uid:0"})
		}()
		p := &raw{t: t, nc: near, r: bufio.NewReader(near)}
		p.send(hello(), offer)
		want[*wire.OfferedFrame](p)
		ends := make(chan error, 3)
		for _, req := range []bus.Request{
			{Function: "mine", Input: strings.NewReader("whole"), Args: args.List("a")},
			{Function: "mine", Input: &endless{left: 1 << 20}, Stdout: io.Discard},
			{Function: "mine", Retries: 1, Stderr: io.Discard},
		} {
			go func() { // ends with the call
				_, err := h.caller.Call(context.Background(), &req)
				ends <- err
			}()
			want[*wire.CallFrame](p) // one after the other, so that their ids are known
		}
		read := make(chan struct{})
		go func() { // ends with the connection
			defer close(read)
			io.Copy(io.Discard, p.r)
		}()
		near.Write(stream(data))
		if err := h.node.Audit(); err != nil {
			t.Error(err)
		}
		near.Close()
		<-read
		<-served
		for range 3 {
			select {
			case <-ends:
			case <-time.After(patience):
				t.Fatalf("a call has not ended: %v", h.node.Calls())
			}
		}
		h.settle(t)
		noMoreGoroutines(t, before)
	})
}

// endless is an input of zeros, of which nobody knows the length.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), e.left)
	e.left -= n
	return n, nil
}

// FuzzClient: whatever a node sends, a client's calls and handlers end.
func FuzzClient(f *testing.F) {
	seed(f)
	var before int
	f.Fuzz(func(t *testing.T, data []byte) {
		if before == 0 {
			before = runtime.NumGoroutine()
		}
		near, far := net.Pipe()
		p := &raw{t: t, nc: far, r: bufio.NewReader(far)}
		go far.Write(encode(&wire.HelloFrame{Major: 1, Connection: []byte("n-1")})) // ends when that is read
		read := make(chan struct{})
		calls := make(chan struct{}, 2)
		go func() { // ends with the connection
			defer close(read)
			for open := 0; ; {
				f, err := p.next()
				if err != nil {
					return
				}
				switch f.(type) {
				case *wire.OfferFrame:
					go far.Write(encode(&wire.OfferedFrame{Seq: 1})) // ends when that is read
				case *wire.CallFrame:
					if open++; open <= 2 {
						calls <- struct{}{}
					}
				}
			}
		}()
		c, err := bus.NewClient(context.Background(), near, &bus.Options{Name: "client"})
		if err != nil {
			t.Fatal(err)
		}
		handler := func(ctx context.Context, inv *bus.Invocation) bus.Result {
			if inv.Rest() != nil {
				io.Copy(inv.Stdout, inv.Rest())
			}
			io.WriteString(inv.Stderr, "err")
			return bus.Result{Output: make([]byte, 1000)}
		}
		if _, err := c.Offer(context.Background(), bus.Offer{Name: "mine", Slots: 2}, handler); err != nil {
			t.Fatal(err)
		}
		ends := make(chan error, 2)
		for _, req := range []bus.Request{{Function: "f"}, {Function: "g", Input: &endless{left: 1 << 20}, Stdout: io.Discard}} {
			go func() { // ends with the call
				_, err := c.Call(context.Background(), &req)
				ends <- err
			}()
			<-calls
		}
		far.Write(stream(data)) // fails when the client has closed
		far.Close()
		<-read
		for range 2 {
			select {
			case <-ends:
			case <-time.After(patience):
				t.Fatal("a call has not ended")
			}
		}
		c.Close()
		noMoreGoroutines(t, before)
	})
}

// noMoreGoroutines waits until no more run than before.
func noMoreGoroutines(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}
