package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// hello announces a mesh to the others.
type hello struct {
	Version   int      `json:"version"`
	Node      string   `json:"node"`
	ID        string   `json:"id"`             // the node's instance: a new one each time it starts
	Mesh      string   `json:"mesh,omitempty"` // the same for the mesh
	Addresses []string `json:"addresses,omitempty"`
	Socket    string   `json:"socket,omitempty"`
	Machine   string   `json:"machine,omitempty"` // with the socket: where it is, and whose
	Names     uint64   `json:"names"`             // rises when they change
	New       bool     `json:"new,omitempty"`     // it wants to hear of the others
	Silent    bool     `json:"silent,omitempty"`  // in bye: its node does not answer
	Time      int64    `json:"time,omitempty"`    // by its clock, in Unix milliseconds; last, see heard
}

// stranger is a mesh whose messages have another version.
type stranger struct {
	node    string
	version int
	heard   time.Time
}

// greet lets the others know that this node is there, and forgets those that are silent.
func (m *mesh) greet(ctx context.Context) {
	in := false // the mesh
	planned := time.Now()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		m.mu.Lock()
		if m.draining {
			m.mu.Unlock()
			return
		}
		now := time.Now()
		if now.Sub(planned) > helloEvery { // this process was stopped: it is not the others that were silent
			for _, p := range m.peers {
				p.heard = now
			}
		}
		if !now.Before(m.due) {
			m.greetAll()
		}
		wake := m.due
		why, since := m.cfg.hub.offline()
		for _, p := range m.peers { // while NATS is gone, nobody can be heard
			last := p.heard
			if since.After(last) {
				last = since
			}
			if last = last.Add(3 * helloEvery); last.Before(now) {
				p.final = "node " + p.name + " is silent"
				m.drop(p, "it is silent")
			} else if last.Before(wake) {
				wake = last
			}
		}
		planned = wake
		m.mu.Unlock()
		if why == "" && !in {
			in = true
			m.note("node %s of network %s is in the mesh", m.self.Node, m.network)
		}
		if err := m.nc.LastError(); why != "" && err != nil {
			m.cfg.hub.refused(m.nc, err) // the library does not report each refusal
		}
		next.Reset(time.Until(wake) + time.Millisecond)
		select {
		case <-next.C:
		case <-m.cfg.hub.online:
			m.mu.Lock()
			m.self.New = true
			m.due = time.Now()
			for _, f := range m.functions {
				f.Again(m.now())
			}
			m.mu.Unlock()
			m.revocations.online(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// greetAll lets all others know that this node is there, and begins to wait for the next time.
func (m *mesh) greetAll() {
	m.hello("")
	m.self.New = m.pulse.lost
	if m.pulse.idle {
		m.pulse.wake()
	}
	named := map[string]int{"@" + m.self.Node: 1}
	for _, p := range m.peers {
		named[p.name]++
	}
	for _, p := range m.peers {
		if named[p.name] == 1 {
			continue
		}
		if name := m.twin(p); name != "" {
			m.once("more than one node of the mesh is called %s: calls for @%s may go to any of them; fbus mesh --name gives one another name", name, name)
		}
	}
	now := time.Now()
	m.early = now.Add(helloEvery * 80 / 100)
	m.due = now.Add(helloEvery*85/100 + rand.N(helloEvery*35/100))
}

// hello tells one mesh of this one, or all of them.
func (m *mesh) hello(id string) {
	if m.pulse.lost {
		return
	}
	m.self.Time = time.Now().UnixMilli()
	if id == "" {
		m.nc.Publish(m.prefix+"hello", m.encode(m.self))
		return
	}
	m.nc.PublishMsg(&nats.Msg{Subject: m.direct(id), Data: m.encode(m.self), Header: nats.Header{kind: {"hello"}}})
}

// heard notes that a mesh is there. With many nodes there are many hellos, and most have nothing new but
// the time: these are not decoded.
func (m *mesh) heard(data []byte) {
	words, at, _ := bytes.Cut(data, []byte(`,"time":`))
	p := m.greeted[string(words)]
	if p == nil {
		if p = m.meet(data); p == nil {
			return
		}
		delete(m.greeted, p.words)
		p.words = string(words)
		m.greeted[p.words] = p
	}
	p.heard, p.clock = time.Now(), 0
	if ms, _ := strconv.ParseInt(strings.TrimSuffix(string(at), "}"), 10, 64); ms > 0 {
		p.clock = time.UnixMilli(ms).Sub(p.heard)
	}
	if p.hello.New {
		m.hello(p.id)
	}
	if p.hello.Names != p.names && !p.fetching {
		p.fetch()
	}
}

// meet returns the peer that a hello is of, nil if it is of none.
func (m *mesh) meet(data []byte) *peer {
	var h hello
	switch {
	case json.Unmarshal(data, &h) != nil || h.ID == "" || !validName.MatchString(h.Node):
		return nil
	case h.ID == m.self.ID && h.Mesh == m.self.Mesh: // it has come back, late, from a server left meanwhile
		return nil
	case h.ID == m.self.ID:
		m.once("another mesh runs for this node: one of them has to be ended")
		return nil
	case h.Version != namesVersion:
		m.once("node %s has another version of fbus mesh", h.Node)
		if len(m.strangers) < maxPeers {
			m.strangers[h.ID] = stranger{h.Node, h.Version, time.Now()}
		}
		return nil
	}
	p := m.peers[h.ID]
	if p == nil {
		if len(m.peers) == maxPeers {
			m.once("there are more than %d other nodes", maxPeers)
			return nil
		}
		p = newPeer(m, &h)
		m.peers[h.ID] = p
		if !h.New {
			m.hello(h.ID) // so that it need not wait for the next one to know us
		}
	}
	p.hello = h
	return p
}

// drop forgets a peer. Its calls go on until their end.
func (m *mesh) drop(p *peer, why string) {
	m.note("node %s is not in the mesh any more: %s", p.name, why)
	delete(m.peers, p.id)
	delete(m.greeted, p.words)
	p.leave()
}

// validName matches the names of nodes. They are part of FBUS_CALLER at other nodes.
var validName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

// asName returns the name of a machine as one.
func asName(host string) string {
	name := strings.TrimLeft(regexp.MustCompile(`[^A-Za-z0-9_.-]+`).ReplaceAllString(host, "-"), ".-")
	return cmp.Or(name[:min(len(name), 64)], "node")
}

// machine names this machine and user: nodes with the same one can use their sockets.
func machine() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	ns, _ := os.Readlink("/proc/self/ns/mnt")
	return fmt.Sprint(strings.TrimSpace(string(boot)), " ", ns, " ", os.Getuid())
}
