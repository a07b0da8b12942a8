package node_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// frameOf frames a body that no encoder would write.
func frameOf(body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// TestHostilePeers: what breaks the protocol costs the connection it came on,
// with an ERROR that says so, and nothing else.
func TestHostilePeers(t *testing.T) {
	call := func(id uint64, name string) []byte { return encode(callFrame(id, name, "x")) }
	open := func(id uint64, name string) []byte { return encode(openFrame(id, name)) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	deep := func(n int) []byte {
		return frameOf(append(append([]byte{0x93, 7, 1}, bytes.Repeat([]byte{0x91}, n)...), 0xc0)...)
	}
	late := func(major uint64, network string) []byte {
		return encode(&wire.HelloFrame{Major: major, Network: []byte(network), Name: []byte("x")})
	}
	for _, tc := range []struct {
		name  string
		first bool // sent instead of HELLO
		send  []byte
		code  string
	}{
		{"a length bomb before HELLO", true, []byte{0xff, 0xff, 0xff, 0xff}, args.CodeProtocol},
		{"an over-long HELLO", true, []byte{0, 0, 0x10, 1, 0x98}, args.CodeProtocol},
		{"a HELLO with too much text", true, encode(&wire.HelloFrame{Major: 1, Name: make([]byte, 4096)}), args.CodeProtocol},
		{"another major version", true, late(2, ""), args.CodeVersion},
		{"major version 0", true, late(0, ""), args.CodeVersion},
		{"another network", true, late(1, "other"), args.CodeNetwork},
		{"a call before HELLO", true, call(1, "beside"), args.CodeProtocol},
		{"an offer before HELLO", true, encode(&wire.OfferFrame{Seq: 1, Name: []byte("f"), Slots: 1}), args.CodeProtocol},
		{"ERROR before HELLO", true, encode(&wire.ErrorFrame{}), args.CodeProtocol},
		{"text", true, []byte("GET / HTTP/1.1\r\n\r\n"), args.CodeProtocol},
		{"nothing in a frame", true, []byte{0, 0, 0, 0}, args.CodeProtocol},
		{"100 capabilities", true, encode(&wire.HelloFrame{Major: 1, Caps: make([][]byte, 100)}), args.CodeProtocol},
		{"major version 65536", true, late(65536, ""), args.CodeProtocol},

		{"a second HELLO", false, encode(hello()), args.CodeProtocol},
		{"a length bomb", false, []byte{0x7f, 0xff, 0xff, 0xff}, args.CodeProtocol},
		{"a frame one byte too long", false, []byte{0, 0x10, 0, 1}, args.CodeProtocol},
		{"an array bomb", false, frameOf(0xdd, 0xff, 0xff, 0xff, 0xff, 7, 1), args.CodeProtocol},
		{"a bin bomb", false, frameOf(0x94, 6, 1, 0, 0xc6, 0xff, 0xff, 0xff, 0xff), args.CodeProtocol},
		{"a map bomb in an extra element", false, frameOf(0x93, 7, 1, 0xdf, 0xff, 0xff, 0xff, 0xff), args.CodeProtocol},
		{"a nesting bomb", false, deep(100000), args.CodeProtocol},
		{"nesting one too deep", false, deep(17), args.CodeProtocol},
		{"too few elements", false, frameOf(0x91, 7), args.CodeProtocol},
		{"bytes left over", false, frameOf(0x92, 7, 1, 0), args.CodeProtocol},
		{"a negative id", false, frameOf(0x92, 7, 0xff), args.CodeProtocol},
		{"an id over 2^53", false, encode(&wire.EOFFrame{ID: 1<<53 + 1}), args.CodeProtocol},
		{"an id used again", false, join(call(1, "beside"), call(1, "beside")), args.CodeProtocol},
		{"an id that falls", false, join(call(5, "beside"), call(4, "beside")), args.CodeProtocol},
		{"id 0", false, call(0, "beside"), args.CodeProtocol},
		{"DATA for a call never opened", false, encode(&wire.DataFrame{ID: 9}), args.CodeProtocol},
		{"EOF for a call never opened", false, encode(&wire.EOFFrame{ID: 1}), args.CodeProtocol},
		{"GRANT for a call never opened", false, encode(&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 1}), args.CodeProtocol},
		{"CANCEL for a call never opened", false, encode(&wire.CancelFrame{ID: 1}), args.CodeProtocol},
		{"END for a call not given", false, encode(exit(1, 0)), args.CodeProtocol},
		{"output for a call not given", false, encode(&wire.DataFrame{ID: 1, Stream: wire.Output}), args.CodeProtocol},
		{"a grant of input for a call not given", false, encode(&wire.GrantFrame{ID: 1, Bytes: 1}), args.CodeProtocol},
		{"OFFERED", false, encode(&wire.OfferedFrame{Seq: 1}), args.CodeProtocol},
		{"DATA without credit", false, join(open(1, "hold"), encode(&wire.DataFrame{ID: 1, Payload: make([]byte, 5<<20>>3)})), args.CodeProtocol},
		{"DATA in the queue", false, join(open(1, "hold"), open(2, "hold"), encode(&wire.DataFrame{ID: 2, Payload: []byte("x")})), args.CodeProtocol},
		{"DATA after EOF", false, join(open(1, "hold"), encode(&wire.EOFFrame{ID: 1}, &wire.DataFrame{ID: 1, Payload: []byte("x")})), args.CodeProtocol},
		{"empty DATA after EOF", false, join(open(1, "hold"), encode(&wire.EOFFrame{ID: 1}, &wire.DataFrame{ID: 1})), args.CodeProtocol},
		{"EOF twice", false, join(open(1, "hold"), encode(&wire.EOFFrame{ID: 1}, &wire.EOFFrame{ID: 1})), args.CodeProtocol},
		{"EOF after a whole CALL", false, join(call(1, "hold"), encode(&wire.EOFFrame{ID: 1})), args.CodeProtocol},
		{"too much credit", false, join(call(1, "hold"), encode(&wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 4 << 20})), args.CodeProtocol},
		{"too much credit, bit by bit", false, join(call(1, "hold"), bytes.Repeat(encode(&wire.GrantFrame{ID: 1, Stream: wire.Stderr, Bytes: 1 << 20}), 4)), args.CodeProtocol},
		{"input of 32769 bytes in CALL", false, encode(callFrame(1, "hold", strings.Repeat("x", 32769))), args.CodeProtocol},
		{"a window of 4 MiB and 1", false, encode(&wire.CallFrame{ID: 1, Name: []byte("hold"), WindowOutput: 4<<20 + 1}), args.CodeProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
				n, path := start(t, node.Config{})
				b := beside(t, path)
				offerFunc(t, dial(t, path), "hold", 1, newGate().handle)
				before := n.Books()
				p := connect(t, n, path)
				if !tc.first {
					p.greet()
				}
				go p.write(tc.send) // ends when the node has read or closed
				if code := p.closed(); code != tc.code {
					t.Errorf("closed with %q, want %q", code, tc.code)
				}
				p.nc.Close()
				settled(t, n, before)
				b.works()
				b.sane(time.Second)
			})
		})
	}
}

