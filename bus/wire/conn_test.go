package wire

import (
	"bytes"
	"context"
	"errors"
	"fbus/bus/args"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// Backlog returns the number of bytes that wait for the peer to read, without those that a write
// under way has taken.
func (c *Conn) Backlog() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.backlog()
}

// collect keeps the frames that Serve hands to it.
type collect struct{ got []byte }

func (c *collect) Handle(_ *Batch, f Frame) error {
	c.got = Append(c.got, f)
	return nil
}

// TestServeEverySplit: frames arrive whole wherever the stream is cut.
func TestServeEverySplit(t *testing.T) {
	var all []byte
	for _, v := range vectors() {
		if raw := Append(nil, v.f); len(raw) < 1000 {
			all = append(all, raw...)
		}
	}
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) {
			step := 1
			if kind == "tls" {
				step = 17 // a handshake each; and see TestServeBytewise
			}
			for cut := 0; cut <= len(all); cut += step {
				if got, err := serveChunks(t, kind, all[:cut], all[cut:]); err != io.EOF || !bytes.Equal(got, all) {
					t.Fatalf("cut at %d: error %v, %d of %d bytes", cut, err, len(got), len(all))
				}
			}
			var single [][]byte
			for i := range all {
				single = append(single, all[i:i+1])
			}
			if got, err := serveChunks(t, kind, single...); err != io.EOF || !bytes.Equal(got, all) {
				t.Fatalf("byte by byte: error %v, %d of %d bytes", err, len(got), len(all))
			}
		})
	}
}

// TestServeEOF: an end between frames is clean, inside one it is not.
func TestServeEOF(t *testing.T) {
	frame := Append(nil, &EOFFrame{ID: 1})
	for _, kind := range transports {
		for cut := 0; cut <= len(frame); cut++ {
			want := io.ErrUnexpectedEOF
			if cut == 0 || cut == len(frame) {
				want = io.EOF
			}
			if _, err := serveChunks(t, kind, frame[:cut]); err != want {
				t.Errorf("%s, cut at %d: error %v, want %v", kind, cut, err, want)
			}
		}
	}
}

// TestServeLarge: frames larger than the read buffer, up to the limit and one
// byte over it.
func TestServeLarge(t *testing.T) {
	for _, size := range []int{SmallRest, readBuffer - 20, readBuffer, readBuffer + 1, MaxFrame - 20, MaxFrame - 9} {
		raw := Append(nil, &DataFrame{ID: 1, Stream: Output, Payload: make([]byte, size)})
		raw = append(raw, Append(nil, &EOFFrame{ID: 7})...)
		for _, kind := range transports {
			if got, err := serveChunks(t, kind, raw[:100], raw[100:]); err != io.EOF || !bytes.Equal(got, raw) {
				t.Errorf("%s, %d bytes: error %v", kind, size, err)
			}
		}
	}
	raw := Append(nil, &DataFrame{ID: 1, Stream: Output, Payload: make([]byte, MaxFrame)})
	if _, err := serveChunks(t, "unix", raw); !errors.Is(err, args.ErrMalformed) {
		t.Errorf("a frame too long: error %v", err)
	}
}

// serveChunks writes chunks one after the other, each when the one before was
// read, and returns the frames that came out, encoded again.
func serveChunks(t *testing.T, kind string, chunks ...[]byte) ([]byte, error) {
	t.Helper()
	near, far := pair(t, kind)
	budget := &Budget{Max: 1 << 30}
	conn := NewConn(far, budget)
	go func() { // ends with the last chunk
		defer near.Close()
		go io.Copy(io.Discard, near) // ends with the connection
		for _, chunk := range chunks {
			if _, err := near.Write(chunk); err != nil {
				return
			}
		}
	}()
	h := &collect{}
	err := conn.Serve(h, func() int { return MaxFrame })
	if used := budget.Used(); used != 0 {
		t.Errorf("%d bytes of the budget are left", used)
	}
	return h.got, err
}

// TestBacklogLimit: a peer that reads nothing loses the connection when its
// backlog is full, and the budget gets everything back.
func TestBacklogLimit(t *testing.T) {
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) {
			defer noneLeft(t)()
			near, far := pair(t, kind)
			defer near.Close()
			budget := &Budget{Max: 1 << 30}
			conn := NewConn(far, budget)
			sent := 0
			var err error
			for payload := make([]byte, ChunkSize); err == nil && sent < 10*MaxBacklog; sent += len(payload) {
				err = conn.Send(&DataFrame{ID: 1, Stream: Output, Payload: payload})
			}
			if !errors.Is(err, ErrBacklog) {
				t.Errorf("error %v after %d bytes", err, sent)
			}
			if sent > MaxBacklog+2*unixBuffer+1<<20 { // with what the kernel holds
				t.Errorf("%d bytes were taken, %d is the limit", sent, MaxBacklog)
			}
			for deadline := time.Now().Add(time.Minute); budget.Used() != 0; runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatalf("%d bytes of the budget are left", budget.Used())
				}
			}
		})
	}
}

