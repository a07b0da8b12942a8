package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/bus/vectors"
	"fbus/bus/wire"
)

// relayHello is the HELLO of a client that wants to make calls for others.
func relayHello(rights ...string) *wire.HelloFrame {
	h := hello()
	h.Caps = [][]byte{[]byte(wire.CapRelay)}
	for _, r := range rights {
		h.Rights = append(h.Rights, []byte(r))
	}
	return h
}

// TestRelayIsNamed: the node names the capability relay to a client that has named it and has the right,
// and to no other.
func TestRelayIsNamed(t *testing.T) {
	g := newGuests(t)
	for name, c := range map[string]struct {
		rights []string // of its ticket; nil: it is on this machine
		hello  *wire.HelloFrame
		want   bool
	}{
		"own user":                 {nil, relayHello(), true},
		"own user, not named":      {nil, hello(), false},
		"own user, kept":           {nil, relayHello("call:a", "relay"), true},
		"own user, dropped":        {nil, relayHello("call:a", "admin"), false},
		"ticket":                   {[]string{"call:a", "relay"}, relayHello(), true},
		"ticket, not named":        {[]string{"call:a", "relay"}, hello(), false},
		"ticket, dropped":          {[]string{"call:a", "relay"}, relayHello("call:*"), false},
		"ticket of an admin":       {[]string{"call:a", "admin", "monitor"}, relayHello(), false},
		"ticket that wants it":     {[]string{"call:a"}, relayHello("call:a", "relay"), false},
		"ticket that wants a part": {[]string{"call:*", "relay"}, relayHello("call:a", "relay"), true},
	} {
		t.Run(name, func(t *testing.T) {
			p := rawUnix(t, nil, g.path)
			if c.rights != nil {
				ticket := g.ticket("t", c.rights...)
				defer g.a.Revoke(ticket.Serial)
				p = dialTLS(t, g.addr, ticket.ClientConfig(nil))
			}
			p.send(c.hello)
			if got := want[*wire.HelloFrame](p).Has(wire.CapRelay); got != c.want {
				t.Errorf("named: %v", got)
			}
		})
	}
}

// relay connects with a ticket that may make calls for others.
func (g *guests) relay(name string, rights ...string) *raw {
	g.t.Helper()
	return g.relays(g.ticket(name, append(rights, "relay")...))
}

// relays connects with such a ticket.
func (g *guests) relays(ticket *trust.Ticket) *raw {
	g.t.Helper()
	p := dialTLS(g.t, g.addr, ticket.ClientConfig(nil))
	p.send(relayHello())
	want[*wire.HelloFrame](p)
	return p
}

// as has a frame say for whom the call is.
func as(caller string, f *wire.CallFrame) *wire.CallFrame {
	f.Caller = []byte(caller)
	return f
}

// offerWho offers a function that answers what it is told about its call.
func (g *guests) offerWho() *bus.Client {
	c := dial(g.t, g.path)
	offerFunc(g.t, c, "who", 4, func(_ context.Context, inv *bus.Invocation) bus.Result {
		text := fmt.Sprintf("%s %s|%s %d %s", inv.Caller, inv.Call, inv.Job, inv.Attempt, inv.Origin)
		return bus.Result{Output: []byte(text)}
	})
	return c
}

