package jobs

import (
	"math/rand/v2"
	"time"

	"fbus/bus/jobs/store"
)

// DefaultBackoff is the pause before the second attempt, maxBackoff the longest one that
// grows by itself.
const (
	DefaultBackoff = time.Second
	maxBackoff     = time.Hour
)

// backoff is the pause before the n-th further attempt: twice as long each time, less
// up to half of it at random, so that jobs that have failed together do not come back
// together.
func backoff(j *Job, n int) time.Duration {
	pause := DefaultBackoff
	if j.Backoff > 0 {
		pause = store.Seconds(j.Backoff)
	}
	for ; n > 1 && pause < maxBackoff; n-- {
		pause *= 2
	}
	pause = max(min(pause, max(maxBackoff, store.Seconds(j.Backoff))), time.Millisecond)
	return pause - rand.N(pause/2+1)
}
