package exec

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"fbus/bus/args"
)

// Whatever is not in the table of transitions panics, and what is there does not.
func TestResidentTransitions(t *testing.T) {
	for from := range states {
		for to := range states {
			s := newResidents(&Function{spec: Spec{Name: "f"}})
			p := newResident(s)
			p.state = from
			func() {
				defer func() {
					if legal := slices.Contains(transitions[from], to); legal != (recover() == nil) {
						t.Errorf("%v to %v: legal is %v", from, to, legal)
					}
				}()
				s.to(p, to)
			}()
		}
	}
}

// modelled is a function whose processes are only states: a test makes their events.
type modelled struct {
	*residents
	t      *testing.T
	random *rand.Rand
	calls  map[*exchange]bool
	places []*place
	null   *os.File
}

// any returns one of the processes in some states, nil if there is none.
func (m *modelled) any(in ...state) *resident {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []*resident
	for p := range m.all {
		if slices.Contains(in, p.state) {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return nil
	}
	// The order of a map is random by itself, which would make a seed useless.
	slices.SortFunc(list, func(a, b *resident) int { return a.started.Compare(b.started) })
	return list[m.random.IntN(len(list))]
}

func (m *modelled) step() (event string) {
	events := []struct {
		name string
		do   func() bool
	}{
		{"a call comes", func() bool {
			x := &exchange{c: &Call{}}
			m.calls[x] = true
			if w := m.enter(x); w != nil {
				m.places = append(m.places, w)
			}
			return true
		}},
		{"a call leaves the queue", func() bool {
			if len(m.places) == 0 {
				return false
			}
			w := m.places[m.random.IntN(len(m.places))]
			if m.withdraw(w) {
				delete(m.calls, w.x)
			}
			return true
		}},
		{"a call ends", func() bool {
			if p := m.any(busy, retiring); p != nil && len(p.calls) > 0 {
				x := p.calls[m.random.IntN(len(p.calls))]
				m.finish(x)
				delete(m.calls, x)
			}
			return true
		}},
		{"a call outlives its process", func() bool {
			for x := range m.calls {
				if x.p != nil && x.p.state == gone {
					m.finish(x)
					delete(m.calls, x)
				}
			}
			return true
		}},
		{"a process is up", func() bool { return m.with(m.started, starting) }},
		{"a process does not start", func() bool {
			return m.with(func(p *resident) { m.failed(p, args.Errorf(args.CodeInternal, "no process")) }, starting)
		}},
		{"a process breaks the protocol", func() bool {
			return m.with(func(p *resident) { m.replace(p, "it wrote noise") }, idle, busy, retiring)
		}},
		{"a process answers", func() bool { return m.with(func(p *resident) { p.answered.Store(true) }, busy) }},
		{"a call is overdue", func() bool {
			return m.with(func(p *resident) {
				m.replace(p, "")
				m.giveUp(p, p.calls[0])
			}, busy)
		}},
		{"a process exits", func() bool {
			return m.with(func(p *resident) {
				m.replace(p, "it exited")
				m.ended(p)
			}, idle, busy, retiring)
		}},
		{"a process was idle for long", func() bool {
			return m.with(func(p *resident) {
				p.since = time.Time{}
				m.endIdle()
			}, idle)
		}},
		{"the pause is over", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.pause == nil {
				return false
			}
			m.pause.Stop()
			m.pause = nil
			m.pump()
			return true
		}},
		{"another node", func() bool { m.setNode(fmt.Sprint(m.random.IntN(3))); return true }},
		{"kill", func() bool {
			if m.random.IntN(10) > 0 {
				return false
			}
			m.kill()
			return true
		}},
	}
	for {
		if e := events[m.random.IntN(len(events))]; e.do() {
			return e.name
		}
	}
}

// with does something with a process in one of some states. False: there is none.
func (m *modelled) with(do func(*resident), in ...state) bool {
	p := m.any(in...)
	if p == nil {
		return false
	}
	if p.replies == nil { // what start would make
		replies, err := os.Open(os.DevNull)
		conn, cerr := m.null.SyscallConn()
		if err != nil || cerr != nil {
			m.t.Fatal(err, cerr)
		}
		p.replies, p.stderr.stream = &stream{file: replies}, &stream{file: m.null, conn: conn}
	}
	do(p)
	return true
}