// TestTolerated: what looks odd and is allowed costs nothing.
func TestTolerated(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	offerFunc(t, dial(t, path), "echo", 1, echo)
	before := n.Books()
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		p := connect(t, n, path)
		ok := func(what string, id uint64, frames ...[]byte) {
			t.Helper()
			p.write(append(bytes.Join(frames, nil), encode(callFrame(id, "echo", "still"))...))
			for {
				f := want[*wire.EndFrame](p)
				if f.ID == id {
					if string(f.Output) != "still" {
						t.Errorf("after %s: %+v", what, f)
					}
					return
				}
			}
		}
		p.write(frameOf(0x9a, 1, 1, 0xcd, 0xff, 0xff, 0xa0, 0xa0, 0xa1, 'x', 0x90, 0xa0, 0xc0, 0x92, 1, 0xc3)) // a newer minor version
		want[*wire.HelloFrame](p)
		ok("an unknown type", 1, frameOf(0x92, 99, 0xc0), frameOf(0xdc, 0, 1, 0xcc, 200))
		ok("extra elements", 2, frameOf(0x99, 5, 0xd3, 0, 0, 0, 0, 0, 0, 0, 3, 0xa0, 0, 0xa0, 0xa0, 1, 0, 0)[:0])
		p.write(encode(callFrame(5, "echo", "x")))
		want[*wire.EndFrame](p)
		ok("late frames of a call that has ended", 6, encode(
			&wire.DataFrame{ID: 5, Payload: []byte("late")}, &wire.EOFFrame{ID: 5}, &wire.GrantFrame{ID: 5, Stream: wire.Output, Bytes: 4 << 20}, &wire.CancelFrame{ID: 5}))
		ok("frames of an id that was passed over", 7, encode(&wire.DataFrame{ID: 3, Payload: []byte("x")}, &wire.CancelFrame{ID: 4}))
		wait := openFrame(8, "nobody")
		wait.WaitFunction = wire.Forever
		ok("empty DATA while queued", 9, encode(wait, &wire.DataFrame{ID: 8}, &wire.GrantFrame{ID: 8, Stream: wire.Output}, &wire.EOFFrame{ID: 8}, &wire.CancelFrame{ID: 8}))
		ok("a jump of ids", 1<<40, nil)
		p.nc.Close()
		settled(t, n, before)
	})
}

