// Package slots decides, for one function at one node of a mesh, when to ask other nodes
// for a free slot and when to give them one.
//
// It is join-idle-queue: nodes whose calls wait find those that have a free slot, and nodes
// whose slots become free find those whose calls wait. Nobody announces loads: with
// announced loads all nodes send to the same few.
//
// The package knows neither NATS nor a clock. Its user reports what happens, with the time,
// and carries out the [Actions].
package slots

import (
	"slices"
	"time"
)

const (
	// hold is how long a slot is kept for the node that it was granted to.
	hold = 2 * time.Second
	// lease is how long a granted slot may be used for one call after the other while
	// others may want it. Short calls need not ask for each.
	lease = 250 * time.Millisecond
	// unused is how long a granted slot may be without a call before it is returned.
	unused = 20 * time.Millisecond
	// warm is how long a slot stays offered after a call, in case there is another.
	// Nothing is held for it: the peer may refuse.
	warm = time.Second
	// cooling is the same for all slots without a call but one.
	cooling = 6 * time.Millisecond
	// quiet is how long a slot has to be free before others are asked whether they use
	// it: the peer that has used it may have another call on its way.
	quiet = 1500 * time.Microsecond
	// reported is how long the own node may take to report what has started.
	reported = 5 * time.Millisecond
	// skips is how often a node does not ask whether its free slots are used, after nobody was there to
	// answer. Those whose calls wait ask by themselves, too.
	skips = 8
	// skipping is how long that lasts at most: where calls are long, each slot counts.
	skipping = time.Second
	// lucky is how many requests in a row have to succeed before a node asks again at once if one fails.
	lucky = 2
	// maxAsking bounds the requests for slots without an answer.
	maxAsking = 64
)

// pauses separate requests that find no free slot. In a cluster of servers a node
// that begins to look and one that begins to be found can miss each other, and nothing
// shows it. So a node asks again for as long as a call waits.
var pauses = [...]time.Duration{5 * time.Millisecond, 16 * time.Millisecond, 64 * time.Millisecond, 250 * time.Millisecond, time.Second}

// maxIdlePause is the longest pause, by its index, that a new call begins with.
const maxIdlePause = 3

// Actions are what a [Function] needs done. They are called from its methods, and must not
// call them.
type Actions interface {
	// Want joins the nodes whose calls wait, which are asked by Free, or leaves them.
	// Requests that cross the leaving are still answered.
	Want(on bool)
	// Give joins the nodes with a free slot, which are asked by Take, or leaves them.
	// Requests that cross the leaving are still answered.
	Give(on bool)
	// Take asks one of the nodes with a free slot for n of them. [Function.Taken] is due
	// with the answer. again: a request before was in vain.
	Take(n int, again bool)
	// Free asks one of the nodes whose calls wait whether it uses n slots.
	// [Function.Freed] is due with the answer.
	Free(n int)
	// Return informs a peer that n slots that it has granted are not used.
	Return(peer string, n int)
	// Offer offers n slots of a peer to the own node, those with calls included.
	Offer(peer string, n int)
	// Wake has [Function.Tick] called at that time, and forgets an earlier Wake. Zero is
	// never.
	Wake(at time.Duration)
}

// Local is what the own node reports about a function.
type Local struct {
	Free   int // slots of its own workers that take a call now
	Begun  int // calls since the last report; short ones change nothing else
	Queued int // calls that wait, and that any worker may have
	Ready  int // jobs that could run now
}

// A Slot is one slot of a peer that is offered to the own node.
type Slot struct {
	peer  string
	until time.Duration // the end of its lease
	since time.Duration // since when it has no call
	held  bool          // the peer keeps it free
}

// Outcome is how a call on a slot of a peer ended.
type Outcome int

const (
	Served  Outcome = iota // the slot was there, however the call has ended
	Refused                // the peer had no slot; the call waits again
	Lost                   // the peer cannot be used any more
)

// Function is the policy for one function at one node. It is not safe for concurrent use.
// The zero Function with Actions is ready. Times are since any one moment, and not zero.
type Function struct {
	Actions Actions

	now   time.Duration
	local Local
	ahead int           // calls that have started since it was reported, less those that wait again
	until time.Duration // when the report has that in any case

	// Of a node that asks:
	wanting bool
	asking  int            // requests without an answer
	asked   int            // slots that they are for
	pause   int            // index of the next pause
	askAt   time.Duration  // not before
	luck    int            // requests that have succeeded since the last that failed
	open    []*Slot        // those without a call, the oldest first
	offered map[string]int // by peer, those with calls included

	// Of a node that gives:
	giving  bool
	told    bool          // others were asked whether they use the free slots
	tellAt  time.Duration // not before
	freeing int           // slots in a Free without an answer; there is one at a time
	skip    int           // times that no others are asked
	skipTo  time.Duration // until when that counts
	holds   []reservation // the oldest first
}

