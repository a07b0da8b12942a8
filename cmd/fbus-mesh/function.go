package main

import (
	"encoding/json"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
	"fbus/cmd/fbus-mesh/slots"

	"github.com/nats-io/nats.go"
)

// function is one function at this mesh: the policy for it, and what the policy needs done. The
// mesh's mu protects it.
type function struct {
	slots.Function
	mesh *mesh
	name string

	known  bool   // the own node has reported it
	here   int    // slots of its workers
	busy   int    // of these, taken
	total  uint64 // of its calls that have begun, as it has reported last
	queued int    // of those that wait
	demand bus.Demand
	timer  *time.Timer
	groups [2]*nats.Subscription // by group
	offers map[string]*offered   // by peer
}

// Groups of NATS: of those whose calls wait, and of those with a free slot.
const (
	want = iota
	free
)

// offered is a peer's function, offered to the own node.
type offered struct {
	entry entry
	slots int // that the policy has
	asked int // calls that wait for this peer by its name
	vain  int // times that it had no slot for them, one after the other
	at    time.Time
}

// direct returns the slots that are offered for calls that wait for this peer by its name.
// Nothing is held for them.
func (o *offered) direct() int {
	if o == nil || o.entry.stopped() || time.Now().Before(o.at) {
		return 0
	}
	return o.asked
}

// function returns a function, which is made if it is new.
func (m *mesh) function(name string) *function {
	f := m.functions[name]
	if f == nil {
		f = &function{mesh: m, name: name, offers: map[string]*offered{}}
		f.Actions = f
		m.functions[name] = f
	}
	return f
}

// tidy forgets a function that nobody needs.
func (f *function) tidy() {
	if !f.known && len(f.offers) == 0 && f.Idle() {
		f.leave()
		delete(f.mesh.functions, f.name)
	}
}

// leave ends what goes on for the function.
func (f *function) leave() {
	f.Want(false)
	f.Give(false)
	f.Wake(0)
}

// report takes a line of the watch.
func (f *function) report(c *functionLine) {
	total, begun := c.Done+c.Failed+uint64(c.Busy), 0
	if f.known && total > f.total {
		begun = int(total - f.total)
	}
	if c.Busy != f.busy || begun > 0 {
		f.mesh.pulse.runs(c.Busy - f.busy)
	}
	f.total, f.known, f.here, f.busy = total, !c.Gone, c.Slots, c.Busy
	if f.queued, f.demand = c.Queued, c.Demand; c.Gone {
		f.queued, f.demand = 0, bus.Demand{}
	}
	f.look(begun)
	f.tidy()
}

// look acts on what waits here, and what is free. That depends on the peers that have the function,
// too: a call may have come before them.
func (f *function) look(begun int) {
	l := slots.Local{Free: f.demand.Free, Begun: begun, Queued: f.queued, Ready: f.demand.Ready}
	if !f.mesh.shares(f.name) {
		l.Free = 0
	}
	for glob, n := range f.demand.On {
		l.Queued -= n
		f.named(glob, n)
	}
	if len(f.demand.On) == 0 {
		f.named("", 0)
	}
	l.Queued = max(0, l.Queued)
	if f.mesh.pulse.silent {
		l = slots.Local{}
	}
	if len(f.offers) == 0 {
		l.Queued, l.Ready = 0, 0 // nobody has it
	}
	f.Local(f.mesh.now(), l)
}

// named notes that calls wait for workers that match on. Each peer that does is asked, as nobody
// else can help.
func (f *function) named(on string, n int) {
	for id, o := range f.offers {
		p := f.mesh.peers[id]
		if p == nil || p.link == nil {
			continue
		}
		asked := 0
		if n > 0 && p.matches(on) {
			asked = n
		}
		if asked != o.asked {
			o.asked = asked
			f.announce(id)
		}
	}
}

// refused notes that a peer had no slot for a call that waits for it by its name.
func (f *function) refused(id string) {
	o := f.offers[id]
	if o == nil {
		return
	}
	pause := namedPauses[min(o.vain, len(namedPauses)-1)]
	o.vain++
	o.at = time.Now().Add(pause)
	m := f.mesh
	time.AfterFunc(pause, func() { // ends by itself
		m.mu.Lock()
		defer m.mu.Unlock()
		if f.offers[id] == o {
			f.announce(id)
		}
	})
	f.announce(id)
}

