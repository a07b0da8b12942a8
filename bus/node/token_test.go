package node_test

import (
	"crypto/tls"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/trust"
)

// asker is a peer that calls one of the node's own functions after the other.
type asker struct {
	*raw
	id uint64
}

func (p *asker) asks(function string, words ...string) string {
	p.t.Helper()
	p.id++
	return p.says(wordsFrame(p.id, function, words...))
}

// admits is asks for fbus.admit with an input.
func (p *asker) admits(input string) string {
	p.t.Helper()
	p.id++
	return p.says(callFrame(p.id, "fbus.admit", input))
}

// invites is asks for fbus.invite.
func (p *asker) invites(document string) string {
	p.t.Helper()
	p.id++
	return p.says(documentFrame(p.id, "fbus.invite", document))
}

// token makes a token with the right to call a, as fbus.invite does, and returns its text.
func (p *asker) token(name string) string {
	p.t.Helper()
	var made bus.TokenInfo
	answer := p.invites(`{"token":true,"name":"` + name + `","call":["a"]}`)
	if err := json.Unmarshal([]byte(answer), &made); err != nil || !strings.HasPrefix(made.Token, "fbus_") || made.Name != name {
		p.t.Fatalf("%s: %v", answer, err)
	}
	return made.Token
}

// TestAdmit: a relay, and nobody else, is told whose token it has and what that allows, or why
// that is refused. No token is in the log.
func TestAdmit(t *testing.T) {
	g := newGuests(t)
	root := &asker{raw: g.root}
	token, gone := root.token("ci"), root.token("gone")
	if got := root.asks("fbus.revoke", "gone"); !strings.Contains(got, `"connections":0`) {
		t.Error(got)
	}
	relay := &asker{raw: g.enter(g.ticket("gw", "relay"))}
	typo := token[:40] + "x" + token[41:]
	if typo == token {
		typo = token[:40] + "y" + token[41:]
	}
	ci, err := g.a.TokenNamed("ci")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*asker{relay, root} {
		for f, got := range map[string]string{"argument": p.asks("fbus.admit", token), "input": p.admits(token), "line": p.admits(token + "\r\n")} {
			var info bus.TokenInfo
			if err := json.Unmarshal([]byte(got), &info); err != nil || info.Name != "ci" || info.Caller != "token:ci" || info.Kind != trust.Token || info.Rights.String() != "call a" ||
				info.Serial != ci.Serial || time.Until(info.Expires) < 29*24*time.Hour || strings.Contains(got, token[5:]) {
				t.Errorf("%s: %s: %v", f, got, err)
			}
		}
		for text, want := range map[string]string{
			gone: "77 revoked: token gone was revoked at ", typo: "77 unlisted: this is not a token", "": "77 unlisted: ", "ci": "77 unlisted: ", string(make([]byte, 20000)): "77 unlisted: ",
		} {
			if got := p.admits(text); !strings.HasPrefix(got, want) {
				t.Errorf("%.10q: %s", text, got)
			}
		}
		if got := p.asks("fbus.admit", token, token); !strings.HasPrefix(got, "64 usage: ") {
			t.Error(got)
		}
	}
	for _, rights := range []string{"call:*", "admin", "monitor"} {
		p := g.enter(g.ticket("other-"+strings.Trim(rights, ":*"), rights))
		for i, text := range []string{token, gone, "x"} {
			if got := p.says(wordsFrame(uint64(i+1), "fbus.admit", text)); !strings.HasPrefix(got, "77 denied: ") {
				t.Errorf("%s: %s", rights, got)
			}
		}
	}
	// In the place of a name it is an error.
	for _, words := range [][]string{{token}, {"fbus.revoke", token}, {"fbus.functions", token}, {"fbus.post", token}, {"fbus.cancel", token}, {"fbus." + token}, {"fbus.result", typo}} {
		if got := root.asks(words[0], words[1:]...); strings.Contains(got, token[5:20]) {
			t.Errorf("%s", got)
		}
	}
	if got := root.invites(`{"call":["a"],"name":"` + token + `","token":true}`); !strings.HasPrefix(got, "64 bad_right: ") {
		t.Error(got)
	}
	for _, function := range []string{"fbus.log", "fbus.tickets", "fbus.calls", "fbus.metrics", "fbus.functions"} {
		if got := root.asks(function); strings.Contains(got, token[5:20]) || strings.Contains(got, gone[5:20]) || strings.Contains(got, typo[41:]) {
			t.Errorf("%s shows a token: %s", function, got)
		}
	}
}

