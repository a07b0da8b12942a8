package exec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus/args"
)

// mostTries is how many processes one call may find unfit before it was put to
// any of them.
const mostTries = 3

// residents holds a function's resident processes and hands them to calls.
type residents struct {
	f       *Function
	most    int // processes in service; 0 is no limit
	seats   int // calls that one process holds at once
	trouble trouble
	greets  atomic.Bool    // a process has written before it was ever asked
	proven  atomic.Bool    // one was heard out, and answered
	watched sync.WaitGroup // one for every process and every start

	mu       sync.Mutex // guards what follows
	all      map[*resident]struct{}
	free     []*resident // in service with a seat free; the last used is last
	queue    []*place    // calls without a seat, first come first
	live     int         // processes in service, and starting
	starting int
	retiring int // out of service and not gone
	owed     int // successors to start, whether or not a call waits
	node     string
	pause    *time.Timer // set while starts have to wait
	idle     *time.Timer // set while an idle process may become too old
	closed   bool
}

// place is a call's in the queue.
type place struct{ got chan seated }

type seated struct {
	p   *resident
	err error
}

func newResidents(f *Function) *residents {
	s := &residents{f: f, seats: f.spec.Pipeline, node: f.nodeFor(f.node), all: make(map[*resident]struct{})}
	if n := f.spec.Slots; n > 0 {
		s.most = (n + s.seats - 1) / s.seats
	}
	s.trouble.f = f
	s.mu.Lock()
	defer s.mu.Unlock()
	// The first call should not pay for a start, and what keeps the program
	// from living should show when the function is offered.
	s.owed = 1
	s.pump()
	return s
}

// run puts one call to a process. A call that a process can not have seen is
// put to the next.
func (s *residents) run(ctx context.Context, c *Call) Result {
	req, err := s.f.request(ctx, c)
	if err != nil {
		if ctx.Err() != nil {
			return s.f.endedAs(endingOf(ctx))
		}
		return failure(err)
	}
	if !s.f.admit() {
		return notOffered()
	}
	defer s.f.ends.Done()
	for try := 1; ; try++ {
		p, err := s.take(ctx)
		switch {
		case errors.Is(err, errKilled):
			return s.f.endedAs(cancelled)
		case ctx.Err() != nil:
			if p != nil {
				s.give(p)
			}
			return s.unserved(endingOf(ctx))
		case err != nil:
			return failure(err)
		}
		var res Result
		var again bool
		if s.f.spec.Resident == LineByLine {
			res, again = p.line(ctx, c, req)
		} else {
			res, again = p.remote(ctx, c, req)
		}
		s.give(p)
		if !again || try == mostTries {
			return res
		}
	}
}

// unserved is the end of a call that got no process in its time.
func (s *residents) unserved(why ending) Result {
	res := s.f.endedAs(why)
	if why == timeout {
		res.Message = fmt.Sprintf("no process was ready within %v", s.f.spec.Timeout)
		if trouble := s.trouble.reason(); trouble != "" {
			res.Message += ": " + trouble
		}
	}
	return res
}

var errKilled = errors.New("killed")

// take returns a process with a seat for the call, waiting for one if need be.
func (s *residents) take(ctx context.Context) (*resident, error) {
	s.mu.Lock()
	if p := s.pick(); p != nil {
		s.seat(p)
		s.mu.Unlock()
		return p, nil
	}
	w := &place{got: make(chan seated, 1)}
	s.queue = append(s.queue, w)
	s.pump()
	s.mu.Unlock()
	select {
	case got := <-w.got:
		return got.p, got.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(s.queue, w)
	if i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	s.mu.Unlock()
	if i >= 0 {
		return nil, ctx.Err()
	}
	got := <-w.got // it came at that very moment
	return got.p, cmp.Or(got.err, ctx.Err())
}

// pick finds the process that holds the fewest calls, of several the one used
// last. s.mu is held.
func (s *residents) pick() (best *resident) {
	for i := len(s.free) - 1; i >= 0; i-- {
		if p := s.free[i]; best == nil || p.held < best.held {
			best = p
		}
		if best.held == 0 {
			break
		}
	}
	return best
}

// seat gives a seat of p to a call. s.mu is held.
func (s *residents) seat(p *resident) {
	p.held++
	p.taken++
	switch {
	case s.seats > 1 && s.spent(p):
		s.remove(p) // its successor takes calls while it ends the last ones
		s.owed++
		s.pump()
	case p.held == s.seats:
		s.unlist(p)
	}
}

// give takes a call's seat back.
func (s *residents) give(p *resident) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.held--
	if !p.dropped && s.spent(p) {
		s.remove(p)
		s.owed++
		s.pump()
	}
	switch {
	case !p.dropped:
		s.serve(p)
	case p.held > 0:
	case p.buried:
		p.replies.file.Close()
	default:
		p.retire()
	}
}