// TestSessionEverySplit: a whole session of a worker and a caller, on one
// connection, cut in two at every place and sent byte by byte.
func TestSessionEverySplit(t *testing.T) {
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		n, path := start(t, node.Config{})
		before := n.Books()
		session := encode(
			hello(), &wire.OfferFrame{Seq: 1, Name: []byte("f"), Slots: 1},
			callFrame(1, "f", "in"), &wire.GrantFrame{ID: 1, Stream: wire.Output, Bytes: 10},
		)
		// The node's CALL has come by then.
		answer := encode(&wire.DataFrame{ID: 1, Stream: wire.Output, Payload: []byte("out")}, &wire.DataFrame{ID: 1, Stream: wire.Stderr, Payload: []byte("err")}, exit(1, 3))
		play := func(chunks func(p *raw, all []byte)) {
			t.Helper()
			p := connect(t, n, path)
			sent := make(chan struct{})
			go func() { // ends when the node has read it
				defer close(sent)
				chunks(p, session)
			}()
			if f := want[*wire.CallFrame](p); string(f.Input) != "in" {
				t.Fatalf("%+v", f)
			}
			await(t, "the session's last byte", sent)
			chunks(p, answer)
			if f := want[*wire.EndFrame](p); f.Status != 3 || f.ID != 1 {
				t.Fatalf("%+v", f)
			}
			p.nc.Close()
			settled(t, n, before) // or the next call goes to this worker
		}
		for cut := range session {
			play(func(p *raw, all []byte) {
				k := min(cut, len(all))
				p.write(all[:k])
				p.write(all[k:])
			})
		}
		play(func(p *raw, all []byte) {
			for i := range all {
				p.write(all[i : i+1])
			}
		})
		settled(t, n, before)
	})
}

// TestHalfSession: a session that breaks off at every place.
func TestHalfSession(t *testing.T) {
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		n, path := start(t, node.Config{})
		b := beside(t, path)
		before := n.Books()
		session := encode(
			hello(), &wire.OfferFrame{Seq: 1, Name: []byte("f"), Slots: 1}, callFrame(1, "f", "in"), openFrame(2, "beside"),
			&wire.DataFrame{ID: 1, Stream: wire.Output, Payload: []byte("out")},
		)
		for cut := range session {
			p := connect(t, n, path)
			go io.Copy(io.Discard, p.nc) // ends with the connection
			p.write(session[:cut])
			p.nc.Close()
		}
		settled(t, n, before)
		b.works()
	})
}

// shortGreeting makes the time for HELLO pass at once.
type shortGreeting struct {
	net.Conn
	asked chan time.Duration
}

func (s *shortGreeting) SetReadDeadline(t time.Time) error {
	if !t.IsZero() {
		s.asked <- time.Until(t)
		t = time.Now()
	}
	return s.Conn.SetReadDeadline(t)
}

// TestSlowHandshake: HELLO has ten seconds, and no more. Then the node says why it closes.
func TestSlowHandshake(t *testing.T) {
	noLeaks(t)
	n, _ := start(t, node.Config{})
	near, far := net.Pipe()
	slow := &shortGreeting{far, make(chan time.Duration, 1)}
	served := make(chan struct{})
	go func() { // ends with the time for HELLO
		defer close(served)
		n.ServeConn(slow, node.Peer{Caller: "uid:0"})
	}()
	p := newRaw(t, near)
	if d := await(t, "a deadline", slow.asked); d < 5*time.Second || d > 10*time.Second {
		t.Errorf("HELLO has %v", d)
	}
	if code := p.closed(); code != args.CodeProtocol {
		t.Errorf("closed with %q", code)
	}
	await(t, "the end of ServeConn", served)
}