// TestTokensAreNotKept: a text with a token is refused wherever it would be kept and shown to others.
func TestTokensAreNotKept(t *testing.T) {
	g := newGuests(t)
	root := &asker{raw: g.root}
	token := root.token("ci")
	in := func(format string) string { return strings.ReplaceAll(format, "TOKEN", token) }
	p := g.relay("gw", "call:*")
	id := uint64(0)
	refused := func(what, got string) {
		t.Helper()
		if !strings.HasPrefix(got, "64 ") || strings.Contains(got, token[5:20]) {
			t.Errorf("%s: %s", what, got)
		}
	}
	for _, caller := range []string{"TOKEN", "token:TOKEN", "x/TOKEN", "alice-TOKEN"} {
		id++
		refused(caller, p.says(as(in(caller), callFrame(id, "a", ""))))
	}
	for _, on := range []string{"TOKEN", "TOKEN*", "x-TOKEN"} {
		id++
		f := callFrame(id, "a", "")
		f.On = []byte(in(on))
		refused(on, p.says(f))
	}
	for _, words := range [][]string{
		{"fbus.post", "a", `{"unique":"TOKEN"}`}, {"fbus.post", "a", `{"unique":"key TOKEN."}`}, {"fbus.post", "a", `{"item":"TOKEN"}`}, {"fbus.post", "a", `{"on":"TOKEN"}`},
		{"fbus.post", "a", `{"batch":"TOKEN"}`}, {"fbus.post", "a", `{"batch":"x.TOKEN"}`}, {"fbus.post", "a", `{"then":"TOKEN"}`}, {"fbus.post", "x-TOKEN"},
		{"fbus.batch", `{"batch":"b","then":"a","on":"TOKEN"}`}, {"fbus.hold", `{"on":"TOKEN"}`}, {"fbus.hold", `{"functions":["TOKEN"]}`},
	} {
		for i := range words {
			words[i] = in(words[i])
		}
		refused(words[0], root.asks(words[0], words[1:]...))
	}
	for _, document := range []string{
		`{"call":["TOKEN"]}`, `{"call":["TOKEN*"]}`, `{"offer":["x-TOKEN"]}`, `{"call":["a"],"addresses":["TOKEN:10101"]}`, `{"call":["a"],"name":"x.TOKEN"}`,
	} {
		refused(document, root.invites(in(document)))
	}
	lower := rawUnix(t, nil, g.path)
	lower.send(relayHello(in("call:TOKEN")))
	if code := lower.closed(); code != "usage" {
		t.Errorf("rights in HELLO: %q", code)
	}
	for _, function := range []string{"fbus.log", "fbus.tickets", "fbus.calls", "fbus.metrics", "fbus.functions", "fbus.jobs", "fbus.hold"} {
		if got := root.asks(function); strings.Contains(got, token[5:20]) {
			t.Errorf("%s shows a token: %s", function, got)
		}
	}
}

