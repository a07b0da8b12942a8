package main

import (
	"math/rand/v2"
	"reflect"
	"slices"
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

	used   bool   // the own node has slots of it, or calls that wait for one
	here   int    // slots of its workers
	busy   int    // of these, taken
	total  uint64 // of its calls that have begun, as it has reported last
	queued int    // of those that wait
	demand bus.Demand
	timer  *time.Timer
	groups [2]*nats.Subscription // by group
}

// Groups of NATS: of those whose calls wait, and of those with a free slot.
const (
	want = iota
	free
)

// offered is a peer's function, offered to the own node. The mesh's mu protects it.
type offered struct {
	peer  *peer
	entry *entry
	slots int // that the policy has

	// Of calls for this peer by its name. Nothing is held for them at its node.
	asked   int       // that wait
	running int       // that run there
	vain    int       // times that it had no slot for them since some wait
	most    int       // slots until at: as many as it had when one was refused, and one more for each call that has ended
	at      time.Time // when more are tried
}

// direct returns the slots that are offered for calls for this peer by its name, those that run included.
func (o *offered) direct() int {
	switch n := o.asked + o.running; {
	case o.entry.stopped():
		return 0
	case time.Now().Before(o.at):
		return min(n, o.most)
	default:
		return n
	}
}

// announce offers it to the own node.
func (o *offered) announce() {
	if l := o.peer.link; l != nil {
		l.offer(o.entry, o.slots+o.direct())
	}
}

// offered returns what a peer offers of a function; nil: nothing.
func (m *mesh) offered(name, id string) *offered {
	for _, o := range m.elsewhere[name] {
		if o.peer.id == id {
			return o
		}
	}
	return nil
}

// add notes that a peer has a function. A call may wait for it already.
func (m *mesh) add(p *peer, e *entry) {
	o := m.offered(e.Name, p.id)
	if o != nil {
		o.entry = e
		o.announce()
		return
	}
	o = &offered{peer: p, entry: e}
	m.elsewhere[e.Name] = append(m.elsewhere[e.Name], o)
	o.announce()
	if f := m.functions[e.Name]; f != nil {
		f.look(0)
	}
}

// remove notes that a peer does not have a function any more.
func (m *mesh) remove(p *peer, name string) {
	had := m.elsewhere[name]
	left := slices.DeleteFunc(had, func(o *offered) bool { return o.peer == p })
	if len(left) == len(had) {
		return
	}
	if m.elsewhere[name] = left; len(left) == 0 {
		delete(m.elsewhere, name)
	}
	if p.link != nil {
		p.link.withdraw(name)
	}
	if f := m.functions[name]; f != nil {
		f.Gone(m.now(), p.id)
		f.tidy()
	}
}

// function returns the policy for a function, which is made if it is new.
func (m *mesh) function(name string) *function {
	f := m.functions[name]
	if f == nil {
		f = &function{mesh: m, name: name}
		f.Actions = f
		m.functions[name] = f
	}
	return f
}

