package exec

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// The pauses between the starts of a program that does not live.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
)

// trouble is the account of a program whose processes end without having been
// of use: it spaces their starts, and says why once.
type trouble struct {
	f   *Function
	any atomic.Bool // some was told; spares the usual case the mutex

	mu    sync.Mutex // guards what follows; held while Spec.Note is told, so that its last word is the last
	fails int
	why   string
}

// failed counts a failure and says how long the next start has to wait.
func (t *trouble) failed(why string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.any.Store(true)
	if why != t.why {
		t.why = why
		t.f.logf("%s: no process can be held ready: %s", t.f.spec.Name, why)
		t.note(why)
	}
	pause := min(firstPause<<min(t.fails, 10), longestPause)
	t.fails++
	return pause*3/4 + rand.N(pause/2)
}

// over says that a process was of use, or has lived for long.
func (t *trouble) over() {
	if !t.any.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.any.Swap(false) {
		t.fails, t.why = 0, ""
		t.note("")
	}
}

// reason is why no process can be held ready, "" if one can.
func (t *trouble) reason() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.why
}

func (t *trouble) note(why string) {
	if t.f.spec.Note != nil {
		t.f.spec.Note(why)
	}
}