// TestIdleConnections: a thousand that say HELLO, or nothing, or half of it,
// are no trouble.
func TestIdleConnections(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	b := beside(t, path)
	before := n.Books()
	conns := make([]*raw, 1000)
	for i := range conns {
		switch p := rawUnix(t, n, path); i % 3 {
		case 0:
			conns[i] = p.greet()
		case 1:
			p.write(encode(hello())[:7])
			conns[i] = p
		default:
			conns[i] = p
		}
	}
	for range 100 {
		b.works()
	}
	b.sane(time.Second)
	if info := n.Info(); info.Sessions < 1000 {
		t.Errorf("%d connections", info.Sessions)
	}
	for _, p := range conns {
		p.nc.Close()
	}
	settled(t, n, before)
}

// TestPeerThatNeverReads: its connection is closed when its backlog is full, and
// nobody else notices.
func TestPeerThatNeverReads(t *testing.T) {
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		if strings.HasSuffix(t.Name(), "pipe") && !thorough() || raceEnabled && !strings.HasSuffix(t.Name(), "unix") {
			t.Skip("takes long: set FBUS_SOAK=1, without -race")
		}
		n, path := start(t, node.Config{})
		b := beside(t, path)
		before := n.Books()
		p := connect(t, n, path).greet()
		// Each of these is answered by END with a message of some length.
		frames := make([]byte, 0, 1<<20)
		closed := make(chan struct{})
		go func() { // ends when the node has closed
			defer close(closed)
			for id := uint64(1); ; {
				frames = frames[:0]
				for range 2000 {
					f := callFrame(id, strings.Repeat("-", 200), "")
					frames = wire.Append(frames, f)
					id++
				}
				p.nc.SetWriteDeadline(time.Now().Add(patience))
				if _, err := p.nc.Write(frames); err != nil {
					return
				}
			}
		}()
		for done := false; !done; {
			select {
			case <-closed:
				done = true
			default:
				b.works()
			}
		}
		p.nc.Close()
		settled(t, n, before)
		b.sane(time.Second)
	})
}

// TestWorkerThatNeverReads stalls the calls it was given, and no others.
func TestWorkerThatNeverReads(t *testing.T) {
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		n, path := start(t, node.Config{})
		b := beside(t, path)
		before := n.Books()
		w := connect(t, n, path).greet()
		w.offer("stuck", 1000, 0)
		c := dial(t, path)
		var calls []<-chan outcome
		for range 300 {
			calls = append(calls, post(bg(), c, bus.Request{Function: "stuck", Input: strings.NewReader(strings.Repeat("x", 30000)), Timeout: 50 * time.Millisecond}))
		}
		for _, ch := range calls {
			wantErr(t, await(t, "the deadline", ch).err, bus.ErrDeadline)
		}
		b.works()
		b.sane(time.Second)
		w.nc.Close()
		c.Close()
		settled(t, n, before)
	})
}

// TestManyHostilePeers: together they are no worse than alone.
func TestManyHostilePeers(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	b := beside(t, path)
	before := n.Books()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			nc, err := net.Dial("unix", path)
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			junk := bytes.Repeat([]byte{byte(i), 0x91, 0, 0, 0, 3, 0x92, 7, 1}, 1000)
			for k := range 20 {
				nc.Write(encode(hello(), callFrame(uint64(k+1), "beside", "x")))
			}
			nc.Write(junk)
		})
	}
	for range 50 {
		b.works()
	}
	wg.Wait()
	settled(t, n, before)
	b.sane(2 * time.Second)
}

