package bus

import (
	"bytes"
	"errors"
	"fbus/bus/args"
	"fbus/bus/wire"
	"io"
	"net"
	"runtime"
	"testing"
)

// sink is a client whose node takes everything and says nothing.
func sink(t *testing.T) *Client {
	near, far := net.Pipe()
	drained := make(chan struct{})
	go func() { // ends with the pipe
		defer close(drained)
		io.Copy(io.Discard, far)
	}()
	c := &Client{conn: wire.NewConn(near, nil), out: map[uint64]*outCall{}}
	t.Cleanup(func() {
		c.conn.Close(nil)
		far.Close()
		<-drained
	})
	return c
}

// TestStreamLosesNothing: what comes while the consumer looks into an empty
// buffer is still there afterwards.
func TestStreamLosesNothing(t *testing.T) {
	s := &recvStream{wake: make(chan struct{}, 1)}
	s.init(sink(t).conn, 1, wire.Output, wire.InitialWindow, maxOutputWindow)
	const total = 100000
	done := make(chan error, 1)
	go func() { // ends when all is pushed
		for i := range total {
			for {
				s.mu.Lock()
				credit := s.credit
				s.mu.Unlock()
				if credit > 0 {
					break
				}
				runtime.Gosched()
			}
			if err := s.push([]byte{byte(i)}); err != nil {
				s.close(io.EOF)
				done <- err
				return
			}
		}
		s.close(io.EOF)
		done <- nil
	}()
	var got bytes.Buffer
	if _, err := s.WriteTo(&got); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || got.Len() != total {
		t.Fatalf("%d of %d bytes arrived: error %v", got.Len(), total, err)
	}
	for i, b := range got.Bytes() {
		if b != byte(i) {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}

// TestWindowIsBounded: a reader that keeps up is granted more at once, up to a
// limit; what is outstanding never exceeds the window.
func TestWindowIsBounded(t *testing.T) {
	s := &recvStream{wake: make(chan struct{}, 1)}
	s.init(sink(t).conn, 1, wire.Output, wire.InitialWindow, maxOutputWindow)
	first := s.window
	for range 2000 {
		if err := s.push(make([]byte, min(wire.ChunkSize, s.credit))); err != nil {
			t.Fatal(err)
		}
		p, _ := s.next()
		s.rest = nil
		s.passed(len(p))
		if s.credit > s.window || s.window > wire.MaxWindow {
			t.Fatalf("credit of %d in a window of %d", s.credit, s.window)
		}
	}
	if s.window <= first {
		t.Errorf("the window did not grow over %d", first)
	}
	if err := s.push(make([]byte, s.credit+1)); !errors.Is(err, &args.Error{Code: args.CodeProtocol}) {
		t.Errorf("more than was granted: error %v", err)
	}
}
