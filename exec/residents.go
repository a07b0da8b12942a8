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

// maxTries is how many processes one call is put to if each turns out to be unfit
// before it has seen the call.
const maxTries = 3

// state is where a resident process is in its life.
type state int

const (
	absent   state = iota
	starting       // it is being started
	idle           // it holds no call
	busy           // it holds calls, and takes more while it has a free seat
	retiring       // it takes no more calls: it ends, or will when it holds none that it may still answer
	gone           // nothing of it is left
	states
)

func (s state) String() string {
	return [...]string{"absent", "starting", "idle", "busy", "retiring", "gone"}[s]
}

// transitions lists the legal states after each state.
var transitions = [states][]state{
	absent:   {starting},
	starting: {idle, gone},
	idle:     {busy, retiring},
	busy:     {busy, idle, retiring},
	retiring: {gone},
}

// illegal handles a transition that the table does not list. Tests panic.
var illegal = func(f *Function, from, to state) {
	f.logf("%s: bug: process went from %v to %v", f.spec.Name, from, to)
}

// residents holds a function's resident processes and seats calls at them.
type residents struct {
	f       *Function
	max     int             // processes in service; 0 is no limit
	seats   int             // calls that one process holds at once
	launch  func(*resident) // starts a process and follows it to its end, in a goroutine of its own
	backoff backoff
	greets  atomic.Bool    // a process wrote before it was asked
	proven  atomic.Bool    // one was silent until it was asked, and answered
	watched sync.WaitGroup // one for every process

	mu     sync.Mutex // guards what follows
	all    map[*resident]struct{}
	count  [states]int // of processes
	free   []*resident // with a free seat; the last used is last
	queue  []*place    // calls without a seat, in order
	owed   int         // successors to start, even if no call waits
	node   string
	pause  *time.Timer // set while starts have to wait
	idle   *time.Timer // set while an idle process may become too old
	closed bool
}

// place is a call's in the queue.
type place struct {
	x    *exchange
	done chan error // nil: x has a seat
}

func newResidents(f *Function) *residents {
	s := &residents{f: f, seats: f.spec.Pipeline, node: f.nodeFor(f.node), all: make(map[*resident]struct{})}
	if n := f.spec.Slots; n > 0 {
		s.max = (n + s.seats - 1) / s.seats
	}
	s.backoff.f = f
	s.launch = s.follow
	return s
}

// begin starts the first process: the first call need not pay for that, and what
// prevents the program from living shows when the function is offered.
func (s *residents) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed = 1
	s.pump()
}

// run puts one call to a process, and to the next one if that process cannot have
// seen it.
func (s *residents) run(ctx context.Context, c *Call) Result {
	reading, stop := s.f.limited(ctx)
	defer stop()
	req, err := s.f.request(reading, c)
	if err != nil {
		if reading.Err() != nil {
			return s.f.endedAs(endingOf(reading))
		}
		return failure(err)
	}
	if !s.f.enter(nil) {
		return notOffered()
	}
	defer s.f.ends.Done()
	if enter(ctx, s.f.spec.Room) != nil {
		return s.unserved(endingOf(ctx))
	}
	defer leave(s.f.spec.Room)
	if s.f.spec.Room != nil {
		ctx, stop = s.f.limited(ctx)
		defer stop()
	} else {
		ctx = reading
	}
	for try := 1; ; try++ {
		x := &exchange{c: c, req: req}
		if s.f.spec.Resident == JSONRPC {
			x.done = make(chan struct{}) // an answer can come before the request was written
		}
		err := s.take(ctx, x)
		switch {
		case errors.Is(err, errKilled):
			return s.f.endedAs(cancelled)
		case ctx.Err() != nil:
			if x.p != nil {
				s.finish(x)
			}
			return s.unserved(endingOf(ctx))
		case err != nil:
			return failure(err)
		}
		res, again := x.p.codec.exchange(ctx, x)
		s.finish(x)
		x.p.explain(x)
		if limit := s.f.spec.MaxOutput; limit > 0 && x.errors > limit { // nothing is written any more
			return s.f.endedAs(outputLimit)
		}
		if !again || try == maxTries {
			return res
		}
	}
}

// unserved is the end of a call that got no process in time.
func (s *residents) unserved(why ending) Result {
	res := s.f.endedAs(why)
	if why == timeout {
		res.Message = fmt.Sprintf("no process was ready within %v", s.f.spec.Timeout)
		if reason := s.backoff.reason(); reason != "" {
			res.Message += ": " + reason
		}
	}
	return res
}

