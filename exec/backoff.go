package exec

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// The pauses between the starts of a program whose processes fail.
var firstPause = 100 * time.Millisecond

const longestPause = 10 * time.Second

// backoff spaces the starts of a program whose processes end before they were of
// use, and reports the reason once.
type backoff struct {
	f       *Function
	failing atomic.Bool // spares the usual case the mutex

	mu    sync.Mutex // guards what follows; held while Spec.Note is called, so that the last call is the last state
	fails int
	why   string
}

// failed counts a failure and returns how long the next start has to wait.
func (b *backoff) failed(why string) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failing.Store(true)
	if why != b.why && !b.f.outage.on.Load() { // that reports itself
		b.why = why
		b.f.logf("%s: no process can be held ready: %s", b.f.spec.Name, why)
		b.note(why)
	}
	pause := min(firstPause<<min(b.fails, 10), longestPause)
	b.fails++
	return pause*3/4 + rand.N(pause/2)
}

// succeeded resets the pauses: a process was of use, or has lived for long.
func (b *backoff) succeeded() {
	b.f.outage.succeeded()
	if !b.failing.Load() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failing.Swap(false) {
		b.fails, b.why = 0, ""
		b.note("")
	}
}

// reason returns why no process can be held ready, "" if one can.
func (b *backoff) reason() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

func (b *backoff) note(why string) {
	if b.f.spec.Note != nil {
		b.f.spec.Note(why)
	}
}
