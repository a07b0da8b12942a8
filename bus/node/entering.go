package node

import (
	"container/list"
	"net"
	"sync"
)

// entering are the connections whose handshake is not done. There is room for
// some; the oldest makes room for the next.
type entering struct {
	mu    sync.Mutex // protects the fields below
	order list.List  // of net.Conn, oldest first
	where map[net.Conn]*list.Element
	done  bool
}

func (e *entering) begin(nc net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		nc.Close()
		return
	}
	if e.where == nil {
		e.where = map[net.Conn]*list.Element{}
	}
	if oldest := e.order.Front(); oldest != nil && e.order.Len() >= maxEntering {
		nc := oldest.Value.(net.Conn)
		nc.Close()
		e.remove(nc)
	}
	e.where[nc] = e.order.PushBack(nc)
}

// end may be called twice.
func (e *entering) end(nc net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remove(nc)
}

func (e *entering) remove(nc net.Conn) {
	if at := e.where[nc]; at != nil {
		e.order.Remove(at)
		delete(e.where, nc)
	}
}

func (e *entering) size() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.order.Len()
}

// close closes them all, and whatever comes after.
func (e *entering) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done = true
	for nc := range e.where {
		nc.Close()
	}
}