var errKilled = errors.New("killed")

// take seats a call, and waits for a free seat if necessary. Also with an error the
// call may have a seat: then x.p is not nil.
func (s *residents) take(ctx context.Context, x *exchange) error {
	w := s.enter(x)
	if w == nil {
		return nil
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	if s.withdraw(w) {
		return ctx.Err()
	}
	return cmp.Or(<-w.done, ctx.Err()) // it was served at that very moment
}

// enter seats a call, or returns its place in the queue.
func (s *residents) enter(x *exchange) *place {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pick(); p != nil {
		s.seat(p, x)
		return nil
	}
	w := &place{x, make(chan error, 1)}
	s.queue = append(s.queue, w)
	s.pump()
	return w
}

// withdraw removes a place from the queue. False: it is not there any more.
func (s *residents) withdraw(w *place) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, w)
	if i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	return i >= 0
}

// pick returns the process with a free seat that holds the fewest calls, of several
// the one used last. s.mu is held.
func (s *residents) pick() (best *resident) {
	for i := len(s.free) - 1; i >= 0; i-- {
		if p := s.free[i]; best == nil || len(p.calls) < len(best.calls) {
			best = p
		}
		if best.state == idle {
			break
		}
	}
	return best
}

// to moves a process to another state. It alone changes the state, the counters, and
// the lists of processes. s.mu is held.
func (s *residents) to(p *resident, st state) {
	if !slices.Contains(transitions[p.state], st) {
		illegal(s.f, p.state, st)
	}
	s.count[p.state]--
	s.count[st]++
	p.state = st
	switch st {
	case starting:
		s.all[p] = struct{}{}
	case idle:
		if s.f.spec.MaxIdle > 0 {
			p.since = time.Now()
			if s.idle == nil && !s.closed {
				s.idle = time.AfterFunc(s.f.spec.MaxIdle, s.endIdle)
			}
		}
	case gone:
		delete(s.all, p)
	}
	open := st == idle || st == busy && len(p.calls) < s.seats
	switch i := slices.Index(s.free, p); {
	case open && i < 0:
		s.free = append(s.free, p)
	case !open && i >= 0:
		s.free = slices.Delete(s.free, i, i+1)
	}
}

// inService counts the processes that take calls, or will. s.mu is held.
func (s *residents) inService() int { return s.count[starting] + s.count[idle] + s.count[busy] }

// seat adds a call to those that p holds. s.mu is held.
func (s *residents) seat(p *resident, x *exchange) {
	p.hold(x)
	p.taken++
	s.to(p, busy)
	if s.seats > 1 && s.spent(p) { // its successor takes calls while it answers the last ones
		s.retire(p)
		s.owed++
		s.pump()
	}
}

// finish removes a call from those that its process holds. What the program wrote on
// stderr before its answer was passed on by then, and nothing more is written to the
// call's stderr.
func (s *residents) finish(x *exchange) {
	p := x.p
	s.mu.Lock()
	if !p.release(x, false) {
		s.mu.Unlock()
		p.stderr.mu.Lock()
		defer p.stderr.mu.Unlock()
		p.stderr.drain()
		s.mu.Lock()
		p.release(x, true)
	}
	defer s.mu.Unlock()
	switch {
	case p.state == gone && len(p.calls) == 0:
		p.replies.file.Close()
	case p.state == retiring:
		p.settle()
	case p.state == busy && len(p.calls) == 0:
		s.to(p, idle)
	case p.state == busy:
		s.to(p, busy)
	}
	if (p.state == idle || p.state == busy) && s.spent(p) {
		s.retire(p)
		s.owed++
		s.pump()
	}
	s.serve()
}

// spent reports whether a process takes no more calls though it works.
// s.mu is held.
func (s *residents) spent(p *resident) bool {
	return s.f.spec.MaxCalls > 0 && p.taken >= s.f.spec.MaxCalls || p.node != s.node
}

// serve seats calls that wait, as far as seats are free. s.mu is held.
func (s *residents) serve() {
	for len(s.queue) > 0 {
		p := s.pick()
		if p == nil {
			return
		}
		w := s.queue[0]
		s.queue = s.queue[1:]
		s.seat(p, w.x)
		w.done <- nil
	}
}

// refuse ends the wait of all calls in the queue. s.mu is held.
func (s *residents) refuse(err error) {
	for _, w := range s.queue {
		w.done <- err
	}
	s.queue = nil
}

// retire takes a process in service out of service. It ends when it holds no call
// that it may still answer. s.mu is held.
func (s *residents) retire(p *resident) {
	s.to(p, retiring)
	p.settle()
}