// TestTokensAreWatched: a relay is shown tokens, no tickets, and their end: by revocation, by
// expiry, and by that of the ticket that they were issued with.
func TestTokensAreWatched(t *testing.T) {
	g := newGuests(t)
	root := &asker{raw: g.root}
	root.token("ci")
	nc, err := tls.Dial("tcp", g.addr, g.ticket("gw", "relay").ClientConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	gw, err := bus.NewClient(bg(), nc, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gw.Close() })
	w := watch(t, gw, `{"types":["ticket"]}`)
	if line := w.until(`{"type":"ticket"}`); line["name"] != "ci" || line["kind"] != "token" || line["gone"] != nil || line["state"] != "active" {
		t.Errorf("the first line is %v", line)
	}
	g.ticket("ticket", "call:a")
	boss := &asker{raw: g.enter(g.ticket("boss", "admin"))}
	boss.token("bosss")
	w.until(`{"name":"bosss"}`)
	for revoked, token := range map[string]string{"ci": "ci", "boss": "bosss"} {
		root.asks("fbus.revoke", revoked)
		w.until(`{"type":"ticket","kind":"token","name":"` + token + `","gone":true,"state":"revoked"}`)
	}

	// Another process on the same list, whose clock is behind.
	past, err := trust.Open(trust.Options{Dir: g.dir, Network: "test", Now: func() time.Time { return time.Now().Add(-59 * time.Second) }})
	if err != nil {
		t.Fatal(err)
	}
	defer past.Close()
	if _, _, err := past.IssueToken(trust.LocalUser, trust.Request{Name: "short", Rights: trust.Rights{Call: []string{"a"}}, TTL: trust.MinTTL}); err != nil {
		t.Fatal(err)
	}
	if err := g.a.Refresh(); err != nil { // as the node does, every few seconds
		t.Fatal(err)
	}
	eventually(t, "it has expired", func() bool {
		g.n.DismissExpired()
		select {
		case line := <-w.lines:
			if line["kind"] != "token" {
				t.Errorf("a relay sees %v", line)
			}
			return line["name"] == "short" && line["gone"] == true && line["state"] == "active"
		default:
			return false
		}
	})
	root.token("long")
	w.until(`{"name":"long"}`)
	if _, _, err := past.Revoke("long"); err != nil {
		t.Fatal(err)
	}
	if err := g.a.Refresh(); err != nil {
		t.Fatal(err)
	}
	w.until(`{"name":"long","gone":true}`)
}

// TestANameInheritsNothing: a ticket that has the name of an earlier one does not see its jobs. An
// administrator tells them apart by their owners.
func TestANameInheritsNothing(t *testing.T) {
	g := newGuests(t)
	root := &asker{raw: g.root}
	old := &asker{raw: g.guest("call:*")}
	job := strings.TrimSpace(old.asks("fbus.post", "b", `{"delay":1000,"batch":"x"}`))
	if got := old.asks("fbus.jobs"); !strings.Contains(got, job) {
		t.Errorf("its jobs are %s", got)
	}
	root.asks("fbus.revoke", "guest")
	p := &asker{raw: g.guest("call:*")}
	for _, words := range [][]string{{"fbus.jobs"}, {"fbus.jobs", `{"batch":"x"}`}, {"fbus.jobs", `{"batch":"ticket:guest/x"}`}, {"fbus.jobs", `{"ids":["` + job + `"]}`}, {"fbus.result", job}} {
		if got := p.asks(words[0], words[1:]...); got != `{"total":0}`+"\n" && !strings.HasPrefix(got, "65 bad_input: ") {
			t.Errorf("%q: %s", words, got)
		}
	}
	own := strings.TrimSpace(p.asks("fbus.post", "b", `{"delay":1000,"batch":"x"}`))
	if got := p.asks("fbus.jobs", `{"batch":"x"}`); !strings.Contains(got, own) || strings.Contains(got, job) || !strings.Contains(got, `"poster":"ticket:guest"`) {
		t.Errorf("its batch is %s", got)
	}
	if got := root.asks("fbus.jobs", `{"batch":"ticket:guest/x"}`); !strings.HasPrefix(got, "64 usage: ") || strings.Count(got, "ticket:guest@") != 2 || strings.Count(got, "/x") != 3 {
		t.Errorf("two batches of a name: %s", got)
	}
	for _, id := range []string{job, own} {
		var i bus.JobInfo
		line, _, _ := strings.Cut(root.asks("fbus.jobs", `{"ids":["`+id+`"]}`), "\n")
		if err := json.Unmarshal([]byte(line), &i); err != nil || !strings.HasPrefix(i.Owner, "ticket:guest@") {
			t.Fatalf("%s: %v", line, err)
		}
		if got := root.asks("fbus.jobs", `{"batch":"`+i.Owner+`/x"}`); !strings.Contains(got, id) || !strings.Contains(got, `{"total":1}`) {
			t.Errorf("the batch of %s: %s", i.Owner, got)
		}
	}
}