// TestLongFramesArePassedOn: a frame as long as allowed is not too long for the
// next hop, where the ids are longer.
func TestLongFramesArePassedOn(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	w, c := rawUnix(t, n, path).greet(), rawUnix(t, n, path).greet()
	w.offer("f", 10, 0)
	for id := uint64(1); id <= 200; id++ { // so that the worker's ids take two bytes
		c.send(callFrame(id, "f", ""))
		want[*wire.CallFrame](w)
		w.send(exit(id, 0))
		want[*wire.EndFrame](c)
	}
	c2 := rawUnix(t, n, path).greet()
	f := openFrame(1, "f")
	f.WindowOutput = wire.MaxWindow
	c2.send(f)
	id := want[*wire.CallFrame](w).ID
	w.send(&wire.GrantFrame{ID: id, Bytes: 4 << 20})
	longest := &wire.DataFrame{ID: 1, Payload: make([]byte, 1<<20)}
	longest.Payload = longest.Payload[len(longest.AppendHead(nil))-4:]
	granted := uint64(0)
	for granted < 2<<20 {
		granted += want[*wire.GrantFrame](c2).Bytes
	}
	c2.send(longest)
	got := 0
	for got < len(longest.Payload) {
		got += len(want[*wire.DataFrame](w).Payload)
	}
	// The same backwards: END with all that fits, to which the node adds names.
	w.send(&wire.DataFrame{ID: id, Stream: wire.Output, Payload: make([]byte, 64<<10)})
	want[*wire.DataFrame](c2)
	for granted = 0; granted < 2<<20; {
		granted += want[*wire.GrantFrame](w).Bytes
	}
	end := exit(id, 0)
	end.Output = make([]byte, 1<<20)
	end.Output = end.Output[len(wire.Append(nil, end))-4-1<<20:]
	w.send(end)
	got = 0
	for {
		f, err := c2.next()
		if err != nil {
			t.Fatal(err)
		}
		switch f := f.(type) {
		case *wire.DataFrame:
			got += len(f.Payload)
		case *wire.EndFrame:
			if got += len(f.Output); got != len(end.Output) {
				t.Errorf("%d of %d bytes", got, len(end.Output))
			}
			if l := len(wire.Append(nil, f)) - 4; l > wire.MaxFrame {
				t.Errorf("END of %d bytes", l)
			}
			return
		}
	}
}

// TestCallsPerConnection: ten thousand calls may be open on one connection, the
// next is busy; at a worker as well, whatever its slots.
func TestCallsPerConnection(t *testing.T) {
	noLeaks(t)
	log := newLog(t)
	n, path := start(t, node.Config{Queue: 100, Log: log.Log})
	w := rawUnix(t, n, path).greet()
	w.offer("f", 1<<20, 0)
	go io.Copy(io.Discard, w.r) // ends with the connection
	before := n.Books()
	for round := range 2 {
		c := rawUnix(t, n, path).greet()
		var frames []byte
		for id := uint64(1); id <= 10001; id++ {
			f := callFrame(id, "f", "")
			f.WaitSlot = 0
			frames = wire.Append(frames, f)
		}
		c.write(frames)
		if f := want[*wire.EndFrame](c); string(f.Code) != args.CodeBusy || round == 0 && f.ID != 10001 {
			t.Errorf("%+v", f)
		}
		if round == 0 && log.all()["f fbus 75 busy"] != 1 {
			t.Error("the call that was refused is not in the log")
		}
		c.nc.Close()
		eventually(t, "the caller's end", func() bool { return n.Books().Sessions == before.Sessions })
		// The worker does not end them: they still count there.
		if open := n.Live(); open > 10000 {
			t.Errorf("%d calls are held for one worker", open)
		}
	}
	w.nc.Close()
	eventually(t, "the end of all", func() bool { return n.Live() == 0 })
	if err := n.Audit(); err != nil {
		t.Error(err)
	}
}

// TestHandshakeOptions: a client may send on right behind its HELLO, and name
// the network or not.
func TestHandshakeOptions(t *testing.T) {
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		n, path := start(t, node.Config{})
		for _, network := range []string{"", "test"} {
			p := connect(t, n, path)
			me := hello()
			me.Network = []byte(network)
			big := callFrame(1, "nobody", strings.Repeat("x", wire.MaxInlineInput)) // longer than a HELLO may be
			go p.send(me, big)                                                      // ends when that is read
			h := want[*wire.HelloFrame](p)
			f := want[*wire.EndFrame](p)
			if string(h.Network) != "test" || string(f.Call) != fmt.Sprintf("%s-1", h.Connection) || string(f.Code) != args.CodeNoFunction {
				t.Errorf("%+v %+v", h, f)
			}
		}
	})
}