// replace takes p out of service, if it is not yet, and starts a successor: at once,
// or after a pause if p failed before it was of any use. Without a fault why is "".
func (s *residents) replace(p *resident, why string) {
	s.mu.Lock()
	if p.state == retiring || p.state == gone {
		s.mu.Unlock()
		return
	}
	s.to(p, retiring)
	s.mu.Unlock()
	var pause time.Duration
	if why != "" && !p.answered.Load() {
		pause = s.backoff.failed(why)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed++
	s.wait(pause)
	p.settle()
	s.pump()
}

// giveUp has a process that is out of service end by TERM, as soon as it holds only
// calls that are overdue. x is now, if it is not nil.
func (s *residents) giveUp(p *resident, x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x != nil {
		x.overdue = true
	}
	p.last = term
	p.settle()
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

// pump starts the processes that are missing. Those that retire are bounded too, or
// programs that end slowly would pile up. s.mu is held.
func (s *residents) pump() {
	for !s.closed && s.pause == nil && (s.max == 0 || s.inService() < s.max) && s.count[retiring] <= cmp.Or(s.max, 64) &&
		(s.owed > 0 || len(s.queue) > s.count[starting]*s.seats) {
		s.owed = max(s.owed-1, 0)
		p := newResident(s)
		s.to(p, starting)
		s.watched.Add(1)
		go s.launch(p) // ends with the process
	}
	if s.inService() == s.max {
		s.owed = 0
	}
}

// follow starts a process, and follows it to its end.
func (s *residents) follow(p *resident) {
	defer s.watched.Done()
	p.try = s.f.attempt()
	if err := p.start(); err != nil {
		s.failed(p, p.try.notStarted(err))
		return
	}
	s.started(p)
	p.watch()
	s.ended(p)
}

// started puts a process into service.
func (s *residents) started(p *resident) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to(p, idle)
	if s.spent(p) || s.closed {
		s.retire(p)
	}
	s.serve()
	s.pump()
}

// failed handles a process that could not be started.
func (s *residents) failed(p *resident, err *args.Error) {
	pause := s.backoff.failed(err.Message)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to(p, gone)
	s.owed++
	s.wait(pause)
	if s.inService() == 0 {
		s.refuse(err)
	}
}

// refuseUnserved ends the wait of all calls in the queue if there is no process for them.
func (s *residents) refuseUnserved(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inService() == 0 {
		s.refuse(err)
	}
}

// resume ends the pause between starts.
func (s *residents) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pause != nil && s.pause.Stop() {
		s.pause = nil
		s.pump()
	}
}

// ended handles a process of which nothing is left, except output that its last call
// still reads.
func (s *residents) ended(p *resident) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to(p, gone)
	if len(p.calls) == 0 {
		p.replies.file.Close()
	}
	s.pump()
}

// endIdle retires processes that held no call for long. The next call starts one.
func (s *residents) endIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = nil
	if s.closed {
		return
	}
	before := time.Now().Add(-s.f.spec.MaxIdle)
	var next time.Time
	for _, p := range slices.Clone(s.free) {
		switch {
		case p.state != idle:
		case !p.since.After(before):
			s.retire(p)
		case next.IsZero() || p.since.Before(next):
			next = p.since
		}
	}
	if !next.IsZero() {
		s.idle = time.AfterFunc(next.Sub(before), s.endIdle)
	}
}

// setNode replaces processes that know another node, each after its calls.
func (s *residents) setNode(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if node == s.node {
		return
	}
	s.node = node
	for p := range s.all {
		if p.node != node && (p.state == idle || p.state == busy) {
			s.retire(p)
			s.owed++
		}
	}
	s.pump()
}

// kill kills every process that holds a call or retires, and ends the wait of calls
// that have none.
func (s *residents) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse(errKilled)
	for p := range s.all {
		if p.state == busy || p.state == retiring {
			p.stop(kill)
		}
	}
}

// close ends all processes: the end of their input, the grace, TERM, KILL. No call
// is held any more.
func (s *residents) close(killed bool) {
	s.mu.Lock()
	s.closed = true
	for _, t := range []*time.Timer{s.pause, s.idle} {
		if t != nil {
			t.Stop()
		}
	}
	for p := range s.all {
		if p.state == idle {
			s.retire(p)
		}
		if killed && p.state == retiring {
			p.stop(kill)
		}
	}
	s.mu.Unlock()
	defer time.AfterFunc(s.f.spec.Grace, s.kill).Stop()
	s.watched.Wait()
}