// audit counts everything again.
func (m *modelled) audit() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var count [states]int
	seated := 0
	for p := range m.all {
		count[p.state]++
		open := (p.state == idle || p.state == busy) && len(p.calls) < m.seats
		switch {
		case p.state == gone || p.state == absent:
			return fmt.Errorf("a process that is %v is listed", p.state)
		case open != slices.Contains(m.free, p):
			return fmt.Errorf("%v with %d calls: in the list of free ones is %v", p.state, len(p.calls), !open)
		case p.state == idle && len(p.calls) > 0, p.state == busy && len(p.calls) == 0, p.state == starting && len(p.calls) > 0, len(p.calls) > m.seats:
			return fmt.Errorf("%v with %d calls", p.state, len(p.calls))
		case m.f.spec.MaxCalls > 0 && p.taken > m.f.spec.MaxCalls:
			return fmt.Errorf("a process took %d calls", p.taken)
		case (p.state == idle || p.state == busy && m.seats > 1) && m.spent(p):
			return fmt.Errorf("a spent process is %v", p.state)
		}
		for _, x := range p.calls {
			if x.p != p || !m.calls[x] {
				return fmt.Errorf("a call is at another process")
			}
			seated++
		}
	}
	for st := starting; st < gone; st++ {
		if count[st] != m.count[st] {
			return fmt.Errorf("%d are %v, the counter has %d", count[st], st, m.count[st])
		}
	}
	waiting := 0
	for x := range m.calls {
		switch {
		case x.p == nil:
			waiting++
		case x.p.state == gone:
			seated++
			if !slices.Contains(x.p.calls, x) {
				return fmt.Errorf("a process that is gone lost its call")
			}
		}
	}
	switch {
	case len(m.free) > count[idle]+count[busy]:
		return fmt.Errorf("%d are free, %d in service", len(m.free), count[idle]+count[busy])
	case m.max > 0 && m.inService() > m.max:
		return fmt.Errorf("%d in service, the limit is %d", m.inService(), m.max)
	case m.owed < 0:
		return fmt.Errorf("%d successors", m.owed)
	case waiting != len(m.queue) || seated+waiting != len(m.calls):
		return fmt.Errorf("%d calls: %d wait, %d are queued, %d have a seat", len(m.calls), waiting, len(m.queue), seated)
	case len(m.queue) > 0 && len(m.free) > 0:
		return fmt.Errorf("%d calls wait while %d processes are free", len(m.queue), len(m.free))
	case len(m.queue) > 0 && m.inService() == 0 && m.pause == nil && count[retiring] <= max(m.max, 1):
		return fmt.Errorf("%d calls wait for nothing", len(m.queue))
	}
	return nil
}

// Random events in any order keep counters, lists and bounds right.
func TestResidentStates(t *testing.T) {
	t.Parallel()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		f := &Function{spec: Spec{Name: "f", Resident: JSONRPC, Slots: random.IntN(7), Pipeline: 1 + random.IntN(3),
			MaxCalls: random.IntN(5), MaxIdle: time.Hour, Grace: time.Hour}}
		m := &modelled{residents: newResidents(f), t: t, random: random, calls: make(map[*exchange]bool), null: null}
		m.launch = func(*resident) { m.watched.Done() }
		m.begin()
		var events []string
		for range 400 {
			killed := m.step()
			if killed == "kill" || killed == "a process does not start" { // those that waited were refused
				for x := range m.calls {
					if x.p == nil && !slices.ContainsFunc(m.queue, func(w *place) bool { return w.x == x }) {
						delete(m.calls, x)
					}
				}
			}
			events = append(events, killed)
			m.places = slices.DeleteFunc(m.places, func(w *place) bool { return w.x.p != nil || !m.calls[w.x] })
			if err := m.audit(); err != nil {
				t.Fatalf("seed %d: %v, after %q", seed, err, events)
			}
		}
		// At the end nothing is left.
		m.mu.Lock()
		m.closed = true
		m.refuse(errKilled)
		m.mu.Unlock()
		for m.with(func(p *resident) { m.failed(p, args.Errorf(args.CodeInternal, "closed")) }, starting) {
		}
		for m.with(func(p *resident) { m.replace(p, ""); m.ended(p) }, idle, busy, retiring) {
		}
		m.close(true)
		if len(m.all) > 0 || m.inService() > 0 || m.count[retiring] > 0 {
			t.Errorf("seed %d: %v", seed, m.count)
		}
	}
}