var namedPauses = [...]time.Duration{2 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 250 * time.Millisecond, time.Second}

// announce offers what a peer has to the own node.
func (f *function) announce(id string) {
	o, p := f.offers[id], f.mesh.peers[id]
	if o != nil && p != nil && p.link != nil {
		p.link.offer(f.name, &o.entry, o.slots+o.direct())
	}
}

// add notes that a peer has the function; remove that it has not.
func (f *function) add(p *peer, e entry) {
	o, had := f.offers[p.id]
	if !had {
		o = &offered{}
		f.offers[p.id] = o
	}
	o.entry = e
	f.announce(p.id)
	if !had {
		f.look(0)
	}
}

func (f *function) remove(p *peer) {
	if f.offers[p.id] == nil {
		return
	}
	delete(f.offers, p.id)
	if p.link != nil {
		p.link.withdraw(f.name)
	}
	f.Gone(f.mesh.now(), p.id)
	f.tidy()
}

// Want, Give, Take, Free, Return, Offer and Wake are the policy's [slots.Actions].

func (f *function) Want(on bool) { f.join(want, "free", "want", on) }
func (f *function) Give(on bool) { f.join(free, "take", "free", on) }

// join changes a group. Requests that cross a leaving are answered: the subscription is drained.
func (f *function) join(i int, verb, group string, on bool) {
	if sub := f.groups[i]; sub != nil {
		f.groups[i] = nil
		sub.Drain()
	}
	if on {
		f.groups[i], _ = f.mesh.nc.ChanQueueSubscribe(f.subject(verb), group, f.mesh.inbox)
	}
}

// subject is where a function is asked about. NATS divides at dots, and takes no empty parts.
func (f *function) subject(verb string) string {
	return f.mesh.prefix + verb + "." + strings.ReplaceAll(f.name, ".", "/")
}

func (f *function) Take(n int, again bool) {
	f.mesh.request(f.subject("take"), question{From: f.mesh.self.ID, Slots: n, Again: again}, func(a *answer, how timing) {
		switch how {
		case silent:
			f.takeDirectly(n)
		case late:
			f.takenLate(a)
		case inTime:
			f.taken(a, n)
		}
	})
}

// usable reports whether calls of the function can be passed on to a peer now.
func (f *function) usable(id string) bool { return f.mesh.usable(id) && f.offers[id] != nil }

// taken takes the answer to a request for n slots.
func (f *function) taken(a *answer, n int) {
	got := a.Slots
	if got > 0 && !f.usable(a.From) {
		f.Return(a.From, got)
		got = 0
	}
	f.Taken(f.mesh.now(), a.From, n, min(got, n))
	f.tidy()
}

// takenLate takes an answer for which nobody waits any more. Its slots are as welcome as if they had been
// offered.
func (f *function) takenLate(a *answer) {
	got := a.Slots
	if got > 0 && f.mesh.functions[f.name] == f && f.usable(a.From) {
		got -= f.AskedFree(f.mesh.now(), a.From, got)
	}
	if got > 0 {
		f.Return(a.From, got)
	}
}

// maxDirect bounds the nodes that are asked for slots by name.
const maxDirect = 4

// takeDirectly asks some nodes that have the function, each by itself, for n slots. It is for when the
// one that NATS has chosen does not answer, as its mesh is stopped: NATS may choose that one again, and
// again.
func (f *function) takeDirectly(n int) {
	asked, done := 0, false
	for id := range f.offers { // in random order
		if !f.mesh.usable(id) {
			continue
		}
		if asked++; asked > maxDirect {
			asked = maxDirect
			break
		}
		f.mesh.request(f.mesh.direct(id), &message{From: f.mesh.self.ID, Take: f.name, Slots: n}, func(a *answer, how timing) {
			if how == late {
				f.takenLate(a)
				return
			}
			asked--
			switch {
			case done:
				f.takenLate(a)
			case a.Slots > 0 || asked == 0:
				done = true
				f.taken(a, n)
			}
		})
	}
	if asked == 0 {
		f.taken(&answer{}, n)
	}
}