// TestRelayLies: whatever a relay says about a caller, its own identity stands before it; and only a
// client that has the right, and has named the capability, can say anything.
func TestRelayLies(t *testing.T) {
	g := newGuests(t)
	g.offerWho()
	g.ticket("boss", "admin")
	claims := []struct{ claim, want string }{ // want: what follows "ticket:NAME"; "usage": it is refused
		{"", ""},
		{"alice", "/alice"},
		{"uid:0", "/uid:0"},
		{callerHere(), "/" + callerHere()},
		{"node", "/node"},
		{"ticket:boss", "/ticket:boss"},
		{"a/b", "/a/b"},
		{"/", "//"},
		{"../ticket:boss", "/../ticket:boss"},
		{"ticket:gw2/alice", "/ticket:gw2/alice"},
		{`"$(id)"\`, `/"$(id)"\`},
		{strings.Repeat("x", 128), "/" + strings.Repeat("x", 128)},
		{strings.Repeat("x", 129), "usage"},
		{strings.Repeat("x", 4096), "usage"},
		{"a b", "usage"},
		{" ", "usage"},
		{"alice\n", "usage"},
		{"alice\x00", "usage"},
		{"\x1b[2J", "usage"},
		{"\x7f", "usage"},
		{"jürgen", "usage"},
		{"\xff", "usage"},
		{"\u202ealice", "usage"},
	}
	for name, c := range map[string]struct {
		rights []string
		hello  *wire.HelloFrame
		relays bool
	}{
		"relay":            {[]string{"relay"}, relayHello(), true},
		"relay and admin":  {[]string{"relay", "admin", "monitor"}, relayHello(), true},
		"no capability":    {[]string{"relay"}, hello(), false},
		"no right":         {[]string{"admin", "monitor"}, relayHello(), false},
		"right given away": {[]string{"relay"}, relayHello("call:who"), false},
		"neither":          {nil, hello(), false},
	} {
		t.Run(name, func(t *testing.T) {
			ticket := g.ticket("gw", append(c.rights, "call:who")...)
			defer g.a.Revoke(ticket.Serial)
			p := dialTLS(t, g.addr, ticket.ClientConfig(nil))
			p.send(c.hello)
			node := string(want[*wire.HelloFrame](p).Connection)
			for i, claim := range claims {
				id := uint64(i + 1)
				f := as(claim.claim, callFrame(id, "who", ""))
				f.Call, f.Job, f.Attempt, f.Origin = []byte("far-1-1"), []byte("01J"), 7, []byte(`{"id":"01K","function":"f","status":3,"attempts":2,"more":"x"}`)
				got := p.says(f)
				want := fmt.Sprintf("ticket:gw %s-%d| 0 ", node, id)
				if c.relays {
					want = "ticket:gw" + claim.want + ` far-1-1|01J 7 {"id":"01K","function":"f","status":3,"attempts":2}`
				}
				if c.relays && claim.want == "usage" {
					if !strings.HasPrefix(got, "64 usage: caller must be at most 128 printable ASCII characters without spaces") {
						t.Errorf("%q: %q", claim.claim, got)
					}
				} else if got != want {
					t.Errorf("%q: %q, not %q", claim.claim, got, want)
				}
			}
			if !c.relays {
				return
			}
			for i, f := range []*wire.CallFrame{
				{Call: []byte("a b")},
				{Call: []byte("../etc/passwd")},
				{Call: []byte("-rf")},
				{Call: make([]byte, 129)},
				{Job: []byte("01J\n")},
				{Job: []byte("01J"), Origin: []byte(`{"id":"a\u0000b","function":"f"}`)},
				{Job: []byte("01J"), Origin: []byte(`{"id":`)},
				{Job: []byte("01J"), Origin: []byte(`{"id":"01K","function":"a/b"}`)},
			} {
				bad := as("alice", callFrame(uint64(1000+i), "who", ""))
				bad.Call, bad.Job, bad.Origin = f.Call, f.Job, f.Origin
				if got := p.says(bad); !strings.HasPrefix(got, "64 usage: ") {
					t.Errorf("%q %q %q: %q", f.Call, f.Job, f.Origin, got)
				}
			}
		})
	}
	p := g.relay("long", "call:who")
	p.write(vectors.Bytes(vectors.F(5, 1, "who", 0, vectors.NewBin(nil), vectors.NewBin(nil), 1, 0, 0, 0, 0, "", 0, 0, "", strings.Repeat("x", 1<<20-100))))
	if code := p.closed(); code != args.CodeProtocol {
		t.Errorf("a name of a megabyte: %q", code)
	}
}

// TestRelayedRights: a relay's caller may call what the relay may, and has none of its rights over the
// node. It is shown what a guest with its name would be.
func TestRelayedRights(t *testing.T) {
	g := newGuests(t)
	g.offerWho()
	for name, c := range map[string]struct {
		p   *raw
		via string
	}{
		"administrator": {g.relay("boss", "call:who", "admin", "monitor"), "ticket:boss"},
		"own user":      {g.here(), callerHere()},
	} {
		t.Run(name, func(t *testing.T) {
			id := uint64(0)
			says := func(caller, function string, words ...string) string {
				id++
				return c.p.says(as(caller, wordsFrame(id, function, words...)))
			}
			for _, function := range []string{
				"fbus.tickets", "fbus.invite", "fbus.revoke", "fbus.metrics", "fbus.log", "fbus.hold", "fbus.release", "fbus.renew", "fbus.join", "fbus.nosuch",
			} {
				denied := "77 denied: " + c.via + "/alice may not call " + function
				if got := says("alice", function); got != denied {
					t.Errorf("%s: %q", function, got)
				}
			}
			if got := says("", "fbus.metrics"); !strings.Contains(got, `"connections"`) {
				t.Errorf("the relay itself: %q", got)
			}
			if name == "administrator" { // with only one name to call
				if got := says("alice", "a"); got != "77 denied: ticket:boss/alice may not call a" {
					t.Error(got)
				}
				if got := says("alice", "fbus.functions"); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"name":"who"`) {
					t.Errorf("functions: %q", got)
				}
			}
			var i bus.NodeInfo
			if err := json.Unmarshal([]byte(says("alice", "fbus.nodes")), &i); err != nil {
				t.Fatal(err)
			}
			if i.Caller != c.via+"/alice" || i.Rights == nil || i.Rights.Admin || i.Rights.Monitor || i.Rights.Relay || i.PID != 0 {
				t.Errorf("%+v", i)
			}
			if got := says("alice", "who"); !strings.HasPrefix(got, c.via+"/alice ") {
				t.Errorf("who: %q", got)
			}
		})
	}
}