// reservation is a slot that is kept for a peer.
type reservation struct {
	peer  string
	until time.Duration
}

// Idle reports whether nothing is under way: the function can be forgotten if the node has
// nothing to report either.
func (f *Function) Idle() bool {
	return !f.wanting && f.asking == 0 && f.freeing == 0 && len(f.offered) == 0 && len(f.holds) == 0
}

// Local reports the state of the own node.
func (f *Function) Local(now time.Duration, l Local) {
	f.now = now
	// A slot that was taken is one that was kept, as far as this node knows. If a local
	// call has it, the peer's is refused, and the peer asks again.
	if n := min(max(l.Begun, f.local.Free-l.Free), len(f.holds)); n > 0 {
		f.holds = f.holds[n:]
	}
	f.local, f.ahead = l, 0
	f.settle()
}

// Tick is due at the time of the last Wake.
func (f *Function) Tick(now time.Duration) {
	f.now = now
	f.settle()
}

// AskedTake answers a peer whose calls wait: it returns how many of n slots are kept for it. That it asks
// again, or needs more, shows that slots are scarce.
func (f *Function) AskedTake(now time.Duration, peer string, n int, again bool) int {
	f.now = now
	got := f.keep(peer, min(n, f.spare()-f.freeing))
	if got < n || again {
		f.skip = 0
	}
	f.settle()
	return got
}

// AskedFree answers a peer with n free slots: it returns how many of them are used. They
// count as granted.
func (f *Function) AskedFree(now time.Duration, peer string, n int) int {
	f.now = now
	n = max(0, min(n, f.need()))
	f.take(peer, n)
	f.settle()
	return n
}

// Taken is the answer to a Take for n slots: the peer keeps got of them. Without an answer
// got is zero.
func (f *Function) Taken(now time.Duration, peer string, n, got int) {
	f.now = now
	f.asking--
	f.asked -= n
	switch {
	case got > 0:
		f.take(peer, got)
		f.pause, f.askAt = max(0, f.pause-1), 0
		f.luck++
	case peer != "" && f.luck >= lucky: // its slot was taken meanwhile, but there are others
		f.skip, f.luck = 0, 0
	default:
		f.skip, f.luck = 0, 0
		if now >= f.askAt { // else it was sent together with one that has failed
			f.askAt = now + pauses[f.pause]
			f.pause = min(f.pause+1, len(pauses)-1)
		}
	}
	f.settle()
}

// Again asks again at once if calls wait: there may be others to ask than before.
func (f *Function) Again(now time.Duration) {
	f.now = now
	f.pause, f.askAt = 0, 0
	f.settle()
}

// Freed is the answer to a Free: the peer uses some of the slots. The peer is empty if
// nobody has answered.
func (f *Function) Freed(now time.Duration, peer string, used int) {
	f.now = now
	f.freeing = 0
	f.keep(peer, min(used, f.spare())) // one that was taken meanwhile is not kept
	if f.told = peer == ""; f.told {
		f.skip, f.skipTo = skips, now+skipping
	} else { // others may wait, too
		f.skip, f.tellAt = 0, now
		if used == 0 {
			f.tellAt += pauses[0]
		}
	}
	f.settle()
}

// Returned reports that a peer does not use n slots that are kept for it.
func (f *Function) Returned(now time.Duration, peer string, n int) {
	f.now = now
	f.holds = slices.DeleteFunc(f.holds, func(r reservation) bool {
		if r.peer != peer || n == 0 {
			return false
		}
		n--
		return true
	})
	f.settle()
}

// Started reports a call on a slot of a peer. It returns nil if there is none without a
// call: the call and a change of the offer have crossed.
func (f *Function) Started(now time.Duration, peer string) *Slot {
	f.now = now
	at := -1
	for i, s := range f.open {
		if s.peer == peer && (at < 0 || s.held) {
			at = i
		}
	}
	if at < 0 {
		return nil
	}
	s := f.open[at]
	f.open = slices.Delete(f.open, at, at+1)
	s.held = false
	f.notice(1)
	f.settle()
	return s
}

// Ended reports the end of a call on a slot.
func (f *Function) Ended(now time.Duration, s *Slot, how Outcome) {
	f.now = now
	if how == Refused {
		f.notice(-1)
	}
	if how == Served && (f.waiting() == 0 || now < s.until) {
		s.since = now
		f.open = append(f.open, s)
	} else {
		f.offer(s.peer, -1)
	}
	f.settle()
}

