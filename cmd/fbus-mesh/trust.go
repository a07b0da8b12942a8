package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats.go"
)

// revocations passes lists of revoked certificates between the own node and the other meshes: a node
// that cannot reach the network's first node gets them over NATS. The mesh believes nothing: it hands
// each list to its node, which checks the signature of the CA.
type revocations struct {
	mesh  *mesh
	first bool          // the own node makes the list
	every time.Duration // after which the list is to be signed again

	mu        sync.Mutex // protects the fields below
	own       stamp      // of the own node's list
	heard     stamp      // of the last list of another mesh that the own node has not refused
	lists     int        // of other meshes
	answering bool       // somebody has asked for a list
	again     *stamp     // and somebody else meanwhile, who has this one; nil: nobody
	said      string     // the last refusal, which is not repeated
}

// stamp distinguishes lists.
type stamp struct {
	Number int64 `json:"number"` // rises when something is revoked
	At     int64 `json:"at"`     // when it was signed, in Unix seconds
}

// newer reports whether a list has something that another has not, or was signed at least so many
// seconds later.
func (s stamp) newer(o stamp, seconds int64) bool {
	return s.Number > o.Number || s.Number == o.Number && s.At-o.At >= seconds
}

// stampOf returns the stamp of a list (PEM).
func stampOf(text []byte) (s stamp, ok bool) {
	block, _ := pem.Decode(text)
	if block == nil {
		return s, false
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil || list.Number == nil || !list.Number.IsInt64() {
		return s, false
	}
	return stamp{list.Number.Int64(), list.ThisUpdate.Unix()}, true
}

// notice is a message of fbus.NETWORK.trust: a list, or a question for one that is newer.
type notice struct {
	From string `json:"from"`
	List string `json:"list,omitempty"` // PEM
	stamp
}

const (
	// listEvery is how often the first node's list is signed again, and published.
	listEvery = 50 * time.Second
	// listAgain is how much younger a list has to be to be published without being asked for, if it
	// has nothing new. Otherwise each node's mesh would publish what all have.
	listAgain = 75
	// listSlack is the same for one that was asked for.
	listSlack = 10
	// listPause is the least time between two lists that were asked for.
	listPause = time.Second
)

// trust passes lists on until ctx ends.
func (m *mesh) trust(ctx context.Context, info *bus.NodeInfo) error {
	r := &revocations{mesh: m, first: info.Trust == nil, every: listEvery}
	if t := info.Trust; t != nil && t.MaxAge > 0 {
		r.every = min(r.every, time.Duration(t.MaxAge*float64(time.Second)/4))
	}
	inbox := make(chan *nats.Msg, 16) // more lists at once are dropped, and come again
	sub, err := m.nc.ChanSubscribe(m.prefix+"trust", inbox)
	if err != nil {
		return err
	}
	m.revocations = r
	go func() { // ends with ctx
		defer sub.Unsubscribe()
		for {
			select {
			case msg := <-inbox:
				var n notice
				switch {
				case json.Unmarshal(msg.Data, &n) != nil || n.From == m.self.ID:
				case n.List == "":
					r.asked(ctx, n.stamp)
				case !r.first:
					r.take(ctx, &n)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	go r.watch(ctx) // ends with ctx
	return nil
}

// watch publishes the own node's list when that has changed, and the first node's each time that it
// is signed again. It asks the others for a list if the own node's is old.
func (r *revocations) watch(ctx context.Context) {
	r.ask()
	for wait := time.Duration(0); ctx.Err() == nil; wait = r.every {
		text, list, err := r.get(ctx, wait)
		if err != nil {
			if e := args.AsError(err, args.CodeInternal); ctx.Err() == nil && e.Code != args.CodeBadInput { // it has a CA
				r.mesh.note("the list of revoked tickets is not passed on: %v", err)
			}
			return
		}
		r.mu.Lock()
		fresh := r.first || list.newer(r.heard, listAgain)
		r.mu.Unlock()
		if fresh && text != nil {
			r.send(text, list)
		}
		if age := time.Since(time.Unix(list.At, 0)); !r.first && age > r.every+r.every/5 {
			r.ask()
		}
	}
}

// get returns the own node's list: when it has changed, or after a time. It is nil if there is none.
func (r *revocations) get(ctx context.Context, wait time.Duration) ([]byte, stamp, error) {
	q := bus.TrustQuery{Kept: true, Wait: wait.Seconds()}
	if wait > 0 {
		r.mu.Lock()
		q.After = r.own.Number
		r.mu.Unlock()
	}
	doc, err := json.Marshal(q)
	if err != nil {
		return nil, stamp{}, err
	}
	text, err := output(ctx, r.mesh.node, "fbus.trust", args.JSON(doc))
	if err != nil {
		return nil, stamp{}, err
	}
	list, ok := stampOf(text)
	if !ok {
		return nil, stamp{}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own = list
	return text, list, nil
}

// send publishes a list.
func (r *revocations) send(text []byte, list stamp) {
	data := r.mesh.encode(notice{r.mesh.self.ID, string(text), list})
	if limit := r.mesh.nc.MaxPayload(); limit > 0 && int64(len(data)) > limit {
		r.say("the list of revoked tickets is not passed on: it has %d bytes, and the NATS server takes %d", len(data), limit)
		return
	}
	r.mesh.nc.Publish(r.mesh.prefix+"trust", data)
}

// ask asks the other meshes for a list that is newer than the own node's.
func (r *revocations) ask() {
	if r.first {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mesh.nc.Publish(r.mesh.prefix+"trust", r.mesh.encode(notice{From: r.mesh.self.ID, stamp: r.own}))
}

// asked publishes the own node's list if it is newer than that of a mesh that has asked, and nobody
// else does. The first node's is signed now.
func (r *revocations) asked(ctx context.Context, theirs stamp) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answering {
		if r.again == nil || r.again.newer(theirs, 0) {
			r.again = &theirs
		}
		return
	}
	r.answering = true
	lists, pause := r.lists, time.Duration(0)
	if !r.first {
		pause = listPause/10 + rand.N(listPause/2)
	}
	time.AfterFunc(pause, func() { // ends by itself
		text, list, err := r.get(ctx, 0)
		r.mu.Lock()
		fresh := r.first || list.newer(theirs, listSlack) && (r.lists == lists || list.newer(r.heard, listSlack))
		r.mu.Unlock()
		if fresh && err == nil && text != nil {
			r.send(text, list)
		}
		time.AfterFunc(listPause, func() { // ends by itself
			r.mu.Lock()
			again := r.again
			r.answering, r.again = false, nil
			r.mu.Unlock()
			if again != nil {
				r.asked(ctx, *again)
			}
		})
	})
}

// online is due when NATS is connected again: what has changed meanwhile has to be passed on.
func (r *revocations) online(ctx context.Context) {
	r.ask()
	r.asked(ctx, stamp{})
}

// take hands a list of another mesh to the own node.
func (r *revocations) take(ctx context.Context, n *notice) {
	list, ok := stampOf([]byte(n.List)) // of one that is damaged it is the node that says so
	r.mu.Lock()
	if ok && r.own.newer(list, listSlack) { // that node needs the own one's
		r.mu.Unlock()
		r.asked(ctx, list)
		return
	}
	known, before := list == r.own, r.heard
	r.lists++
	r.heard = list // now, as the node may answer with the list before this call has ended
	r.mu.Unlock()
	if known {
		return
	}
	doc, err := json.Marshal(bus.TrustQuery{List: n.List})
	if err == nil {
		_, err = output(ctx, r.mesh.node, "fbus.trust", args.JSON(doc))
	}
	if err != nil && ctx.Err() == nil {
		r.say("node %s has passed on a list of revoked tickets that is refused: %v", r.mesh.nameOf(n.From), err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.said = ""
	} else {
		r.heard = before
	}
}

// say notes what is wrong, once until something else is.
func (r *revocations) say(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	r.mu.Lock()
	again := text == r.said
	r.said = text
	r.mu.Unlock()
	if !again {
		r.mesh.note("%s", text)
	}
}

// nameOf returns what another node is called.
func (m *mesh) nameOf(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[id]; p != nil {
		return p.name
	}
	return args.Shown(id)
}