// here connects as a relay on this machine.
func (g *guests) here() *raw {
	p := rawUnix(g.t, nil, g.path)
	p.send(relayHello())
	want[*wire.HelloFrame](p)
	return p
}

// TestRelayedCallsAndJobs: a relay's callers see and end their own calls and jobs and nobody else's,
// whichever connection of the relay they come by; so does the relay itself.
func TestRelayedCallsAndJobs(t *testing.T) {
	g := newGuests(t)
	gw := g.ticket("gw", "call:*", "relay")
	p, again, other := g.relays(gw), g.relays(gw), g.relay("gw2", "call:*")
	p.send(as("alice", callFrame(1, "a", "")))
	call := want[*wire.CallFrame](g.root)
	if string(call.Caller) != "ticket:gw/alice" {
		t.Fatalf("%s", call.Caller)
	}
	job := p.says(as("alice", wordsFrame(2, "fbus.post", "nosuch", `{"batch":"b","unique":"k"}`)))
	job = strings.TrimSpace(job)
	id := uint64(10)
	for name, c := range map[string]struct {
		p      *raw
		caller string
		theirs bool
	}{
		"alice":              {p, "alice", true},
		"alice, once more":   {again, "alice", true},
		"bob":                {p, "bob", false},
		"no caller":          {p, "", false},
		"a caller as text":   {p, "ticket:gw/alice", false},
		"alice of the other": {other, "alice", false},
		"gw of the other":    {other, "ticket:gw/alice", false},
		"gw of this machine": {g.here(), "ticket:gw/alice", false},
	} {
		says := func(function string, words ...string) string {
			id++
			return c.p.says(as(c.caller, wordsFrame(id, function, words...)))
		}
		for _, function := range []string{"fbus.calls", "fbus.jobs"} {
			if got := says(function); (strings.Contains(got, `ticket:gw/alice"`) || strings.Contains(got, job)) != c.theirs {
				t.Errorf("%s: %s: %q", name, function, got)
			}
		}
		if c.theirs {
			continue
		}
		for _, words := range [][]string{
			{"fbus.cancel", string(call.Call)}, {"fbus.cancel", job}, {"fbus.result", job, `{"wait":false}`}, {"fbus.retry", `{"ids":["` + job + `"]}`},
			{"fbus.purge", `{"ids":["` + job + `"]}`}, {"fbus.jobs", `{"batch":"b"}`}, {"fbus.jobs", `{"batch":"ticket:gw/alice/b"}`},
			{"fbus.wait", `{"ids":["` + job + `"]}`},
		} {
			if got := says(words[0], words[1:]...); !strings.HasPrefix(got, "65 bad_input: ") {
				t.Errorf("%s: %s: %q", name, words, got)
			}
		}
		if got := says("fbus.post", "nosuch", `{"unique":"k"}`); strings.TrimSpace(got) == job {
			t.Errorf("%s: has alice's unique job", name)
		}
	}
	if got := again.says(as("alice", wordsFrame(100, "fbus.cancel", job))); !strings.Contains(got, `"poster":"ticket:gw/alice"`) {
		t.Errorf("its own job: %q", got)
	}
	if got := again.says(as("alice", wordsFrame(101, "fbus.cancel", string(call.Call)))); !strings.Contains(got, `"caller":"ticket:gw/alice"`) {
		t.Errorf("its own call: %q", got)
	}
	want[*wire.CancelFrame](g.root)
	if err := g.n.Audit(); err != nil {
		t.Error(err)
	}
}

