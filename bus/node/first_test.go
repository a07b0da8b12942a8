package node_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// second is a second node of a network.
type second struct {
	*node.Node
	gate *trust.Second
	jobs *jobs.Manager
	addr string // over TCP
	path string
}

// joinNode exchanges a ticket for a node, and returns the directory.
func (g *guests) joinNode(name string, rights trust.Rights) (dir string, own *trust.Ticket) {
	g.t.Helper()
	ticket, err := g.a.Issue(trust.LocalUser, trust.Request{Name: name, Node: true, Rights: rights, Addresses: []string{g.addr}})
	if err != nil {
		g.t.Fatal(err)
	}
	dir = filepath.Join(g.t.TempDir(), "joined")
	return dir, g.join(dir, ticket)
}

// join exchanges an invitation over the network.
func (g *guests) join(dir string, ticket *trust.Ticket) *trust.Ticket {
	g.t.Helper()
	j, err := trust.OpenJoined(dir)
	if err != nil {
		g.t.Fatal(err)
	}
	defer j.Close()
	req, err := j.Begin(ticket)
	if err != nil {
		g.t.Fatal(err)
	}
	own, err := j.Finish(ticket, []byte(g.enter(ticket).says(wordsFrame(1, "fbus.join", string(req)))))
	if err != nil {
		g.t.Fatal(err)
	}
	return own
}

// second starts a second node, after the given steps on its directory, and waits until it has
// reached the first one.
func (g *guests) second(rights trust.Rights, before ...func(dir string)) *second {
	g.t.Helper()
	dir, _ := g.joinNode("b", rights)
	gate, err := trust.OpenSecond(dir, "test", 0, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { gate.Close() })
	for _, f := range before {
		f(dir)
	}
	m, err := jobs.Open(jobs.Config{Dir: g.t.TempDir(), Volatile: true, Warn: g.t.Logf})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(m.Close)
	n, path := start(g.t, node.Config{Gate: gate, Jobs: m})
	s := &second{n, gate, m, listenTCP(g.t, n), path}
	eventually(g.t, "the first node is reached", func() bool {
		i := s.info(g.t)
		return i.Away == "" && i.Number > 0
	})
	return s
}

