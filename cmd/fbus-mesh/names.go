package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// The functions of the own node, as the other meshes hear of them.

// page returns a part of the own node's functions, from a name on, as it is sent. All others ask for the
// first one, so that is made once.
func (m *mesh) page(from string) []byte {
	if from == "" && m.first != nil {
		return m.first
	}
	p := &page{Names: m.self.Names}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		if name < from {
			continue
		}
		e := m.names[name]
		if size += len(m.encode(e)); size > maxPage && len(p.List) > 0 {
			p.Next = name
			break
		}
		p.List = append(p.List, e)
	}
	data := m.encode(p)
	if from == "" {
		m.first = data
	}
	return data
}

// line takes a line of the watch.
func (m *mesh) line(text []byte) {
	var c functionLine
	if json.Unmarshal(text, &c) != nil {
		return
	}
	m.pulse.shows()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return
	}
	switch c.Type {
	case "resync":
		for name := range m.names {
			m.change(name)
		}
		for name, f := range m.functions {
			if f.used {
				m.change(name)
				m.report(&functionLine{Change: c.Change, Name: name})
			}
		}
	case "function":
		here := 0
		if f := m.functions[c.Name]; f != nil {
			here = f.here
		}
		if here != c.Slots {
			m.change(c.Name)
		}
		m.report(&c)
	case "worker":
		m.change(c.Function)
	}
}

// change notes that a function of the own node may have changed.
func (m *mesh) change(name string) {
	if m.shares(name) || m.service != nil && m.service.has(name) {
		if len(m.dirty) == 0 {
			if m.pause == 0 || time.Since(m.heardAt) > 2*m.pause {
				m.pause = settleTime
			} else {
				m.pause = min(2*m.pause, mostSettleTime)
			}
			m.settled.Reset(m.pause)
		}
		m.dirty[name] = true
	}
}

// settle looks at the functions that may have changed, and lets the others know.
func (m *mesh) settle() {
	m.settling.Lock() // so that no older answer comes after a newer one
	defer m.settling.Unlock()
	m.mu.Lock()
	names := slices.Sorted(maps.Keys(m.dirty))
	clear(m.dirty)
	m.mu.Unlock()
	now := map[string]entry{}
	for some := range slices.Chunk(names, 500) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := m.node.Call(ctx, &bus.Request{Function: "fbus.functions", Args: args.List(some...), Stdout: &lines{each: func(text []byte) {
			var i bus.FunctionInfo
			if json.Unmarshal(text, &i) != nil {
				return
			}
			if e := entryOf(&i); e.Slots > 0 || e.stopped() {
				now[i.Name] = e
			}
		}}})
		cancel()
		if err != nil {
			m.mu.Lock()
			for _, name := range names { // with another connection everything begins again
				if !m.over {
					m.change(name)
				}
			}
			m.mu.Unlock()
			return
		}
	}
	if m.service != nil {
		m.service.update(names, now)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := false
	for _, name := range names {
		was, had := m.names[name]
		is, has := now[name]
		if !m.shares(name) || had == has && was.equal(&is) {
			continue
		}
		changed = true
		if delete(m.names, name); has {
			m.names[name] = is
		}
	}
	if changed && !m.over && !m.draining {
		m.self.Names++
		m.first = nil
		m.heardAt = time.Now()
		m.hello("")
	}
}

// lines splits an answer into lines.
type lines struct {
	each func(line []byte)
	rest []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			break
		}
		l.each(line)
		l.rest = rest
	}
	l.rest = append([]byte(nil), l.rest...)
	return len(p), nil
}