// TestRelayedJob: a job of a relay's caller runs with the relay's rights, under the caller's name.
func TestRelayedJob(t *testing.T) {
	g := newGuests(t)
	g.offerWho()
	for name, p := range map[string]*raw{"ticket:gw": g.relay("gw", "call:who"), callerHere(): g.here()} {
		job := strings.TrimSpace(p.says(as("alice", wordsFrame(1, "fbus.post", "who"))))
		if got := p.says(as("alice", wordsFrame(2, "fbus.result", job))); !strings.HasPrefix(got, name+"/alice ") {
			t.Errorf("%s: %q", name, got)
		}
		if name == "ticket:gw" {
			if got := p.says(as("alice", wordsFrame(3, "fbus.post", "a"))); got != "77 denied: ticket:gw/alice may not call a" {
				t.Errorf("%q", got)
			}
		}
	}
}

// TestRelayedToken: the jobs of a token's bearer belong to that token. Nobody else has the name, and the
// bearer of another token of that name has others.
func TestRelayedToken(t *testing.T) {
	g := newGuests(t)
	root := &asker{raw: g.root}
	g.offerWho()
	for name, p := range map[string]*raw{"ticket:gw": g.relay("gw", "call:*"), callerHere(): g.here()} {
		t.Run(name, func(t *testing.T) { relayedToken(t, root, name, p) })
	}
}