func (s *second) info(t *testing.T) *trust.SecondInfo {
	t.Helper()
	var out bytes.Buffer
	c := dial(t, s.path)
	defer c.Close()
	if _, err := c.Call(context.Background(), &bus.Request{Function: "fbus.nodes", Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	var i bus.NodeInfo
	if err := json.Unmarshal(out.Bytes(), &i); err != nil {
		t.Fatal(err)
	}
	return i.Trust
}

// requestFor is a request for a certificate, for a new key.
func requestFor(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// TestTrustIsForRelays: the list of what was revoked is for relays, of which a second node is one.
func TestTrustIsForRelays(t *testing.T) {
	g := newGuests(t)
	for right, answer := range map[string]string{
		"relay": "-----BEGIN X509 CRL-----", "admin": "77 denied: ", "monitor": "77 denied: ", "call:*": "77 denied: ",
	} {
		if got := g.enter(g.ticket("t-"+right[:4], right)).says(documentFrame(1, "fbus.trust", `{}`)); !strings.HasPrefix(got, answer) {
			t.Errorf("%s: %s", right, got)
		}
	}
	// It waits for a change of the list that is there.
	relay := g.enter(g.ticket("relay", "relay"))
	_, number, err := g.a.RevocationList()
	if err != nil {
		t.Fatal(err)
	}
	relay.send(documentFrame(1, "fbus.trust", fmt.Sprintf(`{"after":%d,"wait":50}`, number)))
	if got := relay.says(documentFrame(2, "fbus.trust", fmt.Sprintf(`{"after":%d}`, number))); !strings.Contains(got, "CRL") {
		t.Errorf("without waiting: %s", got)
	}
	g.root.says(wordsFrame(1001, "fbus.revoke", "t-call"))
	if end := want[*wire.EndFrame](relay); end.ID != 1 || !bytes.Contains(end.Output, []byte("CRL")) {
		t.Errorf("%+v", end)
	}
}

// TestSecondPasses: a second node has the first one renew, for the key of the asker's own serial alone, and
// answers nothing of its own about tickets.
func TestSecondPasses(t *testing.T) {
	g := newGuests(t)
	s := g.second(trust.Rights{})
	invitation, err := g.a.Issue(trust.LocalUser, trust.Request{Name: "box", Rights: trust.Rights{Call: []string{"a"}}, Addresses: []string{g.addr}})
	if err != nil {
		t.Fatal(err)
	}
	own := g.join(filepath.Join(t.TempDir(), "joined"), invitation)
	req, err := own.Request()
	if err != nil {
		t.Fatal(err)
	}
	guest := dialTLS(t, s.addr, own.ClientConfig(nil)).greet()
	serial, _, err := trust.CertificateEnd([]byte(guest.says(wordsFrame(1, "fbus.renew", string(req)))))
	if err != nil || serial != own.Serial {
		t.Errorf("renewed: %s, %v", serial, err)
	}
	id := uint64(1)
	next := func() uint64 { id++; return id }
	for what, words := range map[string][]string{"another key": {requestFor(t)}, "another's serial": {string(req), s.gate.Ticket().Serial}, "nothing": {}} {
		if got := guest.says(wordsFrame(next(), "fbus.renew", words...)); !strings.HasPrefix(got, "77 bad_certificate: ") && !strings.HasPrefix(got, "65 bad_input: ") {
			t.Errorf("%s: %s", what, got)
		}
	}
	if got, want := guest.says(wordsFrame(next(), "fbus.tickets")), "77 denied: ticket:box may not call fbus.tickets"; got != want {
		t.Errorf("%s, not %s", got, want)
	}

	// The node's own ticket does not administer the network, and no key but the serial's own renews it.
	local := rawUnix(t, s.Node, s.path).greet()
	if got, want := local.says(wordsFrame(1, "fbus.tickets")), "77 denied: ticket:b may not call fbus.tickets"; !strings.HasPrefix(got, want) {
		t.Errorf("%s, not %s", got, want)
	}
	if got, want := local.says(documentFrame(3, "fbus.trust", `{}`)), "255 no_node: this node is not the network's first node; "+g.addr+" is"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
	relay := g.enter(s.gate.Ticket())
	for what, words := range map[string][]string{"a key of its own": {requestFor(t), own.Serial}, "an invitation": {string(req), invitation.Serial}, "no serial": {string(req), "x"}} {
		if got := relay.says(wordsFrame(next(), "fbus.renew", words...)); !strings.HasPrefix(got, "77 ") {
			t.Errorf("%s: %s", what, got)
		}
	}
	if got := g.guest("call:a").says(wordsFrame(1, "fbus.renew", string(req), own.Serial)); !strings.HasPrefix(got, "65 bad_input: ") {
		t.Errorf("without the right: %s", got)
	}
}

// TestSecondWithoutDisk: a second node that cannot keep the list uses it all the same.
func TestSecondWithoutDisk(t *testing.T) {
	g := newGuests(t)
	s := g.second(trust.Rights{}, func(dir string) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	})
	p := dialTLS(t, s.addr, g.ticket("ci", "call:a").ClientConfig(nil)).greet()
	if _, _, err := g.a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	if code := p.closed(); code != args.CodeRevoked {
		t.Errorf("closed with %q", code)
	}
}

// TestSecondAdmitsTokens: a second node answers what the first one says about a token, from memory for a
// short time, and no longer when it is revoked.
func TestSecondAdmitsTokens(t *testing.T) {
	g := newGuests(t)
	s := g.second(trust.Rights{Admin: true})
	token, r, err := g.a.IssueToken(trust.LocalUser, trust.Request{Name: "web", Rights: trust.Rights{Call: []string{"a"}}})
	if err != nil {
		t.Fatal(err)
	}
	local := rawUnix(t, s.Node, s.path).greet()
	id := uint64(0)
	next := func() uint64 { id++; return id }
	admit := func(token string) string { return local.says(wordsFrame(next(), "fbus.admit", token)) }
	want := `{"kind":"token","name":"web","caller":"token:web","serial":"` + r.Serial + `"`
	for range 2 {
		if got := admit(token); !strings.HasPrefix(got, want) {
			t.Errorf("%s, not %s…", got, want)
		}
	}
	if got := admit(token + "x"); !strings.HasPrefix(got, "77 unlisted: ") {
		t.Error(got)
	}
	if got := local.says(wordsFrame(next(), "fbus.revoke", "web")); !strings.Contains(got, r.Serial) {
		t.Error(got)
	}
	eventually(t, "the token is refused", func() bool { return strings.HasPrefix(admit(token), "77 revoked: ") })
}

// TestSecondEndsTokens: a second node knows the tokens that were admitted there. Once one has ended it
// takes no call of its bearer, runs none of its jobs, and those that watch the node see that.
func TestSecondEndsTokens(t *testing.T) {
	g := newGuests(t)
	s := g.second(trust.Rights{Admin: true})
	worker := rawUnix(t, s.Node, s.path).greet()
	worker.offer("slow", 2, 0)
	p := rawUnix(t, s.Node, s.path)
	p.send(relayHello())
	want[*wire.HelloFrame](p)
	id := uint64(0)
	says := func(function string, words ...string) string {
		id++
		return p.says(as("token:web", wordsFrame(id, function, words...)))
	}
	root := &asker{raw: rawUnix(t, s.Node, s.path).greet()}
	w := watch(t, dial(t, s.path), `{"types":["ticket"]}`)
	var serials, all []string
	for range 2 { // with one, with another one
		if got := says("fbus.jobs"); !strings.HasPrefix(got, "77 unlisted: no token web was admitted at this node: call fbus.admit first") && !strings.HasPrefix(got, "77 revoked: token web was revoked at ") {
			t.Error(got)
		}
		text, r, err := g.a.IssueToken(trust.LocalUser, trust.Request{Name: "web", Rights: trust.Rights{Call: []string{"*"}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := root.asks("fbus.admit", text); !strings.Contains(got, r.Serial) {
			t.Fatal(got)
		}
		if line := w.until(`{"type":"ticket","kind":"token","name":"web"}`); line["serial"] != r.Serial || line["gone"] != nil {
			t.Errorf("%v", line)
		}
		if got := says("fbus.jobs"); got != `{"total":0}`+"\n" {
			t.Errorf("of %s: %s", serials, got)
		}
		serials = append(serials, r.Serial)
		all = append(all, strings.TrimSpace(says("fbus.post", "nosuch")), strings.TrimSpace(says("fbus.post", "slow")))
		call := want[*wire.CallFrame](worker)
		parsed, _ := jobs.ParseID(all[len(all)-2])
		if j, err := s.jobs.Get(parsed); err != nil || j.Poster.Until != r.Expires.Unix() {
			t.Errorf("%+v, %v", j.Poster, err)
		} else if j.Poster.Until = trust.Now().Unix() - 5; s.MayRun(&j.Poster, "slow") == nil {
			t.Error("its jobs run after its expiry")
		}
		if got := root.asks("fbus.revoke", "web"); !strings.Contains(got, r.Serial) {
			t.Fatal(got)
		}
		w.until(`{"type":"ticket","serial":"` + r.Serial + `","gone":true,"state":"revoked"}`)
		if c := want[*wire.CancelFrame](worker); c.ID != call.ID {
			t.Errorf("%+v", c)
		}
		worker.send(&wire.EndFrame{ID: call.ID})
		for _, job := range all[len(all)-2:] {
			eventually(t, "it is dead", func() bool {
				got := root.asks("fbus.jobs", `{"ids":["`+job+`"]}`)
				return strings.Contains(got, `"state":"dead"`) && strings.Contains(got, "token web was revoked")
			})
		}
	}
}

// TestSecondIsNotFirst: the address of a second node in a ticket for a node does not make that one the first.
func TestSecondIsNotFirst(t *testing.T) {
	g := newGuests(t)
	s := g.second(trust.Rights{})
	dir, own := g.joinNode("c", trust.Rights{})
	j, err := trust.OpenJoined(dir)
	if err != nil {
		t.Fatal(err)
	}
	own.Addresses = []string{s.addr}
	err = j.Save(own)
	j.Close()
	if err != nil {
		t.Fatal(err)
	}
	gate, err := trust.OpenSecond(dir, "test", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gate.Close() }) // after the node, which reads it
	n, path := start(t, node.Config{Gate: gate})
	c := &second{Node: n, gate: gate, path: path}
	eventually(t, "it reports that", func() bool {
		return strings.Contains(c.info(t).Away, "this node is not the network's first node; "+g.addr+" is")
	})
	if i := c.info(t); i.Number != 0 || i.Shut == "" {
		t.Errorf("%+v", i)
	}
}

// TestSecondTakesList: a second node that cannot reach the first one takes its list from a relay, and
// believes the signature alone.
func TestSecondTakesList(t *testing.T) {
	g := newGuests(t)
	dir, own := g.joinNode("b", trust.Rights{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	j, err := trust.OpenJoined(dir)
	if err != nil {
		t.Fatal(err)
	}
	own.Addresses = []string{l.Addr().String()} // where nobody listens
	err = j.Save(own)
	j.Close()
	if err != nil {
		t.Fatal(err)
	}
	gate, err := trust.OpenSecond(dir, "test", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gate.Close() }) // after the node, which reads it
	n, path := start(t, node.Config{Gate: gate})
	b := &second{Node: n, gate: gate, path: path, addr: listenTCP(t, n)}
	relay := rawUnix(t, nil, path)
	relay.send(relayHello())
	want[*wire.HelloFrame](relay)
	call := uint64(0)
	give := func(list []byte) string {
		doc, err := json.Marshal(bus.TrustQuery{List: string(list)})
		if err != nil {
			t.Fatal(err)
		}
		call++
		return relay.says(documentFrame(call, "fbus.trust", string(doc)))
	}
	ticket := g.ticket("ci", "call:*")
	first, number, err := g.a.RevocationList()
	if err != nil {
		t.Fatal(err)
	}
	if got := give(first); got != fmt.Sprintf("{\"after\":%d}\n", number) {
		t.Fatal(got)
	}
	if i := b.info(t); i.Number != number || i.From != trust.FromRelay || i.Shut != "" || i.Away == "" {
		t.Errorf("%+v", i)
	}
	ci := dialTLS(t, b.addr, ticket.ClientConfig(nil))
	ci.send(hello())
	want[*wire.HelloFrame](ci)
	if _, _, err := g.a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	second, number, err := g.a.RevocationList()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(second)
	block.Bytes[len(block.Bytes)-1]++ // of the signature
	other, _, err := newGuests(t).a.RevocationList()
	if err != nil {
		t.Fatal(err)
	}
	for what, list := range map[string][]byte{"no list": []byte("x"), "forged": pem.EncodeToMemory(block), "of another network": other} {
		if got := give(list); !strings.HasPrefix(got, "65 bad_input: fbus.trust: ") {
			t.Errorf("%s: %s", what, got)
		}
	}
	if got := ci.says(wordsFrame(1, "fbus.nodes")); !strings.Contains(got, "ticket:ci") {
		t.Errorf("%s", got)
	}
	more := rawUnix(t, nil, path)
	more.send(relayHello())
	want[*wire.HelloFrame](more)
	more.send(documentFrame(1, "fbus.trust", fmt.Sprintf(`{"kept":true,"wait":50,"after":%d}`, b.gate.Number())))
	if got := give(second); got != fmt.Sprintf("{\"after\":%d}\n", number) {
		t.Error(got)
	}
	if e := want[*wire.ErrorFrame](ci); string(e.Code) != args.CodeRevoked {
		t.Errorf("%+v", e)
	}
	if end := want[*wire.EndFrame](more); !bytes.Equal(end.Output, second) {
		t.Errorf("%+v", end)
	}
	if got := give(first); !strings.Contains(got, "65 bad_input: ") || !strings.Contains(got, "an earlier one had") {
		t.Errorf("an older one: %s", got)
	}
	if i := b.info(t); i.Number != number || i.Revoked != 1 {
		t.Errorf("%+v", i)
	}
	if got := relay.says(documentFrame(call+1, "fbus.trust", `{}`)); !strings.HasPrefix(got, "255 no_node: ") {
		t.Error(got)
	}
	if got := g.enter(g.ticket("relay", "relay")).says(documentFrame(1, "fbus.trust", `{"list":"x"}`)); !strings.HasPrefix(got, "65 bad_input: ") {
		t.Errorf("the first node: %s", got)
	}
}

// TestSecondSaysWhoAsks: what is asked for at a second node is recorded as that of who has asked there,
// ends with their ticket and with the node's, and needs the rights of both.
func TestSecondSaysWhoAsks(t *testing.T) {
	g := newGuests(t)
	s := g.second(trust.Rights{Admin: true})
	node := s.gate.Ticket().Serial
	boss, guest := g.ticket("boss", "admin"), g.ticket("ci", "call:a")
	at := dialTLS(t, s.addr, boss.ClientConfig(nil)).greet()
	invite := func(name string) string { return `{"name":"` + name + `","call":["a"],"reusable":true}` }
	for id, f := range []*wire.CallFrame{documentFrame(1, "fbus.invite", invite("x1")), documentFrame(2, "fbus.invite", invite("x2")), documentFrame(3, "fbus.invite", `{"name":"x3","call":["a"],"token":true}`), wordsFrame(4, "fbus.revoke", "x2")} {
		if got := at.says(f); strings.HasPrefix(got, "6") || strings.HasPrefix(got, "77") {
			t.Errorf("%d: %s", id, got)
		}
	}
	local := rawUnix(t, s.Node, s.path).greet()
	if got := local.says(documentFrame(1, "fbus.invite", invite("x4"))); !strings.HasPrefix(got, "fbus ticket") {
		t.Error(got)
	}
	records := func() map[string]trust.Record {
		list, err := g.a.Tickets()
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]trust.Record{}
		for _, r := range list {
			m[r.Name] = r
		}
		return m
	}
	for name, by := range map[string][2]string{"x1": {boss.Serial, node}, "x3": {boss.Serial, node}, "x4": {node, ""}} {
		if r := records()[name]; r.IssuedBy != by[0] || r.Through != by[1] {
			t.Errorf("%s was issued by %s through %s, not %s", name, r.IssuedBy, r.Through, by)
		}
	}
	var callers []string
	entries, _, err := g.log.Read(context.Background(), calllog.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Event == calllog.EventInvited || e.Event == calllog.EventRevoked {
			callers = append(callers, e.Caller)
		}
	}
	want := fmt.Sprintf("[ticket:b/ticket:boss ticket:b/ticket:boss ticket:b/ticket:boss ticket:b/ticket:boss ticket:b/uid:%d]", os.Getuid())
	if got := fmt.Sprint(callers); got != want {
		t.Errorf("logged: %s, not %s", got, want)
	}

	// Only a node asks for others, and it lends nobody its right.
	relay, other := g.enter(s.gate.Ticket()), g.enter(boss)
	id := uint64(10)
	for _, c := range []struct {
		p        *raw
		by, want string
	}{
		{other, boss.Serial, "77 denied: ticket boss is not of a node"}, {g.root, "uid:0", "65 bad_input: "},
		{relay, guest.Serial, "77 denied: ticket ci does not administer"}, {relay, records()["x2"].Serial, "77 revoked: "},
		{relay, records()["x3"].Serial, "77 denied: "}, {relay, strings.Repeat("0", 32), "77 unlisted: "}, {relay, "uid:", "77 unlisted: "}, {relay, "x", "77 unlisted: "},
	} {
		id += 3
		for _, f := range []*wire.CallFrame{wordsFrame(id, "fbus.tickets", c.by), wordsFrame(id+1, "fbus.revoke", "boss", c.by), documentFrame(id+2, "fbus.invite", `{"call":["a"],"by":"`+c.by+`"}`)} {
			if got := c.p.says(f); !strings.HasPrefix(got, c.want) {
				t.Errorf("%s by %s: %s, not %s", f.Name, c.by, got, c.want)
			}
		}
	}

	// What boss has issued ends with boss, and what went through the node with the node.
	if _, _, err := g.a.Revoke("boss"); err != nil {
		t.Fatal(err)
	}
	for name, state := range map[string]trust.State{"x1": trust.Revoked, "x3": trust.Revoked, "x4": trust.Active, "b": trust.Active} {
		if r := records()[name]; r.State != state {
			t.Errorf("%s is %s, not %s", name, r.State, state)
		}
	}
	clerk := g.ticket("clerk", "admin")
	at = dialTLS(t, s.addr, clerk.ClientConfig(nil)).greet()
	if got := at.says(documentFrame(1, "fbus.invite", invite("x5"))); !strings.HasPrefix(got, "fbus ticket") {
		t.Error(got)
	}
	// The node's own end is answered, though it ends the connection for the answer.
	if got, want := local.says(wordsFrame(9, "fbus.revoke", "b")), `{"serials":["`+node+`"],`; !strings.HasPrefix(got, want) {
		t.Errorf("%s, not %s", got, want)
	}
	if r := records(); r["x5"].State != trust.Revoked || r["clerk"].State != trust.Active {
		t.Errorf("%+v", r)
	}
}

// TestFirstHangs: a first node that does not answer counts as away, though its connection stays.
func TestFirstHangs(t *testing.T) {
	t.Cleanup(node.PingFirst(200*time.Millisecond, 500*time.Millisecond))
	g := newGuests(t)
	first := g.addr
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var hangs atomic.Bool
	var proxies sync.WaitGroup
	t.Cleanup(proxies.Wait)
	t.Cleanup(func() { l.Close() })
	proxies.Go(func() { // ends with the listener
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", first)
			if err != nil {
				near.Close()
				return
			}
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				proxies.Go(func() { // ends with either connection
					defer way[0].Close()
					defer way[1].Close()
					for buf := make([]byte, 1<<16); ; {
						n, err := way[0].Read(buf)
						if err != nil {
							return
						}
						if !hangs.Load() {
							way[1].Write(buf[:n])
						}
					}
				})
			}
		}
	})
	g.addr = l.Addr().String()
	s := g.second(trust.Rights{Admin: true})
	local := rawUnix(t, s.Node, s.path).greet()
	hangs.Store(true)
	if got := local.says(documentFrame(1, "fbus.invite", `{"call":["a"]}`)); !strings.HasPrefix(got, "255 node_lost: ") || !strings.Contains(got, "not answered for 500ms") {
		t.Error(got)
	}
	if got := local.says(wordsFrame(2, "fbus.tickets")); !strings.HasPrefix(got, "255 no_node: ") || !strings.Contains(got, "not answered for 500ms") {
		t.Error(got)
	}
	if i := s.info(t); !strings.Contains(i.Away, "not answered") {
		t.Errorf("%+v", i)
	}
	hangs.Store(false)
	eventually(t, "it is back", func() bool { return s.info(t).Away == "" })
}
