package node

import (
	linked "container/list"
	"slices"
	"sync"
	"sync/atomic"

	"fbus/bus/jobs"
)

// changes remembers what has changed at a node, for those that watch it. A change costs the same
// however many watch, and nothing while nobody does. Changes of one thing are one.
type changes struct {
	watchers      atomic.Int32
	relayWatchers atomic.Int32 // those of them that want to know of relays

	mu        sync.Mutex // protects the fields below; the node's mu may be held
	stamp     uint64     // of the last change
	functions recent[string]
	workers   recent[workerKey]
	relays    recent[workerKey] // the same of relays: their functions are not among the others
	calls     recent[*call]
	jobs      recent[jobs.ID]
	tickets   recent[struct{}]
	more      chan struct{} // closed at the next change; nil: nobody waits
	ticketed  chan struct{} // closed at the next change of tickets; nil: nobody waits
}

// workerKey is one worker's offer of a function.
type workerKey struct {
	function string
	session  *session
}

// maxRecent bounds how many changed things of a kind are remembered. A watcher that has missed
// one begins again.
const maxRecent = 20_000

// recent is the things of one kind that have changed, ordered by their last change.
type recent[K comparable] struct {
	list  linked.List // of change[K], the newest first
	at    map[K]*linked.Element
	floor uint64 // stamp of the newest change that was forgotten
}

type change[K comparable] struct {
	key   K
	stamp uint64
}

func (r *recent[K]) touch(key K, stamp uint64) {
	if e := r.at[key]; e != nil {
		e.Value = change[K]{key, stamp}
		r.list.MoveToFront(e)
		return
	}
	if r.at == nil {
		r.at = map[K]*linked.Element{}
	}
	r.at[key] = r.list.PushFront(change[K]{key, stamp})
	if r.list.Len() > maxRecent {
		last := r.list.Remove(r.list.Back()).(change[K])
		delete(r.at, last.key)
		r.floor = last.stamp
	}
}

// since returns what has changed after a stamp, oldest first. ok is false if some of it is
// forgotten.
func (r *recent[K]) since(stamp uint64) (keys []K, ok bool) {
	for e := r.list.Front(); e != nil; e = e.Next() {
		c := e.Value.(change[K])
		if c.stamp <= stamp {
			break
		}
		keys = append(keys, c.key)
	}
	slices.Reverse(keys)
	return keys, r.floor <= stamp
}

// clear forgets everything.
func (r *recent[K]) clear(stamp uint64) {
	r.list.Init()
	r.at, r.floor = nil, stamp
}

// note records a change that touch makes with the next stamp, and wakes those that wait.
func (ch *changes) note(touch func(stamp uint64)) {
	if ch.watchers.Load() == 0 {
		return
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.stamp++
	touch(ch.stamp)
	if ch.more != nil {
		close(ch.more)
		ch.more = nil
	}
}

func (ch *changes) function(name string) {
	if !reserved(name) {
		ch.note(func(stamp uint64) { ch.functions.touch(name, stamp) })
	}
}

func (ch *changes) worker(o *offer) {
	if o.fn.own == nil {
		key := workerKey{o.fn.name, o.session}
		if o.relay {
			if ch.relayWatchers.Load() > 0 {
				ch.note(func(stamp uint64) { ch.relays.touch(key, stamp) })
			}
			return
		}
		ch.note(func(stamp uint64) {
			ch.functions.touch(o.fn.name, stamp)
			ch.workers.touch(key, stamp)
		})
	}
}

func (ch *changes) call(c *call) {
	if c.fn.own == nil {
		ch.note(func(stamp uint64) {
			ch.functions.touch(c.fn.name, stamp)
			ch.calls.touch(c, stamp)
		})
	}
}

func (ch *changes) job(id jobs.ID) { ch.note(func(stamp uint64) { ch.jobs.touch(id, stamp) }) }

func (ch *changes) ticket() {
	ch.mu.Lock()
	if ch.ticketed != nil {
		close(ch.ticketed)
		ch.ticketed = nil
	}
	ch.mu.Unlock()
	ch.note(func(stamp uint64) { ch.tickets.touch(struct{}{}, stamp) })
}

// moreTickets returns a channel that is closed at the next change of tickets.
func (ch *changes) moreTickets() <-chan struct{} {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.ticketed == nil {
		ch.ticketed = make(chan struct{})
	}
	return ch.ticketed
}

// watch begins to note changes for one more watcher, and returns the stamp of the last one.
func (ch *changes) watch(relays bool) uint64 {
	ch.watchers.Add(1)
	if relays {
		ch.relayWatchers.Add(1)
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.stamp
}

// unwatch ends what watch began.
func (ch *changes) unwatch(relays bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.stamp++ // a change that is being noted may have an older one
	if relays && ch.relayWatchers.Add(-1) == 0 {
		ch.relays.clear(ch.stamp)
	}
	if ch.watchers.Add(-1) == 0 {
		ch.functions.clear(ch.stamp)
		ch.workers.clear(ch.stamp)
		ch.calls.clear(ch.stamp)
		ch.jobs.clear(ch.stamp)
		ch.tickets.clear(ch.stamp)
	}
}

// changed lists the changes after a stamp.
type changed struct {
	stamp     uint64 // of the last change
	functions []string
	workers   []workerKey
	calls     []*call
	jobs      []jobs.ID
	tickets   bool
	lost      bool            // some changes are forgotten
	more      <-chan struct{} // closed at the next change
}

// since lists them. Those that only relays make are left out, unless relays is set.
func (ch *changes) since(stamp uint64, relays bool) (c changed) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ok := [5]bool{4: true}
	c.functions, ok[0] = ch.functions.since(stamp)
	c.workers, ok[1] = ch.workers.since(stamp)
	c.calls, ok[2] = ch.calls.since(stamp)
	c.jobs, ok[3] = ch.jobs.since(stamp)
	if relays {
		var more []workerKey
		more, ok[4] = ch.relays.since(stamp)
		c.workers = append(c.workers, more...)
		listed := map[string]bool{}
		for _, name := range c.functions {
			listed[name] = true
		}
		for _, key := range more {
			if !listed[key.function] {
				listed[key.function] = true
				c.functions = append(c.functions, key.function)
			}
		}
	}
	tickets, _ := ch.tickets.since(stamp)
	c.stamp, c.tickets, c.lost = ch.stamp, len(tickets) > 0, ok != [5]bool{true, true, true, true, true}
	if ch.more == nil {
		ch.more = make(chan struct{})
	}
	c.more = ch.more
	return c
}