func relayedToken(t *testing.T, root *asker, via string, p *raw) {
	id := uint64(0)
	saysAs := func(caller, function string, words ...string) string {
		id++
		return p.says(as(caller, wordsFrame(id, function, words...)))
	}
	says := func(function string, words ...string) string { return saysAs("token:ci", function, words...) }
	refused := func(want string) {
		t.Helper()
		for _, words := range [][]string{{"who"}, {"fbus.jobs"}, {"fbus.post", "nosuch"}} {
			if got := says(words[0], words[1:]...); !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s, not %s", words, got, want)
			}
		}
	}
	var all []string
	for range 2 { // with one, with another one
		root.token("ci")
		for _, job := range all {
			if got := says("fbus.jobs", `{"batch":"b"}`); strings.Contains(got, job) {
				t.Errorf("job %s is in its batch: %s", job, got)
			}
			if got := says("fbus.result", job, `{"wait":false}`); !strings.Contains(got, "no such job") {
				t.Error(got)
			}
		}
		job := strings.TrimSpace(says("fbus.post", "nosuch", `{"batch":"b","unique":"k"}`))
		var i bus.JobInfo
		line, _, _ := strings.Cut(says("fbus.jobs"), "\n")
		if err := json.Unmarshal([]byte(line), &i); err != nil || i.ID != job || i.Poster != via+"/token:ci" || !strings.HasPrefix(i.Owner, via) {
			t.Fatalf("%s: %v", line, err)
		}
		for doc, listed := range map[string]bool{`{"among":[["no*","x"],["*"]]}`: true, `{"among":[["no*"],["x"]]}`: false, `{"among":[[]]}`: false} {
			if got := says("fbus.jobs", doc); strings.Contains(got, job) != listed || !strings.Contains(got, `{"total":`) {
				t.Errorf("%s: %s", doc, got)
			}
		}
		if got := says("fbus.jobs", `{"among":[["[!"]]}`); !strings.HasPrefix(got, "64 ") {
			t.Error(got)
		}
		all = append(all, job)
		// The client by which the bearer calls is shown, and changes nothing else.
		if got := saysAs("token:ci/mcp:x", "who"); !strings.HasPrefix(got, via+"/token:ci/mcp:x ") {
			t.Errorf("%q", got)
		}
		byAgent := strings.TrimSpace(saysAs("token:ci/mcp:x", "fbus.post", "who"))
		if got := says("fbus.result", byAgent); !strings.HasPrefix(got, via+"/token:ci/mcp:x ") {
			t.Errorf("%q", got)
		}
		var own bus.JobInfo
		line, _, _ = strings.Cut(saysAs("token:ci/mcp:y", "fbus.jobs", `{"ids":["`+byAgent+`"]}`), "\n")
		if err := json.Unmarshal([]byte(line), &own); err != nil || own.Owner != i.Owner {
			t.Errorf("%+v: %v", own, err)
		}
		if got := saysAs("token:ci/mcp:y", "fbus.jobs", `{"batch":"b"}`); !strings.Contains(got, job) {
			t.Errorf("its batch: %q", got)
		}
		if got := saysAs("token:cix/mcp:y", "fbus.jobs"); !strings.HasPrefix(got, "77 unlisted: ") {
			t.Errorf("another name: %q", got)
		}
		// The owner of its jobs is nobody's name.
		for _, caller := range []string{i.Owner[strings.Index(i.Owner, "/")+1:], "token:ci@", "token:", "token:ci/x", "token:-x", "token:ci/../mcp:x", "token:ci/mcp:x/token:b", "token:ci/mcp", "token:/mcp:x", "token:ci/../x"} {
			if got := saysAs(caller, "fbus.jobs"); !strings.HasPrefix(got, "64 usage: caller: invalid name of a token") {
				t.Errorf("%s: %s", caller, got)
			}
		}
		root.asks("fbus.revoke", "ci")
		refused("77 revoked: token ci was revoked at ")
	}
	// What has not run of a token that was revoked does not run.
	for _, job := range all {
		eventually(t, "it is dead", func() bool {
			got := root.asks("fbus.jobs", `{"ids":["`+job+`"]}`)
			return strings.Contains(got, `"state":"dead"`) && strings.Contains(got, "token ci was revoked")
		})
	}
	if got := saysAs("token:nobody", "who"); got != "77 unlisted: there is no token nobody on the list of this network" {
		t.Error(got)
	}
}