// TestTextOfPeersIsBounded: what offers and calls say in words is held, too.
func TestTextOfPeersIsBounded(t *testing.T) {
	if raceEnabled {
		t.Skip("is about memory")
	}
	noLeaks(t)
	p := startProcess(t)
	b := beside(t, p.path)
	long := bytes.Repeat([]byte("x"), wire.MaxText)
	for range 2 {
		w := rawUnix(t, nil, p.path).greet()
		go func() { // ends with the connection
			for i := range 10000 {
				w.send(&wire.OfferFrame{Seq: uint64(i), Name: fmt.Appendf(nil, "f%d", i), Slots: 1, Description: long, Arguments: long})
			}
		}()
		for {
			if a := want[*wire.OfferedFrame](w); a.Seq == 9999 {
				if string(a.Code) != args.CodeBusy {
					t.Errorf("10,000 offers of 8 KiB stand: %q", a.Code)
				}
				break
			}
		}
	}
	c := rawUnix(t, nil, p.path).greet()
	go func() { // ends with the connection
		for id := uint64(1); id <= 10000; id++ {
			f := callFrame(id, fmt.Sprintf("nobody-%d", id), "")
			f.WaitFunction, f.On = wire.Forever, long
			c.send(f)
		}
		c.send(callFrame(10001, "-", ""))
	}()
	for want[*wire.EndFrame](c).ID != 10001 {
	}
	c.nc.Close()
	eventually(t, "room", func() bool {
		return await(t, "a call", post(bg(), b.client, bus.Request{Function: "beside"})).err == nil
	})
	p.under(100e6) // it was 270
}

// TestSchemasAreBounded: what a connection says about its functions is held, and
// replaced text makes room.
func TestSchemasAreBounded(t *testing.T) {
	noLeaks(t)
	_, path := start(t, node.Config{})
	w := rawUnix(t, nil, path).greet()
	schema := []byte(`"` + strings.Repeat("x", wire.MaxSchema-2) + `"`)
	make := func(i int, schema []byte) string {
		w.send(&wire.OfferFrame{Seq: uint64(i), Name: fmt.Appendf(nil, "f%d", i), Slots: 1, Schema: schema})
		return string(want[*wire.OfferedFrame](w).Code)
	}
	for i := range 32 {
		if code := make(i, schema); code != "" {
			t.Fatalf("schema %d: %s", i, code)
		}
	}
	for _, step := range []struct {
		i      int
		schema string
		code   string
	}{{32, "1", args.CodeBusy}, {0, "{", args.CodeUsage}, {0, "{}", ""}, {32, "1", ""}} {
		if code := make(step.i, []byte(step.schema)); code != step.code {
			t.Errorf("%s as f%d: %q", step.schema, step.i, code)
		}
	}
}

// TestWrongDirection: the error about a frame of the wrong side says which side sends it.
func TestWrongDirection(t *testing.T) {
	_, path := start(t, node.Config{})
	for _, f := range []wire.Frame{&wire.GrantFrame{ID: 1}, &wire.DataFrame{ID: 1, Stream: wire.Output}, &wire.EndFrame{ID: 1}} {
		worker := rawUnix(t, nil, path).greet()
		worker.offer("hold", 1, 0)
		caller := rawUnix(t, nil, path).greet()
		caller.write(encode(openFrame(1, "hold"), f))
		if e := want[*wire.ErrorFrame](caller); string(e.Code) != args.CodeProtocol || string(e.Message) != wire.NotOpen(f, 1, true).(*args.Error).Message {
			t.Errorf("%T from the opener: %s", f, e.Message)
		}
	}
	for _, f := range []wire.Frame{&wire.GrantFrame{ID: 1, Stream: wire.Output}, &wire.DataFrame{ID: 1}, &wire.EOFFrame{ID: 1}, &wire.CancelFrame{ID: 1}} {
		worker := rawUnix(t, nil, path).greet()
		worker.offer("held", 1, 0)
		caller := rawUnix(t, nil, path).greet()
		caller.write(encode(openFrame(1, "held")))
		want[*wire.CallFrame](worker)
		worker.write(encode(f))
		if e := want[*wire.ErrorFrame](worker); string(e.Code) != args.CodeProtocol || string(e.Message) != wire.NotOpen(f, 1, true).(*args.Error).Message {
			t.Errorf("%T from the acceptor: %s", f, e.Message)
		}
	}
}
