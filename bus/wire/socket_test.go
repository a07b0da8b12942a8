package wire

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fbus/bus/args"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestServeBytewise: records of TLS that come in pieces, and frames in them.
func TestServeBytewise(t *testing.T) {
	raw := Append(nil, &DataFrame{ID: 1, Stream: Output, Payload: make([]byte, 20<<10)})
	raw = append(raw, Append(nil, &EOFFrame{ID: 7})...)
	for _, cut := range []int{1, 3, 5, 4 << 10, 20 << 10, len(raw)} {
		if got, err := serveChunks(t, "bytewise", raw[:cut], raw[cut:]); err != io.EOF || !bytes.Equal(got, raw) {
			t.Errorf("cut at %d: error %v, %d of %d bytes", cut, err, len(got), len(raw))
		}
	}
}

// swallow takes all frames, and passes the payloads of DATA on.
type swallow struct{ to chan<- []byte }

func (s swallow) Handle(_ *Batch, f Frame) error {
	if d, ok := f.(*DataFrame); ok && s.to != nil {
		s.to <- bytes.Clone(d.Payload)
	}
	return nil
}

func anyFrame() int { return MaxFrame }

// TestBulkBothWays: random bytes in frames of every size, both ways at once, arrive
// as they are.
func TestBulkBothWays(t *testing.T) {
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) {
			defer noneLeft(t)()
			near, far := bothSockets(t, kind)
			budget := &Budget{Max: 1 << 30}
			a, b := NewConn(near, budget), NewConn(far, budget)
			data := make([]byte, 12<<20)
			rand.Read(data)
			var all sync.WaitGroup
			for _, way := range [2][2]*Conn{{a, b}, {b, a}} {
				all.Go(func() { sendPieces(t, way[0], data) })
			}
			var ends sync.WaitGroup
			for _, c := range []*Conn{a, b} {
				got := make(chan []byte, 16)
				ends.Go(func() { // ends when the connection is closed
					defer close(got)
					c.Serve(swallow{got}, anyFrame)
				})
				all.Go(func() {
					at := 0
					for p := range got {
						if !bytes.HasPrefix(data[at:], p) {
							t.Errorf("other bytes at %d", at)
						}
						if at += len(p); at == len(data) {
							return
						}
					}
					t.Errorf("%d of %d bytes arrived", at, len(data))
				})
			}
			all.Wait()
			a.Close(nil)
			b.Close(nil)
			ends.Wait()
			// The last write may be with the peer before the writer takes it off.
			for deadline := time.Now().Add(time.Minute); budget.Used() != 0; runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatalf("%d bytes of the budget are left", budget.Used())
				}
			}
		})
	}
}

// bothSockets is pair with a Socket at each end.
func bothSockets(t testing.TB, kind string) (near, far net.Conn) {
	if kind != "tls" {
		return pair(t, kind)
	}
	near, far = pair(t, "tcp")
	return handshake(t, NewSocket(near), NewSocket(far))
}

// sendPieces sends data in DATA frames of growing sizes, as a sender that waits does.
func sendPieces(t *testing.T, c *Conn, data []byte) {
	for size := 1; len(data) > 0; size = size*3%(400<<10) + 1 {
		n := min(size, len(data))
		if err := c.WaitSpace(t.Context()); err != nil {
			t.Error(err)
			return
		}
		if err := c.Send(&DataFrame{ID: 1, Stream: Output, Payload: data[:n]}); err != nil {
			t.Error(err)
			return
		}
		data = data[n:]
	}
}

// TestCloseWithArrives: the reason does, behind all that was sent before, though
// the peer reads late and has sent what nobody will read.
func TestCloseWithArrives(t *testing.T) {
	for _, kind := range []string{"unix", "tls"} {
		for _, backlog := range []int{0, 3, 60} {
			near, far := pair(t, kind)
			conn := NewConn(far, nil)
			conn.patience = time.Minute
			served := make(chan error, 1)
			if backlog == 3 { // otherwise nobody reads, as when a peer is refused
				go func() { served <- conn.Serve(swallow{}, anyFrame) }()
			} else {
				served <- nil
			}
			near.Write(Append(nil, &EOFFrame{ID: 7}))
			for range backlog {
				conn.Send(&DataFrame{ID: 1, Stream: Output, Payload: make([]byte, ChunkSize)})
			}
			conn.CloseWith(&args.Error{Code: args.CodeDenied, Message: "not you"})
			if err := conn.Send(&EOFFrame{ID: 9}); err == nil {
				t.Error("a frame was taken after the last")
			}
			got, err := io.ReadAll(near)
			want := Append(nil, &ErrorFrame{Code: []byte(args.CodeDenied), Message: []byte("not you")})
			if kind == "unix" && errors.Is(err, syscall.ECONNRESET) {
				err = nil // all the same, behind what was written
			}
			if err != nil || !bytes.HasSuffix(got, want) || len(got) < backlog*ChunkSize {
				t.Errorf("%s, %d before: %d bytes, error %v", kind, backlog, len(got), err)
			}
			near.Close()
			<-served
		}
	}
}

