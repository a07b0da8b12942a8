package commands

import (
	"errors"
	"io"
	"runtime"
	"sync"
)

// maxPending is how many bytes of answers may wait for stdout to take them.
const maxPending = 1 << 20

// answers writes lines to stdout, whole, each as soon as it is there. Whoever
// has one while nobody writes does the writing, for others as well: so there is
// no hand-over when there is little to do, and one write for many answers when
// there is much.
type answers struct {
	w io.Writer

	mu      sync.Mutex // protects the fields below
	cond    sync.Cond  // room, or an error
	pending []byte
	spare   []byte
	writing bool
	err     error
	failed  chan struct{} // closed when stdout can not be written to
}

func newAnswers(w io.Writer) *answers {
	a := &answers{w: w, failed: make(chan struct{})}
	a.cond.L = &a.mu
	return a
}

// put writes what appendLine appends and a newline. When others are about to
// answer too, they get their turn before the write.
func (a *answers) put(others bool, appendLine func(dst []byte) []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.pending) > maxPending && a.err == nil {
		a.cond.Wait()
	}
	if a.err != nil {
		return
	}
	a.pending = append(appendLine(a.pending), '\n')
	if a.writing {
		return
	}
	a.writing = true
	if others {
		a.mu.Unlock()
		runtime.Gosched()
		a.mu.Lock()
	}
	for len(a.pending) > 0 && a.err == nil {
		out := a.pending
		a.pending, a.spare = a.spare[:0], nil
		a.cond.Broadcast()
		a.mu.Unlock()
		_, err := a.w.Write(out)
		a.mu.Lock()
		if err != nil {
			a.err = err
			close(a.failed)
		}
		if cap(out) <= 2*maxPending {
			a.spare = out
		}
	}
	a.writing = false
	a.cond.Broadcast()
}

// errClosed is the error of answers that come when all is over.
var errClosed = errors.New("closed")

// close waits until all is written, and writes nothing after that.
func (a *answers) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.writing {
		a.cond.Wait()
	}
	if a.err == nil {
		a.err = errClosed
	}
}

// batch collects the answers to an array of requests, in the requests' order.
type batch struct {
	mu    sync.Mutex // protects the fields below
	lines [][]byte   // nil for a notification
	left  int        // requests and notifications that are under way
	held  int64      // bytes of the hoard that the lines take
}

// add puts an answer in its place and reports whether the batch is complete. A
// nil line is a notification's.
func (b *batch) add(place int, line []byte, held int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines[place] = line
	b.held += held
	b.left--
	return b.left == 0
}

// append appends the array; nothing if there were only notifications.
func (b *batch) append(dst []byte) []byte {
	open := byte('[')
	for _, line := range b.lines {
		if line != nil {
			dst = append(append(dst, open), line...)
			open = ','
		}
	}
	if open == '[' {
		return dst
	}
	return append(dst, ']')
}

// empty reports whether there is nothing to answer.
func (b *batch) empty() bool {
	for _, line := range b.lines {
		if line != nil {
			return false
		}
	}
	return true
}