// spent says that a process takes no calls any more though nothing is wrong
// with it. s.mu is held.
func (s *residents) spent(p *resident) bool {
	return s.f.spec.MaxCalls > 0 && p.taken >= s.f.spec.MaxCalls || p.node != s.node
}

// serve gives the free seats of p to calls that wait. s.mu is held.
func (s *residents) serve(p *resident) {
	for len(s.queue) > 0 && !p.dropped && p.held < s.seats {
		w := s.queue[0]
		s.queue = s.queue[1:]
		s.seat(p)
		w.got <- seated{p: p}
	}
	if p.dropped || p.held == s.seats {
		return
	}
	if !p.listed {
		p.listed = true
		s.free = append(s.free, p)
	}
	if s.f.spec.MaxIdle > 0 && p.held == 0 {
		p.since = time.Now()
		if s.idle == nil {
			s.idle = time.AfterFunc(s.f.spec.MaxIdle, s.endIdle)
		}
	}
}

func (s *residents) unlist(p *resident) {
	if p.listed {
		p.listed = false
		i := slices.Index(s.free, p)
		s.free = slices.Delete(s.free, i, i+1)
	}
}

// remove takes p out of service. False: it was already. s.mu is held.
func (s *residents) remove(p *resident) bool {
	if p.dropped {
		return false
	}
	p.dropped = true
	s.unlist(p)
	s.live--
	s.retiring++
	return true
}

// replace takes p out of service and starts a successor; at once, or if
// nothing can be said for p, after a pause. With why "" it is not p's fault.
func (s *residents) replace(p *resident, why string) {
	s.mu.Lock()
	first := s.remove(p)
	s.mu.Unlock()
	if !first {
		return
	}
	var pause time.Duration
	if why != "" && !p.answered.Load() {
		pause = s.trouble.failed(why)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed++
	s.wait(pause)
	s.pump()
}

// wait puts starts off. s.mu is held.
func (s *residents) wait(pause time.Duration) {
	if pause == 0 || s.pause != nil || s.closed {
		return
	}
	s.pause = time.AfterFunc(pause, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pause = nil
		s.pump()
	})
}

// pump starts the processes that are due. Those on their way out have a bound
// too, or programs that end slowly would pile up. s.mu is held.
func (s *residents) pump() {
	for !s.closed && s.pause == nil && (s.most == 0 || s.live < s.most) && s.retiring <= cmp.Or(s.most, 64) &&
		(s.owed > 0 || len(s.queue) > s.starting*s.seats) {
		s.owed = max(s.owed-1, 0)
		s.live++
		s.starting++
		s.watched.Add(1)
		go s.start(s.node) // ends with the process
	}
	if s.live == s.most {
		s.owed = 0
	}
}

// start starts a process, and watches it to its end.
func (s *residents) start(node string) {
	defer s.watched.Done()
	p, err := startResident(s, node)
	if err != nil {
		s.failed(args.AsError(err, args.CodeInternal))
		return
	}
	s.mu.Lock()
	s.starting--
	s.all[p] = struct{}{}
	if s.spent(p) || s.closed {
		s.remove(p)
		p.retire()
		s.pump()
	} else {
		s.serve(p)
	}
	s.mu.Unlock()
	p.watch()
}

// failed says that no process can be started.
func (s *residents) failed(err *args.Error) {
	pause := s.trouble.failed(err.Message)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting--
	s.live--
	s.owed++
	s.wait(pause)
	if s.live == 0 {
		s.refuse(err)
	}
}

// refuse ends the waiting of all calls in the queue. s.mu is held.
func (s *residents) refuse(err error) {
	for _, w := range s.queue {
		w.got <- seated{err: err}
	}
	s.queue = nil
}
