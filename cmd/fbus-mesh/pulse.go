package main

import (
	"context"
	"sync/atomic"
	"time"

	"fbus/bus/args"
)

// A node whose process is stopped keeps its connections, but runs nothing that is passed on to it.
// So its mesh calls it all the time, and before it grants a slot.
const (
	// pulseEvery is how often the own node is called while it is in use. After pulseIdle without that, it is
	// called when the others are greeted, as this process runs then anyway: nothing is lost if it is known
	// later, as the node is asked before it gets something to run.
	pulseEvery = time.Second
	pulseIdle  = 5 * time.Second
	// pulseFresh is how long an answer counts.
	pulseFresh = firstPatience
	// pulseLate is when a node is silent: nothing is granted and asked for any more. Until pulseLost it
	// may be slow. Then the other meshes are told that it has left, and calls that run there end.
	pulseLate = 300 * time.Millisecond
	pulseLost = 3 * time.Second
)

// pulse is whether the own node answers. The mesh's mu protects it.
type pulse struct {
	mesh   *mesh
	at     time.Time          // of the last answer
	silent bool               // it has not answered in time
	lost   bool               // and the other meshes were told
	waits  []func(alive bool) // for the next answer
	kick   chan struct{}      // has room for one: an answer is waited for, or the node is in use
	busy   int                // calls that run at the node
	used   time.Time          // when their number has changed last
	idle   bool               // the node is called with the next greeting
	drains chan struct{}      // closed when the node has begun to shut down

	sign atomic.Int64 // when a frame of the node has come last, since the mesh's epoch
}

// shows notes that a frame of the node has come: it is not stopped, even if its answer takes long because many
// others ask, as when many nodes start.
func (p *pulse) shows() { p.sign.Store(int64(p.mesh.now())) }

// check calls f with whether the node answers now, at once or later with the mesh's mu held. The
// mesh's mu is held.
func (p *pulse) check(f func(alive bool)) {
	switch {
	case p.silent:
		f(false)
	case time.Since(p.at) < pulseFresh:
		f(true)
	default:
		p.waits = append(p.waits, f)
		p.wake()
	}
}

func (p *pulse) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// runs notes that calls have begun, ended or come to wait at the node; change is how many more run. The mesh's
// mu is held.
func (p *pulse) runs(change int) {
	p.busy += change
	p.used = time.Now()
	if p.idle {
		p.idle = false
		p.wake()
	}
}

// next returns when the node is called next: never while it is idle, unless it is woken. Clients of NATS call it
// without being asked first.
func (p *pulse) next() <-chan time.Time {
	p.mesh.mu.Lock()
	defer p.mesh.mu.Unlock()
	if p.idle = p.busy == 0 && time.Since(p.used) > pulseIdle && p.mesh.service == nil && !p.mesh.needed(); p.idle {
		return nil
	}
	return time.After(pulseEvery)
}

// needed reports whether calls of the own node wait, or run elsewhere. The mesh's mu is held.
func (m *mesh) needed() bool {
	for _, f := range m.functions {
		if f.queued > 0 {
			return true
		}
	}
	for _, p := range m.peers {
		if p.link != nil && len(p.link.byNear) > 0 {
			return true
		}
	}
	return false
}

// keep calls the node until ctx ends, or the connection.
func (p *pulse) keep(ctx context.Context) {
	m := p.mesh
	for drained := false; ; {
		unanswered, stop := context.WithCancel(ctx)
		late := time.AfterFunc(pulseLate, func() { p.late(unanswered) }) // these end by themselves
		lost := time.AfterFunc(pulseLost, func() { p.leave(unanswered) })
		drains := p.call(ctx)
		p.beat(stop)
		late.Stop()
		lost.Stop()
		if ctx.Err() != nil || m.node.Err() != nil {
			return
		}
		if drains && !drained {
			drained = true
			close(p.drains)
		}
		select {
		case <-p.next():
		case <-p.kick:
		case <-ctx.Done():
			return
		}
	}
}

// call calls the node, and reports whether it shuts down. A refusal is an answer, too. While the node is idle
// its end is near then, and the cheapest call will do.
func (p *pulse) call(ctx context.Context) (drains bool) {
	p.mesh.mu.Lock()
	idle := p.idle
	p.mesh.mu.Unlock()
	if idle {
		output(ctx, p.mesh.node, "fbus.functions", args.List("fbus.functions"))
		return false
	}
	info, err := infoOf(ctx, p.mesh.node)
	return err == nil && info.Draining
}

// beat notes that the node has answered, which stop says.
func (p *pulse) beat(stop func()) {
	m := p.mesh
	m.mu.Lock()
	defer m.mu.Unlock()
	stop()
	silent, lost := p.silent, p.lost
	p.at, p.silent, p.lost = time.Now(), false, false
	if silent {
		m.lookAll()
	}
	if lost {
		m.note("the own node answers again")
		m.service.pause(false)
		m.self.New = true // the others have forgotten this one, and it may have missed their words
		m.hello("")
	}
	p.answer(true)
}

// late is due when the node has not answered in time.
func (p *pulse) late(unanswered context.Context) {
	p.mesh.mu.Lock()
	defer p.mesh.mu.Unlock()
	if unanswered.Err() != nil {
		return
	}
	p.silent = true
	p.mesh.lookAll()
	p.answer(false)
}

// leave is due when it has not answered for so long that calls elsewhere had better not wait for it.
func (p *pulse) leave(unanswered context.Context) {
	m := p.mesh
	m.mu.Lock()
	defer m.mu.Unlock()
	quiet := m.now() - time.Duration(p.sign.Load())
	switch {
	case unanswered.Err() != nil || m.over || m.draining:
	case quiet < pulseLost:
		time.AfterFunc(pulseLost-quiet, func() { p.leave(unanswered) }) // ends by itself
	default:
		m.note("the own node does not answer: it is left out of the mesh until it does")
		p.lost = true
		m.service.pause(true)
		h := m.self
		h.Silent = true
		m.nc.Publish(m.prefix+"bye", m.encode(h))
	}
}

func (p *pulse) answer(alive bool) {
	for _, f := range p.waits {
		f(alive)
	}
	p.waits = nil
}

// lookAll has each function act on whether the node answers.
func (m *mesh) lookAll() {
	if m.over || m.draining {
		return
	}
	for _, f := range m.functions {
		f.look(0)
	}
}