func (f *function) Free(n int) {
	f.mesh.request(f.subject("free"), question{From: f.mesh.self.ID, Slots: n}, func(a *answer, how timing) {
		switch how {
		case late:
			return // the slots may be taken now: the peer's calls are refused then
		case silent:
			a.From = "?" // somebody was asked, so others may wait, too
		}
		f.Freed(f.mesh.now(), a.From, min(a.Slots, n))
		f.tidy()
	})
}

func (f *function) Return(id string, n int) {
	f.mesh.tell(id, &message{Return: f.name, Slots: n})
}

func (f *function) Offer(id string, n int) {
	if o := f.offers[id]; o != nil {
		o.slots = n
		f.announce(id)
	}
}

func (f *function) Wake(at time.Duration) {
	if f.timer != nil {
		f.timer.Stop()
	}
	if at == 0 {
		return
	}
	m := f.mesh
	d := max(0, at-m.now())
	if f.timer != nil {
		f.timer.Reset(d)
		return
	}
	f.timer = time.AfterFunc(d, func() { // ends by itself
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.functions[f.name] == f {
			f.Tick(m.now())
			f.tidy()
		}
	})
}

// question answers a request of a peer about the function.
func (f *function) question(verb string, q *question) int {
	now := f.mesh.now()
	switch {
	case f.mesh.peers[q.From] == nil: // it is not in the mesh, or not yet
	case verb == "take":
		return f.AskedTake(now, q.From, q.Slots, q.Again)
	case f.usable(q.From):
		return f.AskedFree(now, q.From, q.Slots)
	}
	return 0
}

// functionLine is a line of the watch about a function.
type functionLine struct {
	bus.Change
	bus.FunctionInfo
	bus.Demand
}

// entry is a function of a peer, as peers are told of it.
type entry struct {
	Name        string            `json:"name"`
	Flags       uint64            `json:"flags,omitempty"` // of its OFFER
	Description string            `json:"description,omitempty"`
	Arguments   string            `json:"arguments,omitempty"`
	Schema      string            `json:"schema,omitempty"`
	Attributes  map[string]string `json:"attributes,omitempty"`
	Slots       int               `json:"slots"`
	Note        string            `json:"note,omitempty"`   // why no worker can start the program
	Behind      []string          `json:"behind,omitempty"` // what selects each of its workers
	Held        []string          `json:"held,omitempty"`   // of these, those that get nothing new
}

// entryOf returns what peers are told of a function.
func entryOf(i *bus.FunctionInfo) entry {
	e := entry{Name: i.Name, Description: i.Description, Arguments: i.Arguments, Schema: string(i.Schema), Slots: i.Slots}
	switch i.Takes {
	case "input":
		e.Flags |= wire.FlagTakesInput
	case "args":
		e.Flags |= wire.FlagTakesArgs
	}
	idempotent, count := true, map[string]int{}
	for _, w := range i.Workers {
		count[w.Name]++
	}
	for _, w := range i.Workers {
		if w.Relay {
			continue
		}
		idempotent = idempotent && w.Idempotent
		if i.Slots == 0 && w.CannotStart != 0 && !e.stopped() {
			e.Note, e.Flags = w.Note, e.Flags|wire.FlagCannotStart
			if w.CannotStart == args.StatusOf(args.CodeNotFound) {
				e.Flags |= wire.FlagNotFound
			}
		}
		on := w.Name // what users see in call --all
		if count[on] > 1 || !args.ValidName(on) {
			on = "#" + w.ID
		}
		if len(e.Behind) < wire.MaxBehind {
			if e.Behind = append(e.Behind, on); w.Held {
				e.Held = append(e.Held, on)
			}
		}
	}
	if idempotent && len(e.Behind) > 0 {
		e.Flags |= wire.FlagIdempotent
	}
	return e
}

// stopped reports whether no worker can start the program.
func (e *entry) stopped() bool { return e.Flags&wire.FlagCannotStart != 0 }

func (e *entry) equal(o *entry) bool {
	a, _ := json.Marshal(e)
	b, _ := json.Marshal(o)
	return string(a) == string(b)
}
