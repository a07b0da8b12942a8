package jobs

import (
	"cmp"
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

// lossPause is the pause before a job runs again that has lost its worker. It is no failure
// of the job, so a long --backoff does not apply.
func lossPause(j *Job) time.Duration {
	short := *j
	short.Backoff = min(cmp.Or(j.Backoff, DefaultBackoff.Seconds()), DefaultBackoff.Seconds())
	return backoff(&short, j.Lost)
}