// TestRelayedJobsEnd: jobs of a relay's callers do not run any more once the relay may not call.
func TestRelayedJobsEnd(t *testing.T) {
	g := newGuests(t)
	gw := g.ticket("gw", "call:who", "relay")
	p := g.relays(gw)
	worker := rawUnix(t, nil, g.path).greet()
	worker.offer("who", 2, 0)
	posted := map[string]string{}
	for i, caller := range []string{"alice", "bob"} {
		posted[caller] = strings.TrimSpace(p.says(as(caller, wordsFrame(uint64(i+1), "fbus.post", "who"))))
		want[*wire.CallFrame](worker)
	}
	may := func(who jobs.Poster) bool { return g.n.MayRun(&who, "who") == nil }
	theirs := jobs.Poster{Caller: "ticket:gw/alice", Serial: gw.Serial}
	if !may(theirs) || !may(jobs.Poster{Caller: callerHere() + "/alice"}) || may(jobs.Poster{Caller: "uid:54321/" + callerHere()}) {
		t.Error("as long as the relay may")
	}
	if _, _, err := g.a.Revoke("gw"); err != nil {
		t.Fatal(err)
	}
	if may(theirs) {
		t.Error("after the relay was revoked")
	}
	for range posted {
		worker.send(&wire.EndFrame{ID: want[*wire.CancelFrame](worker).ID})
	}
	root := &asker{raw: g.root}
	for caller, job := range posted {
		eventually(t, "it is dead", func() bool {
			got := root.asks("fbus.jobs", `{"ids":["`+job+`"]}`)
			return strings.Contains(got, `"state":"dead"`) && strings.Contains(got, `"message":"ticket:gw/`+caller+" may not call who: ticket gw was revoked")
		})
	}

	// A user who may call, but no longer for others.
	rights := trust.Rights{Call: []string{"*"}, Relay: true}
	n, _ := start(t, node.Config{Local: func(int, []int) (trust.Rights, bool) { return rights, true }})
	for _, relay := range []bool{true, false} {
		rights.Relay = relay
		for caller, want := range map[string]bool{"uid:54321": true, "uid:54321/alice": relay} {
			if err := n.MayRun(&jobs.Poster{Caller: caller}, "who"); (err == nil) != want {
				t.Errorf("relay %t: %s: %v", relay, caller, err)
			}
		}
	}
}

// TestRelayedIDs: the id that a relay gives is shown with the call, and the node's own ends it.
func TestRelayedIDs(t *testing.T) {
	g := newGuests(t)
	p := g.relay("gw", "call:a", "monitor")
	f := as("alice", callFrame(1, "a", ""))
	f.Call = []byte("far-1-1")
	p.send(f)
	at := want[*wire.CallFrame](g.root)
	var i bus.CallInfo
	if err := json.Unmarshal([]byte(p.says(as("alice", wordsFrame(2, "fbus.calls")))), &i); err != nil {
		t.Fatal(err)
	}
	if string(at.Call) != "far-1-1" || i.Relayed != "far-1-1" || i.Call == i.Relayed || i.Caller != "ticket:gw/alice" {
		t.Errorf("%s, %+v", at.Call, i)
	}
	if got := p.says(as("alice", wordsFrame(3, "fbus.cancel", "far-1-1"))); !strings.HasPrefix(got, "65 ") {
		t.Errorf("by the relay's id: %q", got)
	}
	g.root.send(exit(at.ID, 0))
	if end := want[*wire.EndFrame](p); string(end.Call) != "far-1-1" {
		t.Errorf("END has the id %s", end.Call)
	}
	var entry bus.LogEntry
	line, _, _ := strings.Cut(p.says(wordsFrame(4, "fbus.log", `{"event":"call"}`)), "\n")
	if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Relayed != "far-1-1" || entry.Call != i.Call || entry.Caller != i.Caller {
		t.Errorf("%s: %+v", line, entry)
	}
}

