package store

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestLazyChange: a lazy change waits for another one, until the store closes, or for lazyPause.
func TestLazyChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{ops: make(chan *Op, 1)}
		for _, c := range []struct {
			what  string
			event func()
			size  int
			took  time.Duration
		}{
			{"alone", func() {}, 1, lazyPause},
			{"with another one", func() { s.ops <- &Op{} }, 2, 0},
			{"at the end", func() { close(s.ops) }, 1, 0},
		} {
			began, batch := time.Now(), make(chan []*Op, 1)
			go func() { batch <- s.gather(&Op{Lazy: true}) }()
			synctest.Wait()
			if len(batch) > 0 {
				t.Errorf("%s: it did not wait", c.what)
			}
			c.event()
			if got := <-batch; len(got) != c.size || time.Since(began) != c.took {
				t.Errorf("%s: %d changes after %s", c.what, len(got), time.Since(began))
			}
		}
	})
}