// Gone reports that a peer has left, or cannot be reached. Its calls end with [Lost].
func (f *Function) Gone(now time.Duration, peer string) {
	f.now = now
	f.holds = slices.DeleteFunc(f.holds, func(r reservation) bool { return r.peer == peer })
	f.open = slices.DeleteFunc(f.open, func(s *Slot) bool {
		if s.peer == peer {
			f.offer(peer, -1)
		}
		return s.peer == peer
	})
	f.settle()
}

// notice counts calls that the node will report to wait no more. Until then no slot is asked for in
// vain. The report may have come before, as it has a way of its own: so this does not last.
func (f *Function) notice(calls int) {
	f.ahead += calls
	f.until = f.now + reported
}

// waiting is how many calls and jobs wait for a slot.
func (f *Function) waiting() int {
	if f.local.Free > 0 {
		return 0 // the node is about to place them
	}
	return max(0, f.local.Queued+f.local.Ready-f.ahead)
}

// need is how many slots are missing.
func (f *Function) need() int { return f.waiting() - len(f.open) }

// spare is how many slots could be given.
func (f *Function) spare() int { return f.local.Free - len(f.holds) }

// take offers slots that a peer has granted.
func (f *Function) take(peer string, n int) {
	for range n {
		f.open = append(f.open, &Slot{peer: peer, until: f.now + lease, since: f.now, held: true})
	}
	f.offer(peer, n)
}

// offer changes how many slots of a peer are offered.
func (f *Function) offer(peer string, change int) {
	if change == 0 {
		return
	}
	if f.offered == nil {
		f.offered = map[string]int{}
	}
	f.offered[peer] += change
	n := f.offered[peer]
	if n == 0 {
		delete(f.offered, peer)
	}
	f.Actions.Offer(peer, n)
}

// keep keeps n slots for a peer, and returns how many those are.
func (f *Function) keep(peer string, n int) int {
	for range n {
		f.holds = append(f.holds, reservation{peer, f.now + hold})
	}
	return max(0, n)
}

// settle does what the state now calls for.
func (f *Function) settle() {
	var wake time.Duration
	at := func(t time.Duration) {
		if wake == 0 || t < wake {
			wake = t
		}
	}
	f.expire(at)
	f.ask(at)
	f.give(at)
	f.Actions.Wake(wake)
}

// expire gives up slots that were not used in time.
func (f *Function) expire(at func(time.Duration)) {
	if f.ahead != 0 && f.now >= f.until {
		f.ahead = 0
	}
	if f.ahead != 0 {
		at(f.until)
	}
	for len(f.holds) > 0 && f.holds[0].until <= f.now {
		f.holds = f.holds[1:]
	}
	if len(f.holds) > 0 {
		at(f.holds[0].until)
	}
	spare := len(f.open) - 1
	f.open = slices.DeleteFunc(f.open, func(s *Slot) bool {
		if s.held && f.now >= s.since+unused {
			f.Actions.Return(s.peer, 1)
			s.held = false
		}
		if s.held {
			at(s.since + unused)
			return false
		}
		keep := warm
		if spare > 0 { // the oldest go first: they are the least likely to be free still
			keep = cooling
		}
		if f.now < s.since+keep {
			at(s.since + keep)
			return false
		}
		spare--
		f.offer(s.peer, -1)
		return true
	})
}

// ask asks for the slots that are missing.
func (f *Function) ask(at func(time.Duration)) {
	missing := f.need()
	if missing <= 0 && f.ahead > 0 {
		return // more may have come
	}
	if wanting := missing > 0; wanting != f.wanting {
		f.wanting = wanting
		f.Actions.Want(wanting) // before Take: a slot that becomes free meanwhile finds this node
	}
	if missing <= 0 {
		if f.now >= f.askAt { // else the next call has no better chance than the last one
			f.pause = 0
		}
		f.pause = min(f.pause, maxIdlePause)
		return
	}
	missing -= f.asked
	if missing > 0 && f.now < f.askAt {
		at(f.askAt)
		return
	}
	for missing > 0 && f.asking < maxAsking {
		n := 1 + missing/4 // many calls need fewer requests, and a few calls get slots of several nodes
		missing -= n
		f.asking++
		f.asked += n
		f.Actions.Take(n, f.pause > 0)
	}
}

// give lets others find free slots.
func (f *Function) give(at func(time.Duration)) {
	n := f.spare()
	if giving := n > 0; giving != f.giving {
		f.giving = giving
		f.Actions.Give(giving) // before Free: a call that begins to wait meanwhile finds this node
		f.told, f.tellAt = false, f.now+quiet
		if giving && f.skip > 0 && f.now < f.skipTo {
			f.told = true
			f.skip--
		}
	}
	switch {
	case n <= 0, f.told, f.freeing > 0:
	case f.now < f.tellAt:
		at(f.tellAt)
	default:
		f.told, f.freeing = true, n
		f.Actions.Free(n)
	}
}