// tidy forgets the policy for a function for which there is nothing to decide.
func (f *function) tidy() {
	if !f.used && f.Idle() {
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
func (m *mesh) report(c *functionLine) {
	if c.Gone {
		c.Slots, c.Busy, c.Queued, c.Demand = 0, 0, 0, bus.Demand{}
	}
	used := c.Slots > 0 || c.Busy > 0 || c.Queued > 0 || c.Ready > 0
	f := m.functions[c.Name]
	if f == nil && !used {
		return
	}
	f = m.function(c.Name)
	total, begun := c.Done+c.Failed+uint64(c.Busy), 0
	if f.used && total > f.total {
		begun = int(total - f.total)
	}
	if c.Busy != f.busy || c.Queued > f.queued || begun > 0 {
		m.pulse.runs(c.Busy - f.busy)
	}
	f.used, f.total, f.here, f.busy, f.queued, f.demand = used, total, c.Slots, c.Busy, c.Queued, c.Demand
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
	for _, n := range f.demand.On {
		l.Queued -= n
	}
	for _, n := range f.demand.ReadyOn {
		l.Ready -= n
	}
	f.named()
	l.Queued, l.Ready = max(0, l.Queued), max(0, l.Ready)
	if f.mesh.pulse.silent {
		l = slots.Local{}
	}
	if len(f.mesh.elsewhere[f.name]) == 0 {
		l.Queued, l.Ready = 0, 0 // nobody has it
	}
	f.Local(f.mesh.now(), l)
}

// named notes how many calls and jobs wait for certain workers. Each peer that is one of them is asked, as
// nobody else can help.
func (f *function) named() {
	for _, o := range f.mesh.elsewhere[f.name] {
		asked := 0
		for _, wait := range []map[string]int{f.demand.On, f.demand.ReadyOn} {
			for glob, n := range wait {
				if o.peer.link != nil && o.peer.matches(glob) {
					asked += n
				}
			}
		}
		if asked == 0 {
			o.vain, o.at = 0, time.Time{}
		}
		if asked != o.asked {
			o.asked = asked
			o.announce()
		}
	}
}

// ended notes the end of a call for the peer by its name: how is Refused if it had no slot.
func (o *offered) ended(how slots.Outcome) {
	o.running--
	m := o.peer.mesh
	if m.offered(o.entry.Name, o.peer.id) != o {
		return
	}
	switch now := time.Now(); {
	case how != slots.Refused:
		o.most++
	case now.Before(o.at):
		o.most = min(o.most, o.running)
	default:
		pause := namedPauses[min(o.vain, len(namedPauses)-1)]
		o.vain++
		o.most, o.at = o.running, now.Add(pause)
		time.AfterFunc(pause, func() { // ends by itself
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.offered(o.entry.Name, o.peer.id) == o {
				o.announce()
			}
		})
	}
	o.announce()
}

var namedPauses = [...]time.Duration{2 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 250 * time.Millisecond, time.Second}

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
			f.askNodes(n)
		case late:
			f.takenLate(a)
		case inTime:
			f.taken(a, n)
		}
	})
}

// usable reports whether calls of the function can be passed on to a peer now.
func (f *function) usable(id string) bool {
	return f.mesh.usable(id) && f.mesh.offered(f.name, id) != nil
}

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

// takenLate takes an answer for which nobody waits any more.
func (f *function) takenLate(a *answer) {
	if left := a.Slots - f.welcome(a); left > 0 {
		f.Return(a.From, left)
	}
}

// welcome takes as many slots of a late answer as are needed now, as if they had been offered, and returns how
// many those are.
func (f *function) welcome(a *answer) int {
	if a.Slots == 0 || f.mesh.functions[f.name] != f || !f.usable(a.From) {
		return 0
	}
	return f.AskedFree(f.mesh.now(), a.From, a.Slots)
}

// maxAsked bounds the nodes that are asked themselves.
const maxAsked = 4

// askNodes asks some nodes that have the function for n slots, over their links. It is for when the mesh that NATS
// has chosen does not answer: that mesh may be stopped, or the NATS server of all that have a free slot, and NATS may
// choose it again, and again. Nothing is held for this node then, and a call may come too late: it waits again.
func (f *function) askNodes(n int) {
	m := f.mesh
	asked, done := 0, false
	list := m.elsewhere[f.name]
	for _, i := range rand.Perm(len(list)) {
		p := list[i].peer
		if !f.usable(p.id) || asked == maxAsked {
			continue
		}
		asked++
		p.link.askFree(f.name, func(free int) {
			asked--
			switch a := (&answer{From: p.id, Slots: free}); {
			case done:
				f.welcome(a)
			case free > 0 || asked == 0:
				done = true
				f.taken(a, n)
			}
		})
	}
	if asked == 0 {
		f.taken(&answer{}, n)
		return
	}
	time.AfterFunc(pulseFresh, func() { // ends by itself
		m.mu.Lock()
		defer m.mu.Unlock()
		if !done {
			done = true
			f.taken(&answer{}, n)
		}
	})
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
	if o := f.mesh.offered(f.name, id); o != nil {
		o.slots = n
		o.announce()
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

// functionLine is a line of the watch about a function, or about one of its workers.
type functionLine struct {
	bus.Change
	Name     string `json:"name"`
	Function string `json:"function"` // of a worker
	Slots    int    `json:"slots"`
	Busy     int    `json:"busy"`
	Queued   int    `json:"queued"`
	Done     uint64 `json:"done"`
	Failed   uint64 `json:"failed"`
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
	e := entry{Name: i.Name, Description: i.Description, Arguments: i.Arguments, Schema: string(i.Schema), Attributes: i.Attributes, Slots: i.Slots}
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

func (e *entry) equal(o *entry) bool { return reflect.DeepEqual(e, o) }
