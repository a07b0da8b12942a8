package main

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// question asks for slots, or offers some.
type question struct {
	From  string `json:"from"`
	Slots int    `json:"slots"`
	Again bool   `json:"again,omitempty"` // a request for slots before was in vain
}

// answer is the answer to a question. It is empty if there was none.
type answer struct {
	From  string `json:"from"`
	Slots int    `json:"slots"`
}

// message is from one mesh to another.
type message struct {
	From   string `json:"from"`
	Return string `json:"return,omitempty"` // the function whose slots are not used
	Turn   string `json:"turn,omitempty"`   // connect me to your node, by a call with this word
	Slots  int    `json:"slots,omitempty"`
}

// page is a part of the functions of a node.
type page struct {
	Names uint64  `json:"names"` // which list it is a part of
	List  []entry `json:"list"`
	Next  string  `json:"next,omitempty"` // the first name of the next page
}

// pending is a request without an answer.
type pending struct {
	back  func(data []byte, how timing)
	timer *time.Timer
	at    time.Time
	late  bool // it was given up
}

// timing is how an answer has come.
type timing int

const (
	inTime timing = iota
	silent        // it has not, so far
	late          // after that
)

// kind is the header that tells messages to one mesh apart.
const kind = "Fbus"

// tell sends a message to one mesh.
func (m *mesh) tell(id string, v *message) {
	v.From = m.self.ID
	m.nc.Publish(m.direct(id), m.encode(v))
}

// request asks a group, or one mesh, about slots. back is called as [mesh.ask] does.
func (m *mesh) request(subject string, q any, back func(a *answer, how timing)) {
	m.ask(subject, m.encode(q), func(data []byte, how timing) {
		a := &answer{}
		if json.Unmarshal(data, a) != nil || a.Slots < 0 {
			*a = answer{}
		}
		back(a, how)
	})
}

// ask sends a request. back is called later with mu held: with the answer, which is empty if nobody
// is there, or with nothing if none comes in time, and then perhaps again with a late one.
func (m *mesh) ask(subject string, data []byte, back func(data []byte, how timing)) {
	m.asked++
	token := strconv.FormatUint(m.asked, 36)
	wait := firstPatience
	if m.trip > 0 {
		wait = min(max(4*m.trip, leastPatience), mostPatience)
	}
	p := &pending{back: back, at: time.Now()}
	m.pending[token] = p
	if m.nc.PublishRequest(subject, m.replies+token, data) != nil { // there is no connection
		p.timer = time.AfterFunc(0, func() { m.answered(token, nil) }) // these end by themselves
	} else {
		p.timer = time.AfterFunc(wait, func() { m.unanswered(token) })
	}
}

// answered takes an answer, or that nobody is there.
func (m *mesh) answered(token string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pending[token]
	if p == nil || m.over {
		return
	}
	p.timer.Stop()
	delete(m.pending, token)
	switch took := time.Since(p.at); {
	case len(data) == 0: // it is the server that has answered, or it cannot be asked
	case m.trip == 0:
		m.trip = took
	default:
		m.trip += (min(took, 4*m.trip) - m.trip) / 4
	}
	how := inTime
	if p.late {
		how = late
	}
	p.back(data, how)
}

// unanswered gives up a request.
func (m *mesh) unanswered(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pending[token]
	if p == nil || m.over {
		return
	}
	if p.late {
		delete(m.pending, token)
		return
	}
	p.late = true
	p.timer.Reset(holdTime)
	if !m.probing && len(m.nc.Servers()) > 1 {
		m.probing = true
		go m.probe() // ends by itself
	}
	p.back(nil, silent)
}

// probe goes to another server if this one does not answer. That a connection is dead would be seen
// otherwise, but after seconds in which calls wait.
func (m *mesh) probe() {
	err := m.nc.FlushTimeout(probeTime)
	if err == nats.ErrTimeout {
		m.note("NATS: %s does not answer: looking for another server", m.nc.ConnectedUrlRedacted())
		m.nc.ForceReconnect()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.probing = false
}

// receive handles the messages of NATS.
func (m *mesh) receive(ctx context.Context) {
	for {
		select {
		case msg := <-m.inbox:
			if token, ok := strings.CutPrefix(msg.Subject, m.replies); ok {
				m.answered(token, append([]byte{}, msg.Data...)) // empty if there are no responders, not nil
				continue
			}
			m.mu.Lock()
			if !m.over && !m.draining {
				m.handle(msg)
			}
			m.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// handle handles a message that is no answer.
func (m *mesh) handle(msg *nats.Msg) {
	verb, rest, _ := strings.Cut(strings.TrimPrefix(msg.Subject, m.prefix), ".")
	switch verb {
	case "take", "free":
		var q question
		if json.Unmarshal(msg.Data, &q) == nil {
			m.question(msg, verb, strings.ReplaceAll(rest, "/", "."), &q)
		}
	case "hello":
		m.heard(msg.Data)
		// One node after the other would wake all the others each time. So they speak together.
		if time.Now().After(m.early) {
			m.greetAll()
		}
	case "node":
		if msg.Header.Get(kind) == "hello" {
			m.heard(msg.Data)
			return
		}
		var v message
		if json.Unmarshal(msg.Data, &v) != nil {
			return
		}
		if f := m.functions[v.Return]; f != nil && v.Slots > 0 {
			f.Returned(m.now(), v.From, v.Slots)
		}
		if p := m.peers[v.From]; p != nil && v.Turn != "" {
			go m.turn(p.hello, v.Turn) // ends with the connection
		}
	case "bye":
		var h hello
		if json.Unmarshal(msg.Data, &h) != nil {
			return
		}
		switch p := m.peers[h.ID]; {
		case p == nil:
		case h.Silent:
			p.lose()
		default:
			m.drop(p, "it has left")
		}
	case "names":
		msg.Respond(m.page(string(msg.Data)))
	}
}

// question answers a request about slots. Nothing is granted before the own node has shown that it
// answers.
func (m *mesh) question(msg *nats.Msg, verb, name string, q *question) {
	if q.Slots < 1 || q.From == m.self.ID {
		return
	}
	answers := func(alive bool) {
		n := 0
		if f := m.functions[name]; f != nil && alive {
			n = f.question(verb, q)
		}
		msg.Respond(m.encode(answer{m.self.ID, n}))
	}
	if verb == "take" {
		m.pulse.check(answers)
	} else {
		answers(!m.pulse.silent)
	}
}