// TestCloseWithUnread: a peer that does not read holds a closing connection for
// a moment only.
func TestCloseWithUnread(t *testing.T) {
	near, far := pair(t, "tls")
	defer near.Close()
	conn := NewConn(far, nil)
	served := make(chan error, 1)
	go func() { served <- conn.Serve(swallow{}, anyFrame) }()
	for !conn.Stalled() {
		conn.Send(&DataFrame{ID: 1, Stream: Output, Payload: make([]byte, ChunkSize)})
	}
	conn.CloseWith(&args.Error{Code: args.CodeDenied})
	if err := <-served; err == nil {
		t.Error("no error")
	}
	conn.Close(nil)
	if err := far.(*tls.Conn).NetConn().(*Socket).Conn.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want a closed socket", err)
	}
}

// TestCloseNotify: the end is said in TLS too, behind the last frame.
func TestCloseNotify(t *testing.T) {
	near, far := pair(t, "tcp")
	var wire bytes.Buffer
	client, server := handshake(t, tee{near, &wire}, NewSocket(far))
	conn := NewConn(server, nil)
	conn.Send(&EOFFrame{ID: 7})
	conn.Finish(nil)
	if got, err := io.ReadAll(client); err != nil || len(got) == 0 {
		t.Errorf("%d bytes, error %v", len(got), err)
	}
	// An alert is sealed as 2 bytes and their type, with 16 of the cipher's.
	raw, last := wire.Bytes(), 0
	for len(raw) >= 5 {
		last = int(binary.BigEndian.Uint16(raw[3:]))
		raw = raw[5+last:]
	}
	if len(raw) > 0 || last != 2+1+16 {
		t.Errorf("the last record has %d bytes, and %d follow", last, len(raw))
	}
}

// tee notes what was read.
type tee struct {
	net.Conn
	seen *bytes.Buffer
}

func (t tee) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.seen.Write(p[:n])
	return n, err
}

// TestSocketBound: what TLS writes by itself for a peer that does not read is
// bounded, and refused beyond that, without waiting.
func TestSocketBound(t *testing.T) {
	near, far := pair(t, "tls")
	defer near.Close()
	budget := &Budget{Max: 1 << 30}
	conn := NewConn(far, budget)
	s := far.(*tls.Conn).NetConn().(*Socket)
	for !conn.Stalled() {
		conn.Send(&DataFrame{ID: 1, Stream: Output, Payload: make([]byte, ChunkSize)})
	}
	most := int64(0)
	var err error
	for sent := 0; err == nil && sent < 100*maxSealed; sent += 100 { // the kernel may still take some
		_, err = s.Write(make([]byte, 100))
		most = max(most, s.waiting.Load())
	}
	if !errors.Is(err, ErrBacklog) || most > maxSealed {
		t.Errorf("error %v, %d bytes were held", err, most)
	}
	conn.Close(nil)
	for budget.Used() != 0 {
		time.Sleep(time.Millisecond) // the writer ends
	}
}

// TestSocketBeforeConn: what dismissing a peer needs works on a Socket.
func TestSocketBeforeConn(t *testing.T) {
	near, far := pair(t, "tcp")
	defer near.Close()
	s := NewSocket(far)
	s.SetDeadline(time.Unix(1, 0))
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("the deadline is not kept")
	}
	s.SetDeadline(time.Time{})
	io.WriteString(s, "no")
	s.CloseWrite()
	if got, err := io.ReadAll(near); string(got) != "no" || err != nil {
		t.Errorf("%q, error %v", got, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