// TestRelayBounds: each caller of a relay has a guest's share, and all of them together no more than half
// of what guests have, however many names a relay invents.
func TestRelayBounds(t *testing.T) {
	g := newGuests(t)
	g.offerWho()
	p := g.here()
	ended := func() string { // how the next call has ended
		f := want[*wire.EndFrame](p)
		return string(f.Code) + ": " + string(f.Message)
	}
	p.send(callFrame(1, "a", "")) // takes the only slot
	want[*wire.CallFrame](g.root)
	id := uint64(1)
	call := func(caller, function string, wait uint64) {
		id++
		f := as(caller, callFrame(id, function, ""))
		f.WaitFunction = wait
		p.send(f)
	}
	const all, one = 1000 * 3 / 4 / 2, 1000 / 4 // of a queue of 1,000
	for range one {
		call("alice", "a", 0)
	}
	call("alice", "a", 0)
	if got := ended(); got != fmt.Sprintf("busy: a: the queue is full for %s/alice (limit 250 calls)", callerHere()) {
		t.Error(got)
	}
	for i := range all - one {
		call(fmt.Sprintf("x%d", i), "a", 0)
	}
	call("bob", "a", 0)
	if got := ended(); got != fmt.Sprintf("busy: a: the queue is full for all callers of %s (limit %d calls)", callerHere(), all) {
		t.Error(got)
	}
	if got := g.n.QueueLen("a"); got != all {
		t.Errorf("%d calls wait", got)
	}
	// Others have their part, and the relay itself.
	other := g.enter(g.ticket("other", "call:a"))
	for i := range uint64(100) {
		other.send(callFrame(i+1, "a", ""))
	}
	call("", "a", 0)
	eventually(t, "they wait", func() bool { return g.n.QueueLen("a") == all+101 })

	// Names are bounded too.
	for i := range 1000 - (all - one) - 1 { // alice has calls as well
		call(fmt.Sprintf("y%d", i), "nosuch", wire.Forever)
	}
	call("zoe", "who", 0)
	if got := ended(); got != fmt.Sprintf("busy: too many callers of %s at once (limit 1000)", callerHere()) {
		t.Error(got)
	}
	call("alice", "who", 0)
	if got := ended(); got != "exit: " {
		t.Error(got)
	}
	if err := g.n.Audit(); err != nil {
		t.Error(err)
	}
	p.nc.Close()
	eventually(t, "the relay's calls have ended", func() bool { return g.n.QueueLen("a") == 100 && g.n.QueueLen("nosuch") == 0 })
}

// TestRelayTurns: callers of a relay take turns with others as each other identity does, but together they
// have no more than every second turn.
func TestRelayTurns(t *testing.T) {
	g := newGuests(t)
	p, other := g.relay("gw", "call:a"), g.enter(g.ticket("other", "call:a"))
	other.send(callFrame(1, "a", ""))
	first := want[*wire.CallFrame](g.root)
	for i := range 6 {
		p.send(as(fmt.Sprint(i), callFrame(uint64(i+1), "a", "")))
	}
	eventually(t, "they wait", func() bool { return g.n.QueueLen("a") == 6 })
	for i := range 3 {
		other.send(callFrame(uint64(i+2), "a", ""))
	}
	eventually(t, "all wait", func() bool { return g.n.QueueLen("a") == 9 })
	var got []string
	for id := first.ID; len(got) < 9; {
		g.root.send(exit(id, 0))
		f := want[*wire.CallFrame](g.root)
		id = f.ID
		got = append(got, strings.TrimPrefix(string(f.Caller), "ticket:"))
	}
	if s := strings.Join(got, " "); s != "gw/0 other gw/1 other gw/2 other gw/3 gw/4 gw/5" {
		t.Error(s)
	}
}

// TestRelayOfClient: a client of package bus makes calls for others, and none if the node has not named
// that it may.
func TestRelayOfClient(t *testing.T) {
	g := newGuests(t)
	g.offerWho()
	request := bus.Request{Function: "who", Caller: "alice", CallID: "far-1-1", Job: "01J", Attempt: 2, Origin: `{"id":"01K","function":"f","status":0,"attempts":1}`}
	for name, c := range map[string]struct {
		o    bus.Options
		want string
	}{
		"relay":             {bus.Options{Relay: true}, callerHere() + "/alice far-1-1|01J 2 " + request.Origin},
		"eager":             {bus.Options{Relay: true, Eager: true}, callerHere() + "/alice far-1-1|01J 2 " + request.Origin},
		"not asked for":     {bus.Options{}, "denied"},
		"without the right": {bus.Options{Relay: true, Rights: []string{"call:*"}}, "denied"},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := bus.Dial(bg(), bus.Unix(g.path), &c.o)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			o := await(t, "the call", post(bg(), client, request))
			if c.want == "denied" {
				if !errors.Is(o.err, bus.ErrDenied) {
					t.Errorf("%q, %v", o.out, o.err)
				}
			} else if o.out != c.want || o.res.Call != "far-1-1" {
				t.Errorf("%q, %+v, %v", o.out, o.res, o.err)
			}
		})
	}
}