// TestBacklogCountsWhatIsBeingWritten: the limit holds for a peer that reads
// now and then, too.
func TestBacklogCountsWhatIsBeingWritten(t *testing.T) {
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) {
			near, far := pair(t, kind)
			defer near.Close()
			budget := &Budget{Max: 1 << 30}
			conn := NewConn(far, budget)
			defer conn.Close(nil)
			frame := &DataFrame{ID: 1, Stream: Output, Payload: make([]byte, ChunkSize)}
			clog(conn)
			for conn.Backlog() < MaxBacklog/2 {
				if err := conn.Send(frame); err != nil {
					t.Fatal(err)
				}
			}
			// Something is read: the writer goes on to what has come since.
			io.ReadFull(near, make([]byte, len(Append(nil, frame))+1))
			most := budget.Used()
			for conn.Send(frame) == nil && most < 10*MaxBacklog {
				most = max(most, budget.Used())
			}
			if most > MaxBacklog+3*ChunkSize {
				t.Errorf("%d bytes are held for one peer, %d is the limit", most, MaxBacklog)
			}
		})
	}
}

// TestWaitSpace: senders that can wait do, until the peer reads, the connection
// fails or they are told to stop.
func TestWaitSpace(t *testing.T) {
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) { testWaitSpace(t, kind) })
	}
}

func testWaitSpace(t *testing.T, kind string) {
	fill := func() (near net.Conn, conn *Conn) {
		near, far := pair(t, kind)
		conn = NewConn(far, nil)
		clog(conn)
		for conn.Backlog() <= sendMark {
			conn.Send(&DataFrame{ID: 1, Stream: Output, Payload: make([]byte, ChunkSize)})
		}
		return near, conn
	}
	near, conn := fill()
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if err := conn.WaitSpace(ctx); err != context.Canceled {
		t.Errorf("error %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- conn.WaitSpace(context.Background()) }()
	go io.Copy(io.Discard, near) // ends with the connection
	if err := <-done; err != nil {
		t.Error(err)
	}
	conn.Close(nil)
	near, conn = fill()
	defer near.Close()
	go func() { done <- conn.WaitSpace(context.Background()) }()
	conn.Close(io.ErrClosedPipe)
	if err := <-done; err != io.ErrClosedPipe {
		t.Errorf("error %v", err)
	}
}

// TestWaitSpaceForBatch: senders that wait for the flush of a batch go on when one write takes all of it.
func TestWaitSpaceForBatch(t *testing.T) {
	near, far := pair(t, "unix")
	far.(*net.UnixConn).SetWriteBuffer(4 << 20)
	go io.Copy(io.Discard, near) // ends with the connection
	conn := NewConn(far, nil)
	defer conn.Close(nil)
	var b Batch
	for conn.Backlog() < sendMark { // short frames: a long one would be written at once
		b.Send(conn, &DataFrame{ID: 1, Stream: Output, Payload: make([]byte, 1000)})
	}
	done := make(chan error, 1)
	go func() { done <- conn.WaitSpace(context.Background()) }()
	for waits := false; !waits; runtime.Gosched() {
		conn.mu.Lock()
		waits = conn.space != nil
		conn.mu.Unlock()
	}
	b.Flush()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// clog sends until the writer has taken something that the peer does not read.
func clog(conn *Conn) {
	for taken := false; !taken; runtime.Gosched() {
		if !conn.Stalled() {
			conn.Send(&DataFrame{ID: 1, Stream: Output, Payload: make([]byte, ChunkSize)})
		}
		conn.mu.Lock()
		taken = conn.under > 0
		conn.mu.Unlock()
	}
}

// TestHalfFramesAreCounted: what is held of unfinished frames counts.
func TestHalfFramesAreCounted(t *testing.T) {
	budget := &Budget{Max: 1 << 30}
	const conns, size = 50, 5000
	half := Append(nil, &DataFrame{ID: 1, Stream: Output, Payload: make([]byte, 2*size)})[:size]
	var near []net.Conn
	done := make(chan error, conns)
	for range conns {
		a, b := pair(t, "unix")
		near = append(near, a)
		conn := NewConn(b, budget)
		a.Write(half)
		go func() { done <- conn.Serve(&collect{}, func() int { return MaxFrame }) }()
	}
	for deadline := time.Now().Add(time.Minute); budget.Used() < conns*size; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Errorf("%d bytes are counted, %d are held at least", budget.Used(), conns*size)
			break
		}
	}
	for _, a := range near {
		a.Close()
	}
	for range conns {
		<-done
	}
	if used := budget.Used(); used != 0 {
		t.Errorf("%d bytes of the budget are left", used)
	}
}

// TestCloseWithGonePeer: the socket is closed though nobody reads it and the
// peer has gone before it could be told.
func TestCloseWithGonePeer(t *testing.T) {
	near, far := pair(t, "unix")
	near.Close()
	NewConn(far, nil).CloseWith(&args.Error{Code: args.CodeDenied})
	if _, err := far.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want a closed socket", err)
	}
}
