package node

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// comer is a connection from some address.
type comer struct {
	net.Conn
	from   string
	closed bool
}

func (c *comer) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.from))
}

func (c *comer) Close() error {
	c.closed = true
	return nil
}

// TestEnteringIsBounded: when there is no room, the oldest of the source with most
// that waits for its peer has to go, and not one that is in turn.
func TestEnteringIsBounded(t *testing.T) {
	var e entering
	var list []*arrival
	come := func(from string) *arrival {
		a := e.begin(&comer{from: from})
		list = append(list, a)
		return a
	}
	closed := func(a *arrival) bool { return a.nc.(*comer).closed }
	other := come("192.0.2.9:1")
	computes := come("192.0.2.1:1")
	if !computes.acquire() {
		t.Fatal("nobody has the place, and it is not given")
	}
	waits := come("192.0.2.1:2")
	got := make(chan bool)
	go func() { got <- waits.acquire() }()
	for queued := false; !queued; time.Sleep(time.Millisecond) {
		e.mu.Lock()
		queued = slices.Contains(e.queue, waits)
		e.mu.Unlock()
	}
	for e.size() < maxEntering {
		come("192.0.2.1:3")
	}
	come("[2001:db8::1]:1")
	come("192.0.2.2:1")
	for i, a := range list {
		if want := i == 3 || i == 4; closed(a) != want {
			t.Errorf("connection %d of %d is closed: %v", i, len(list), closed(a))
		}
	}
	if list[3].acquire() {
		t.Error("who had to go gets the place")
	}
	computes.release()
	if !<-got {
		t.Error("who was in turn did not get the place")
	}
	waits.release()
	for _, a := range list {
		a.end()
		a.end()
	}
	if e.size() != 0 || len(e.queue) != 0 || len(e.turns) != 0 || e.taken {
		t.Errorf("%d connections are left, %d of them in the queue", e.size(), len(e.queue))
	}
	other.end()
}

// TestEnteringTakesTurns: a crowd from one address is one among others, and the
// place rests as long as it works.
func TestEnteringTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e entering
		var order []string
		const work = time.Millisecond
		enter := func(from string) {
			a := e.begin(&comer{from: from + ":1"})
			if !a.acquire() {
				t.Error("the place is not given")
			}
			time.Sleep(work)
			order = append(order, from)
			a.release()
			if from != "192.0.2.1" {
				a.end()
			}
		}
		for range 50 {
			go enter("192.0.2.1")
			synctest.Wait()
		}
		for _, other := range []string{"192.0.2.2", "192.0.2.3"} {
			go enter(other)
			synctest.Wait()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for i, from := range order {
			if from != "192.0.2.1" && i > 4 {
				t.Errorf("%s enters as number %d", from, i+1)
			}
		}
		if len(order) != 52 || e.taken {
			t.Errorf("%d of 52 have had the place", len(order))
		}
	})
}

// TestEvictedDoesNotCompute: who has to go while it queues does not get the place.
func TestEvictedDoesNotCompute(t *testing.T) {
	var e entering
	first := e.begin(&comer{from: "192.0.2.1:1"})
	first.acquire()
	second := e.begin(&comer{from: "192.0.2.1:2"})
	got := make(chan bool)
	go func() { got <- second.acquire() }()
	for queued := false; !queued; time.Sleep(time.Millisecond) {
		e.mu.Lock()
		queued = slices.Contains(e.queue, second)
		e.mu.Unlock()
	}
	second.end()
	if <-got {
		t.Error("who has gone gets the place")
	}
	first.release()
	if !e.begin(&comer{from: "192.0.2.1:3"}).acquire() {
		t.Error("the place is not given")
	}
}

// TestHandshakeWaitsWithoutPlace: a handshake gives the place back while it waits for the
// peer, and takes it before it goes on. One that has to go reads nothing.
func TestHandshakeWaitsWithoutPlace(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var e entering
	taken := func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.taken
	}
	h := &handshaking{nc.(*net.TCPConn), e.begin(nc)}
	read := make(chan error, 1)
	buf := make([]byte, 1)
	for range 2 {
		go func() {
			_, err := h.Read(buf)
			read <- err
		}()
		for taken() {
			time.Sleep(time.Millisecond)
		}
		near.Write([]byte("x"))
		if err := <-read; err != nil || !taken() {
			t.Fatalf("error %v; it has the place: %v", err, taken())
		}
	}
	h.at.end()
	if taken() {
		t.Error("the place is still taken")
	}
	near.Write([]byte("x"))
	if _, err := h.Read(buf); err == nil {
		t.Error("one that has left reads on")
	}
	h.at = nil
	near.Write([]byte("x"))
	if _, err := h.Read(buf); err != nil {
		t.Error(err)
	}
}
