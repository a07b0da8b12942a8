package jobs

import (
	"math/rand/v2"
	"strings"
	"time"

	"fbus/bus/args"
)

// Exit statuses that say what is to become of a job.
const (
	statusNever = 65 // EX_DATAERR: no other try could end better
	statusLater = 75 // EX_TEMPFAIL: busy, it has not been tried
)

// outcome is how an attempt ended, and what that means for the job.
type outcome struct {
	end         End
	out, stderr *draft
	started     bool
	cancelled   bool
	never       bool // not to be tried again
	later       bool // does not count as a try
}

// drop takes back what was written of a job that nobody keeps.
func (o *outcome) drop() {
	o.out.drop()
	o.stderr.drop()
}

// cut drops what was written if that has taken the room of what the job was sent, which
// it may need again.
func (o *outcome) cut(s *spool) {
	for _, d := range []**draft{&o.out, &o.stderr} {
		if s.over() && (*d).Size > 0 {
			(*d).drop()
			*d = s.newDraft()
			o.end.Message = strings.TrimPrefix(o.end.Message+"; there was no room for what it has written (--max-spool)", "; ")
		}
	}
}

// judge says what an end means.
func (o *outcome) judge(j *Job) {
	switch e := &o.end; {
	case o.cancelled:
	case e.Source == "program" && e.Status == statusNever, refusedForGood(e):
		o.never = true
	case e.Source == "program" && e.Status == statusLater, e.Source == "fbus" && e.Code == args.CodeBusy:
		o.later = true
	}
}

func (o *outcome) ok() bool { return o.end.Source == "program" && o.end.Status == 0 }

// apply puts a job into the state that follows. now is the store's time.
func (o *outcome) apply(j *Job, now int64, wall time.Time) {
	j.Last = &o.end
	if o.started {
		j.Attempts++
	}
	switch {
	case o.cancelled:
		j.State = Cancelled
	case o.ok():
		j.State = Done
	case o.later:
		j.Laters++
		j.State, j.Due = Delayed, now+int64(backoff(j, j.Laters))
		return
	default:
		if o.started || !o.never {
			j.Used++
		}
		j.Laters = 0
		if !o.never && j.Used <= j.Retries {
			j.State, j.Due = Delayed, now+int64(backoff(j, j.Used))
			return
		}
		j.State = Dead
	}
	j.Finished = millis(wall)
	if j.State != Dead {
		j.Expires = now + int64(j.keep())
	}
}

func (j *Job) keep() time.Duration {
	if j.Keep > 0 {
		return seconds(j.Keep)
	}
	return DefaultKeep
}

// backoff is the pause before the n-th further try: twice as long each time, less
// up to half of it at random, so that many that have failed together do not come
// back together.
func backoff(j *Job, n int) time.Duration {
	pause := DefaultBackoff
	if j.Backoff > 0 {
		pause = seconds(j.Backoff)
	}
	for ; n > 1 && pause < maxBackoff; n-- {
		pause *= 2
	}
	pause = max(min(pause, max(maxBackoff, seconds(j.Backoff))), time.Millisecond)
	return pause - rand.N(pause/2+1)
}
