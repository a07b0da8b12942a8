package node_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// These tests hold what a ticket allows against a peer that keeps to nothing: its frames
// are its own, over crypto/tls, with nothing of the client between.

// guests is a node with its own authority, that root has functions on.
type guests struct {
	t    *testing.T
	n    *node.Node
	a    *trust.Authority
	addr string
	path string
	dir  string // of the authority
	root *raw   // offers a and b, one slot each
	log  *calllog.Log
}

func newGuests(t *testing.T) *guests {
	noLeaks(t)
	dir := filepath.Join(t.TempDir(), "net")
	a, err := trust.Open(trust.Options{Dir: dir, Network: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	j, err := calllog.Open(calllog.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	m, err := jobs.Open(jobs.Config{Dir: t.TempDir(), Warn: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	n, path := start(t, node.Config{Gate: a, Authority: a, Log: j, Jobs: m})
	g := &guests{t: t, n: n, a: a, addr: listenTCP(t, n), path: path, dir: dir, log: j, root: rawUnix(t, n, path).greet()}
	g.root.offer("a", 1, 0)
	g.root.offer("b", 1, 0)
	return g
}

// ticket issues a reusable ticket: "call:a", "offer:r*", "admin".
func (g *guests) ticket(name string, rights ...string) *trust.Ticket {
	g.t.Helper()
	r, err := trust.ParseRights(rights...)
	if err != nil {
		g.t.Fatal(err)
	}
	ticket, err := g.a.Issue(trust.LocalUser, trust.Request{Name: name, Rights: r, Reusable: true, Addresses: []string{g.addr}})
	if err != nil {
		g.t.Fatal(err)
	}
	return ticket
}

// enter connects with a ticket.
func (g *guests) enter(ticket *trust.Ticket) *raw {
	g.t.Helper()
	return dialTLS(g.t, g.addr, ticket.ClientConfig(nil)).greet()
}

func (g *guests) guest(rights ...string) *raw {
	g.t.Helper()
	return g.enter(g.ticket("guest", rights...))
}

// says is what comes of a call: its END, with its output, in words.
func (p *raw) says(f *wire.CallFrame) string {
	p.t.Helper()
	p.send(f)
	var out bytes.Buffer
	for {
		next, err := p.next()
		if err != nil {
			p.t.Fatal(err)
		}
		switch next := next.(type) {
		case *wire.DataFrame:
			out.Write(next.Payload)
		case *wire.EndFrame:
			if next.ID != f.ID {
				p.t.Fatalf("END of %d, not of %d", next.ID, f.ID)
			}
			out.Write(next.Output)
			if next.Code = bytes.TrimPrefix(next.Code, []byte("exit")); len(next.Code) == 0 {
				return out.String()
			}
			return fmt.Sprintf("%d %s: %s", next.Status, next.Code, next.Message)
		case *wire.ErrorFrame:
			p.t.Fatalf("the node says %s: %s", next.Code, next.Message)
		}
	}
}

// wordsFrame is a call with strings as arguments.
func wordsFrame(id uint64, name string, words ...string) *wire.CallFrame {
	f := callFrame(id, name, "")
	if len(words) > 0 {
		f.Kind, f.Args = args.KindList, []byte{0x90 + byte(len(words))} // fixarray
		for _, w := range words {
			f.Args = append(binary.BigEndian.AppendUint32(append(f.Args, 0xdb), uint32(len(w))), w...) // str 32
		}
	}
	return f
}

func documentFrame(id uint64, name, document string) *wire.CallFrame {
	f := callFrame(id, name, "")
	f.Kind, f.Args = args.KindJSON, []byte(document)
	return f
}

// TestGuestCalls: who may call a calls nothing else, and can not tell what is there from
// what is not, however the call is put.
func TestGuestCalls(t *testing.T) {
	g := newGuests(t)
	p := g.guest("call:a")
	id := uint64(0)
	for what, change := range map[string]func(f *wire.CallFrame){
		"plain":       func(f *wire.CallFrame) {},
		"on a worker": func(f *wire.CallFrame) { f.On = []byte("raw") },
		"on none":     func(f *wire.CallFrame) { f.On = []byte("nosuch*") },
		"on no glob":  func(f *wire.CallFrame) { f.On = []byte("[") },
		"waiting":     func(f *wire.CallFrame) { f.WaitFunction = wire.Forever },
		"not waiting": func(f *wire.CallFrame) { f.WaitSlot = 0 },
		"with input":  func(f *wire.CallFrame) { f.Flags = 0; f.Input = make([]byte, 32<<10) },
		"retried":     func(f *wire.CallFrame) { f.Retries, f.Timeout = 1<<40, 1 },
		"no kind":     func(f *wire.CallFrame) { f.Kind, f.Args = args.KindMap, []byte("\xc1") },
		"as root":     func(f *wire.CallFrame) { f.Caller, f.Call = []byte("uid:0"), []byte("x-1-1") },
		"as a job":    func(f *wire.CallFrame) { f.Job, f.Attempt, f.Origin = []byte("01J"), 1, []byte(`{}`) },
	} {
		for _, name := range []string{
			"b", "nosuch", "A", "aa", "a.", "fbus", "fbus.invite", "fbus.tickets", "fbus.revoke", "fbus.log", "fbus.join", "fbus.nosuch", "fbus.",
		} {
			id++
			f := callFrame(id, name, "")
			change(f)
			if got, want := p.says(f), "77 denied: ticket:guest may not call "+name; got != want {
				t.Errorf("%s, %s: %s", name, what, got)
			}
			p.send(&wire.DataFrame{ID: id, Payload: []byte("late")}, &wire.GrantFrame{ID: id, Stream: wire.Output, Bytes: 1}, &wire.CancelFrame{ID: id})
		}
	}
	for _, name := range []string{"", "a b", "b\x00", "../b", "%62", "a/b", "\xff", "fbus./invite", "fbus.invite ", " fbus.invite", strings.Repeat("b", 129)} {
		id++
		if got := p.says(callFrame(id, name, "")); !strings.HasPrefix(got, "64 usage: ") {
			t.Errorf("%q: %s", name, got)
		}
	}
	// What it may call is found as ever.
	go func() {
		f := want[*wire.CallFrame](g.root)
		g.root.send(&wire.EndFrame{ID: f.ID, Code: []byte("exit"), Output: []byte("of " + string(f.Name) + " for " + string(f.Caller))})
	}()
	if got := p.says(callFrame(id+1, "a", "")); got != "of a for ticket:guest" {
		t.Error(got)
	}
}

// TestGuestOffers: an offer that is not allowed does not stand, takes nobody's place and
// withdraws nothing; no name of the node's own is anybody's.
func TestGuestOffers(t *testing.T) {
	g := newGuests(t)
	g.root.offer("ra", 1, 0)
	p := g.guest("call:*", "offer:r*", "admin")
	seq := uint64(0)
	offer := func(name string, slots uint64) string {
		t.Helper()
		seq++
		p.send(&wire.OfferFrame{Seq: seq, Name: []byte(name), Slots: slots})
		a := want[*wire.OfferedFrame](p)
		if a.Seq != seq {
			t.Fatalf("answer to %d, not to %d", a.Seq, seq)
		}
		return string(a.Code)
	}
	for _, name := range []string{
		"a", "b", "R", "xr", "fbus", "fbusr", "fbus.r", "fbus.functions", "fbus.invite", "fbus.join", "fbus.", "fbus.nosuch",
	} {
		if code := offer(name, 100); code != args.CodeDenied {
			t.Errorf("%s: %q", name, code)
		}
		offer(name, 0) // withdraws what is its own, which is nothing
	}
	for _, name := range []string{"", "r b", "r\x00", "r/b", "%72", "\xff", "fbus./r", " r", "r ", strings.Repeat("r", 129)} {
		if code := offer(name, 1); code != args.CodeUsage {
			t.Errorf("%q: %q", name, code)
		}
	}
	for _, name := range []string{"r", "ra", "r.fbus.x", "resize-2"} {
		if code := offer(name, 1); code != "" {
			t.Errorf("%s: %q", name, code)
		}
	}
	offer("ra", 0)
	workers := map[string]string{}
	for _, f := range g.n.Functions() {
		for _, w := range f.Workers {
			workers[f.Name] += fmt.Sprintf("%s:%d ", w.Identity, w.Slots)
		}
	}
	root := fmt.Sprintf("%s:1 ", callerHere())
	for name, want := range map[string]string{"a": root, "b": root, "ra": root, "r": "ticket:guest:1 "} {
		if workers[name] != want {
			t.Errorf("%s is offered by %q, not by %q", name, workers[name], want)
		}
	}
	for _, f := range g.n.Functions("fbus.invite", "fbus.nosuch", "fbus.r") {
		if f.Name != "fbus.invite" || len(f.Workers) != 1 || f.Workers[0].Identity != "node" {
			t.Errorf("%+v", f)
		}
	}
	// A call of root's function comes to root.
	p.send(callFrame(1, "b", "from a guest"))
	if f := want[*wire.CallFrame](g.root); string(f.Input) != "from a guest" {
		t.Errorf("%+v", f)
	}
}

// callerHere is who the test is on the node's socket.
func callerHere() string { return fmt.Sprintf("uid:%d", os.Getuid()) }

// TestGuestSees: a guest is shown what it may call and its own calls, and what it asks
// for by name as if the rest were not there.
func TestGuestSees(t *testing.T) {
	g := newGuests(t)
	p, other := g.guest("call:a"), g.enter(g.ticket("other", "call:b"))
	other.send(callFrame(1, "b", "secret"))
	call := want[*wire.CallFrame](g.root)
	for i, words := range [][]string{nil, {"a"}} {
		var names []string
		for line := range strings.Lines(p.says(wordsFrame(uint64(i+1), "fbus.functions", words...))) {
			var f bus.FunctionInfo
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			names = append(names, f.Name)
		}
		if got := strings.Join(names, " "); got != "a" {
			t.Errorf("%q: it sees %s", words, got)
		}
	}
	for i, name := range []string{"b", "nosuch", "fbus.invite", "fbus.nosuch", "b\x00", ""} {
		got := p.says(wordsFrame(uint64(i+3), "fbus.functions", "a", name))
		if want := "77 denied: ticket:guest may not call " + strings.ReplaceAll(name, "\x00", "?"); got != want {
			t.Errorf("fbus.functions %q: %s", name, got)
		}
	}
	alike := func(id uint64, function, there, absent string) {
		t.Helper()
		got, want := p.says(wordsFrame(id, function, there)), p.says(wordsFrame(id+1, function, absent))
		if strings.ReplaceAll(got, there, "X") != strings.ReplaceAll(want, absent, "X") {
			t.Errorf("%s of what is there: %q, of what is not: %q", function, got, want)
		}
	}
	alike(20, "fbus.cancel", string(call.Call), "x7k2q-4-1")
	if got := p.says(wordsFrame(30, "fbus.calls")); got != "" {
		t.Errorf("it sees calls: %s", got)
	}
	var info bus.NodeInfo
	if err := json.Unmarshal([]byte(p.says(wordsFrame(31, "fbus.nodes"))), &info); err != nil {
		t.Fatal(err)
	}
	if info.Calls != 0 || info.Functions != 1 || info.Sessions != 1 || info.PID != 0 || info.Address != "" || len(info.Listens) != 0 {
		t.Errorf("it sees of the node %+v", info)
	}
	// The other's call is as it was.
	g.root.send(&wire.EndFrame{ID: call.ID, Code: []byte("exit"), Output: []byte("result")})
	if e := want[*wire.EndFrame](other); string(e.Output) != "result" {
		t.Errorf("%+v", e)
	}
}

// TestOwnAreOnThePage: PROTOCOL.md, section 9, has each of the node's own functions.
func TestOwnAreOnThePage(t *testing.T) {
	page, err := os.ReadFile("../PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	own := newGuests(t).n.Own()
	if len(own) < 15 {
		t.Errorf("only %q", own)
	}
	for _, name := range own {
		if !strings.Contains(string(page), "\n| "+name+" | ") {
			t.Errorf("%s is not there", name)
		}
	}
}

// TestAdminSees: who administers the node is shown every function, and may call none for that.
func TestAdminSees(t *testing.T) {
	g := newGuests(t)
	p := g.guest("admin")
	for i, words := range [][]string{nil, {"a", "b"}} {
		got := p.says(wordsFrame(uint64(i+1), "fbus.functions", words...))
		if !strings.Contains(got, `{"name":"a"`) || !strings.Contains(got, `{"name":"b"`) {
			t.Errorf("%q: it sees %s", words, got)
		}
	}
	var info bus.NodeInfo
	if err := json.Unmarshal([]byte(p.says(wordsFrame(3, "fbus.nodes"))), &info); err != nil || info.Functions != 2 {
		t.Errorf("it sees of the node %+v, %v", info, err)
	}
	for i, name := range []string{"a", "nosuch"} {
		if got, want := p.says(wordsFrame(uint64(i+4), name)), "77 denied: ticket:guest may not call "+name; got != want {
			t.Errorf("it calls %s: %s", name, got)
		}
	}
}

// TestGuestJobs: a guest posts what it may call and nothing else, and to it there are no
// jobs but its own.
func TestGuestJobs(t *testing.T) {
	g := newGuests(t)
	p, other := g.guest("call:a"), g.enter(g.ticket("other", "call:*"))
	job := strings.TrimSpace(other.says(wordsFrame(1, "fbus.post", "b", `{"delay":1000}`)))
	own := strings.TrimSpace(p.says(wordsFrame(1, "fbus.post", "a", `{"delay":1000}`)))
	if len(job) != 26 || len(own) != 26 {
		t.Fatal(job, own)
	}
	id := uint64(1)
	for _, words := range [][]string{
		{"b"}, {"nosuch"}, {"a", `{"then":"b"}`}, {"a", `{"else":"nosuch"}`}, {"a", `{"finally":"b"}`}, {"b", `{"on":"raw"}`}, {"b", `{"unique":"k"}`},
	} {
		id++
		if got := p.says(wordsFrame(id, "fbus.post", words...)); !strings.HasPrefix(got, "77 denied: ticket:guest may not call ") {
			t.Errorf("post %q: %s", words, got)
		}
	}
	for _, name := range []string{"fbus.invite", "fbus.functions", "fbus.cancel"} {
		id++
		if got := p.says(wordsFrame(id, "fbus.post", name)); !strings.HasPrefix(got, "64 usage: ") {
			t.Errorf("post %s: %s", name, got)
		}
	}
	const absent = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	for function, f := range map[string]func(id uint64, job string) *wire.CallFrame{
		"fbus.result": func(id uint64, job string) *wire.CallFrame {
			return wordsFrame(id, "fbus.result", job, `{"wait":false}`)
		},
		"fbus.cancel": func(id uint64, job string) *wire.CallFrame { return wordsFrame(id, "fbus.cancel", job) },
		"fbus.jobs": func(id uint64, job string) *wire.CallFrame {
			return documentFrame(id, "fbus.jobs", `{"ids":["`+job+`"]}`)
		},
		"fbus.retry": func(id uint64, job string) *wire.CallFrame {
			return documentFrame(id, "fbus.retry", `{"ids":["`+job+`"]}`)
		},
		"fbus.purge": func(id uint64, job string) *wire.CallFrame {
			return documentFrame(id, "fbus.purge", `{"ids":["`+job+`"]}`)
		},
	} {
		id += 2
		theirs, none := p.says(f(id-1, job)), p.says(f(id, absent))
		if strings.ReplaceAll(theirs, job, absent) != none {
			t.Errorf("%s of another's job: %q, of none: %q", function, theirs, none)
		}
	}
	list := p.says(documentFrame(id+1, "fbus.jobs", `{}`))
	if !strings.Contains(list, own) || strings.Contains(list, job) || !strings.Contains(list, `{"total":1}`) {
		t.Errorf("its jobs are %s", list)
	}
	if list := other.says(documentFrame(2, "fbus.jobs", `{"ids":["`+job+`"]}`)); !strings.Contains(list, `"delayed"`) {
		t.Errorf("the other's job is %s", list)
	}
}

// TestGuestIsWhoItIs: what a peer says of itself changes nothing of who it is.
func TestGuestIsWhoItIs(t *testing.T) {
	g := newGuests(t)
	ticket := g.ticket("guest", "call:a", "offer:mine")
	p := dialTLS(t, g.addr, ticket.ClientConfig(nil))
	p.send(&wire.HelloFrame{Major: wire.Major, Name: []byte("uid:0"), Instance: []byte("uid:0 "), Network: []byte("test"), Connection: []byte("x-1")})
	greeting := want[*wire.HelloFrame](p)
	f := callFrame(1, "a", "")
	f.Caller, f.Call, f.Job, f.Attempt, f.Origin = []byte("uid:0"), []byte("x-1-1"), []byte("01ARZ3NDEKTSV4RRFFQ69G5FAV"), 7, []byte(`{"id":"x"}`)
	p.send(f)
	call := want[*wire.CallFrame](g.root)
	if string(call.Caller) != "ticket:guest" || string(call.Call) != string(greeting.Connection)+"-1" || len(call.Job) > 0 || call.Attempt != 0 || len(call.Origin) > 0 {
		t.Errorf("the worker is told %+v", call)
	}
	// Nor is what it says of a call of its function taken for the node's word.
	p.offer("mine", 1, 0)
	g.root.send(callFrame(1, "mine", ""))
	call = want[*wire.CallFrame](p)
	p.send(&wire.EndFrame{ID: call.ID, Code: []byte("exit"), Call: []byte("x-1-1"), Worker: []byte("root's")})
	if e := want[*wire.EndFrame](g.root); string(e.Call) == "x-1-1" || string(e.Worker) != "uid:0" {
		t.Errorf("the caller is told %+v", e)
	}
	entries, _, err := g.log.Read(context.Background(), calllog.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Function == "mine" && e.Caller != callerHere() {
			t.Errorf("%+v", e)
		}
	}
}

// TestGuestInstance: another identity's instance id does not end its connection.
func TestGuestInstance(t *testing.T) {
	g := newGuests(t)
	greet := func(ticket *trust.Ticket) *raw {
		p := dialTLS(t, g.addr, ticket.ClientConfig(nil))
		p.send(&wire.HelloFrame{Major: wire.Major, Name: []byte("w"), Instance: []byte("same")})
		want[*wire.HelloFrame](p)
		return p
	}
	gpu := g.ticket("gpu", "offer:r*")
	worker := greet(gpu)
	worker.offer("r", 1, 0)
	greet(g.ticket("guest", "call:*", "offer:*", "admin"))
	worker.offer("r2", 1, 0) // it is still there
	again := greet(gpu)
	if code := worker.closed(); code != args.CodeSuperseded {
		t.Errorf("closed with %q", code)
	}
	again.offer("r", 1, 0)
}

// TestInvitationIsNobody: who holds an invitation, be it used, is not who has got its name:
// it ends no connection of that one, and takes none of its room.
func TestInvitationIsNobody(t *testing.T) {
	noLeaks(t)
	a, err := trust.Open(trust.Options{Dir: filepath.Join(t.TempDir(), "net"), Network: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	n, _ := start(t, node.Config{Gate: a, Authority: a, MaxPerTicket: 1})
	addr := listenTCP(t, n)
	invitation, err := a.Issue(trust.LocalUser, trust.Request{Name: "gpu", Rights: trust.Rights{Offer: []string{"r"}}, Addresses: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	j, err := trust.OpenJoined(filepath.Join(t.TempDir(), "joined"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	request, err := j.Begin(invitation)
	if err != nil {
		t.Fatal(err)
	}
	thief := dialTLS(t, addr, invitation.ClientConfig(nil))
	thief.send(&wire.HelloFrame{Major: wire.Major, Instance: []byte("same")})
	want[*wire.HelloFrame](thief)
	for i, name := range []string{"r", "nosuch", "fbus.functions", "fbus.renew", "fbus.invite"} {
		if got, want := thief.says(callFrame(uint64(i+1), name, "")), "77 denied: invitation:gpu may not call "+name; got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
	thief.send(&wire.OfferFrame{Seq: 1, Name: []byte("r"), Slots: 1})
	if a := want[*wire.OfferedFrame](thief); string(a.Code) != args.CodeDenied {
		t.Errorf("%+v", a)
	}
	cert := thief.says(wordsFrame(10, "fbus.join", string(request)))
	own, err := j.Finish(invitation, []byte(cert))
	if err != nil {
		t.Fatal(err)
	}
	worker := dialTLS(t, addr, own.ClientConfig(nil))
	worker.send(&wire.HelloFrame{Major: wire.Major, Instance: []byte("same")})
	want[*wire.HelloFrame](worker)
	worker.offer("r", 1, 0)
	if got := thief.says(callFrame(11, "r", "")); !strings.HasPrefix(got, "77 ") { // it is still there
		t.Error(got)
	}
}

// TestGuestForeignIDs: frames about calls that are not of this connection reach none: they
// end the connection, or are dropped.
func TestGuestForeignIDs(t *testing.T) {
	g := newGuests(t)
	ticket := g.ticket("guest", "call:a", "offer:mine")
	g.root.send(callFrame(1, "b", "")) // root calls itself
	call := want[*wire.CallFrame](g.root)
	for what, f := range map[string]wire.Frame{
		"input":   &wire.DataFrame{ID: 1, Payload: []byte("x")},
		"output":  &wire.DataFrame{ID: call.ID, Stream: wire.Output, Payload: []byte("x")},
		"EOF":     &wire.EOFFrame{ID: 1},
		"cancel":  &wire.CancelFrame{ID: 1},
		"end":     &wire.EndFrame{ID: call.ID, Code: []byte("exit"), Output: []byte("forged")},
		"credit":  &wire.GrantFrame{ID: call.ID, Stream: wire.Input, Bytes: 1},
		"OFFERED": &wire.OfferedFrame{Seq: 1},
	} {
		p := g.enter(ticket)
		p.send(f)
		if code := p.closed(); code != args.CodeProtocol {
			t.Errorf("%s: closed with %q", what, code)
		}
	}
	g.root.send(&wire.EndFrame{ID: call.ID, Code: []byte("exit"), Output: []byte("root's")})
	if e := want[*wire.EndFrame](g.root); string(e.Output) != "root's" || e.Status != 0 {
		t.Errorf("%+v", e)
	}
}

// TestGoneGuestGetsNothing: a call of one of the node's own functions that is served when
// its caller has gone is not taken for one of the node's own user.
func TestGoneGuestGetsNothing(t *testing.T) {
	g := newGuests(t)
	res := g.n.ServeGone(&bus.Invocation{Function: "fbus.invite", Kind: args.KindJSON, Args: []byte(`{"call":["*"],"reusable":true}`)})
	if list, err := g.a.Tickets(); res.Code != args.CodeCancelled || err != nil || len(list) != 0 {
		t.Errorf("%+v, %v, %v", res, list, err)
	}
}

// TestGuestIsLogged: whatever was refused is in the log, with who, from where and for what.
func TestGuestIsLogged(t *testing.T) {
	g := newGuests(t)
	p := g.guest("call:a")
	p.says(callFrame(1, "b", ""))
	p.says(callFrame(2, "fbus.tickets", ""))
	p.send(&wire.OfferFrame{Seq: 1, Name: []byte("o"), Slots: 1})
	want[*wire.OfferedFrame](p)
	p.says(wordsFrame(3, "fbus.post", "c"))
	var got []string
	entries, _, err := g.log.Read(context.Background(), calllog.Query{Event: calllog.EventRefused})
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Function)
		if e.Caller != "ticket:guest" || !strings.HasPrefix(e.From, "127.0.0.1:") || e.Code != args.CodeDenied || e.Serial == "" || e.Time.IsZero() {
			t.Errorf("%+v", e)
		}
	}
	if s := strings.Join(got, " "); s != "b fbus.tickets o c" {
		t.Errorf("logged: %s", s)
	}
}

// TestLoweredRightsBindChanges: a connection that has lowered its rights changes nothing of functions
// that it may not call, also of what is its own. fbus.nodes shows what it may.
func TestLoweredRightsBindChanges(t *testing.T) {
	g := newGuests(t)
	owner := &asker{raw: g.root}
	lower := func(rights ...string) *asker {
		p := rawUnix(t, nil, g.path)
		h := hello()
		h.Rights = [][]byte{}
		for _, r := range rights {
			h.Rights = append(h.Rights, []byte(r))
		}
		p.write(encode(h))
		want[*wire.HelloFrame](p)
		return &asker{raw: p}
	}
	post := func() string {
		return strings.TrimSpace(owner.asks("fbus.post", "nosuch", `{"batch":"b","delay":1000}`))
	}
	job := post()
	ids := func(job string) string { return `{"ids":["` + job + `"]}` }
	tries := map[string][][]string{
		"fbus.cancel": {{job}}, "fbus.post": {{"nosuch"}}, "fbus.batch": {{`{"batch":"b","then":"nosuch"}`}}, "fbus.retry": {{ids(job)}}, "fbus.purge": {{ids(job)}},
		"fbus.hold": {{`{"functions":["nosuch"]}`}}, "fbus.release": {{`{"functions":["nosuch"]}`}}, "fbus.invite": {{`{"call":["a"]}`}}, "fbus.revoke": {{"x"}}, "fbus.join": {{}},
		"fbus.renew": nil, // a certificate for the same rights, for the one that has its key
	}
	for _, rights := range [][]string{{"monitor"}, {"relay"}, {"call:other"}, {}} {
		p := lower(rights...)
		for _, function := range node.OwnChanges() {
			if _, ok := tries[function]; !ok {
				t.Errorf("%s is not tried", function)
			}
			for _, words := range tries[function] {
				if got := p.asks(function, words...); !strings.HasPrefix(got, "77 denied: ") {
					t.Errorf("%s: %s: %s", rights, function, got)
				}
			}
		}
		for function, document := range map[string]string{"fbus.cancel": `{"batch":"b"}`, "fbus.retry": `{"batch":"b"}`, "fbus.purge": `{"state":"delayed"}`} {
			p.id++
			p.says(documentFrame(p.id, function, document))
		}
	}
	if got := owner.asks("fbus.jobs", ids(job)); !strings.Contains(got, `"state":"delayed"`) {
		t.Errorf("the job: %s", got)
	}
	for _, rights := range []string{"call:nosuch", "call:no*", "admin"} {
		p, job := lower(rights), post()
		for _, words := range [][]string{{"fbus.cancel", job}, {"fbus.retry", ids(job)}, {"fbus.cancel", job}, {"fbus.purge", ids(job)}} {
			if got := p.asks(words[0], words[1:]...); strings.HasPrefix(got, "77 ") || strings.HasPrefix(got, "65 ") {
				t.Errorf("%s: %s: %s", rights, words, got)
			}
		}
	}
	h := relayHello("call:w*", "call:b", "admin", "relay")
	p := dialTLS(t, g.addr, g.ticket("some", "call:who", "call:b*", "monitor").ClientConfig(nil))
	p.send(h)
	want[*wire.HelloFrame](p)
	if got := p.says(callFrame(1, "fbus.nodes", "")); !strings.Contains(got, `"rights":["call:b","call:who","monitor"]`) {
		t.Error(got)
	}
}

// TestMonitor: one that may monitor sees what others do, but nothing that they send, and changes
// nothing. So does the node's own user on a connection that wants no more.
func TestMonitor(t *testing.T) {
	g := newGuests(t)
	owner := dial(t, g.path)
	hold := newGate()
	offerFunc(t, owner, "hold", 4, hold.handle)
	job := word(t, owner, "fbus.post", "hold", `{"batch":"b","item":"secret","unique":"secret key"}`)
	await(t, "the job runs", hold.started)
	call := post(bg(), owner, bus.Request{Function: "hold"})
	await(t, "the call runs", hold.started)

	lowered := rawUnix(t, nil, g.path)
	hello := hello()
	hello.Rights = [][]byte{[]byte("monitor"), []byte("call:a")}
	lowered.write(encode(hello))
	want[*wire.HelloFrame](lowered)
	for name, p := range map[string]*raw{"ticket": g.guest("monitor", "call:a"), "lowered": lowered} {
		id := uint64(0)
		says := func(function string, words ...string) string {
			id++
			return p.says(wordsFrame(id, function, words...))
		}
		for function, part := range map[string]string{
			"fbus.functions": `"name":"hold"`, "fbus.calls": `"function":"hold"`, "fbus.jobs": job, "fbus.metrics": `"connections"`, "fbus.log": `"next"`,
		} {
			if got := says(function); !strings.Contains(got, part) || strings.Contains(got, "secret") && name == "ticket" {
				t.Errorf("%s: %s: %q", name, function, got)
			}
		}
		calls := says("fbus.calls")
		running := calls[strings.Index(calls, `"call":"`)+8:]
		running = running[:strings.Index(running, `"`)]
		for _, refused := range [][]string{
			{"hold"}, {"fbus.cancel", running}, {"fbus.cancel", job}, {"fbus.result", job}, {"fbus.tickets"}, {"fbus.invite", "{}"}, {"fbus.revoke", "x"}, {"fbus.hold"},
			{"fbus.retry", `{"ids":["` + job + `"]}`}, {"fbus.purge", `{"ids":["` + job + `"]}`}, {"fbus.post", "hold"},
		} {
			if name == "lowered" && refused[0] == "fbus.result" {
				continue // its own
			}
			if got := says(refused[0], refused[1:]...); !strings.HasPrefix(got, "77 denied: ") {
				t.Errorf("%s: %s: %q", name, refused, got)
			}
		}
		for _, function := range []string{"fbus.cancel", "fbus.purge", "fbus.retry"} {
			id++
			if got := p.says(documentFrame(id, function, `{"batch":"uid:`+strconv.Itoa(os.Getuid())+`/b"}`)); name == "ticket" && !strings.HasPrefix(got, "77 denied: ") || strings.Contains(got, job) {
				t.Errorf("%s: %s of a batch: %q", name, function, got)
			}
		}
		p.send(&wire.OfferFrame{Seq: 9, Name: []byte("f"), Slots: 1})
		if f := want[*wire.OfferedFrame](p); string(f.Code) != args.CodeDenied {
			t.Errorf("%s: an offer: %s", name, f.Code)
		}
	}
	bad := rawUnix(t, nil, g.path)
	hello.Rights = [][]byte{[]byte("everything")}
	bad.write(encode(hello))
	if code := bad.closed(); code != args.CodeUsage {
		t.Errorf("a right that there is not: %q", code)
	}
	hold.release <- struct{}{}
	hold.release <- struct{}{}
	await(t, "the call", call)
}
