package trust

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"fbus/bus/args"
)

// joinNode joins with a ticket for a node, and returns the directory.
func joinNode(t *testing.T, a *Authority, name string) (dir string, own *Ticket) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "joined")
	j, err := OpenJoined(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	ticket, err := a.Issue(LocalUser, Request{Name: name, Node: true, Addresses: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	req, err := j.Begin(ticket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Exchange(ticket.Serial, req, "b:1"); err != nil { // the answer is lost
		t.Fatal(err)
	}
	if _, err := OpenSecond(dir, "net", 0, nil); err == nil {
		t.Error("it has joined before it has an answer")
	}
	if req, err = j.Begin(ticket); err != nil {
		t.Fatal(err)
	}
	cert, err := a.Exchange(ticket.Serial, req, "b:1")
	if err != nil {
		t.Fatal(err)
	}
	if own, err = j.Finish(ticket, cert); err != nil {
		t.Fatal(err)
	}
	return dir, own
}

func openSecondTest(t *testing.T, dir string, maxAge time.Duration, c *clock) *Second {
	t.Helper()
	s, err := OpenSecond(dir, "net", maxAge, c.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// listOf is the authority's list for second nodes.
func listOf(t *testing.T, a *Authority) []byte {
	t.Helper()
	text, _, err := a.RevocationList()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func update(t *testing.T, s *Second, a *Authority) {
	t.Helper()
	if err := s.Update(listOf(t, a), FromFirst); err != nil {
		t.Fatal(err)
	}
}

// shake makes a handshake, and returns what the server knows after it.
func shake(t *testing.T, server, client *tls.Config) tls.ConnectionState {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	done := make(chan error, 1)
	go func() { done <- tls.Client(near, client).Handshake() }() // ends with the handshake
	c := tls.Server(far, server)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState()
}

// TestSecondJoin: one invitation gives a node two certificates for one key, which stays there, and one
// record, and both parts are read from its file again.
func TestSecondJoin(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	dir, own := joinNode(t, a, "b")
	if !own.Rights.Equal(NodeRights(false)) || own.Server == nil || !own.Key.Public().(*ecdsa.PublicKey).Equal(own.Server.PublicKey) {
		t.Errorf("%+v", own)
	}
	if !onlyUse(own.Server, serverUse) || own.Server.VerifyHostname("net.fbus.invalid") != nil {
		t.Errorf("%+v", own.Server)
	}
	if left := own.Server.NotAfter.Sub(c.now()); left > secondLife {
		t.Errorf("the node's certificate is valid for %s", left)
	}
	records, _ := a.Tickets()
	if len(records) != 2 || !records[1].Node || records[1].Serial != own.Serial {
		t.Errorf("%+v", records)
	}
	files, _ := os.ReadDir(dir)
	if len(files) != 2 || files[1].Name() != "net.pem" { // and the lock
		t.Errorf("%v", files)
	}
	s := openSecondTest(t, dir, 0, c)
	if !s.Ticket().Server.Equal(own.Server) || s.RenewalDue() {
		t.Errorf("%+v", s.Ticket())
	}

	// A day later its certificate as a node is renewed, and the other one stays.
	c.add(25 * time.Hour)
	if !s.RenewalDue() {
		t.Error("it need not be renewed")
	}
	req, err := s.Ticket().Request()
	if err != nil {
		t.Fatal(err)
	}
	certs, err := a.Renew(own.Serial, req)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Renewed(certs); err != nil {
		t.Fatal(err)
	}
	for _, now := range []*Ticket{s.Ticket(), openSecondTest(t, dir, 0, c).Ticket()} {
		if now.Serial != own.Serial || !now.Server.NotAfter.Equal(c.now().Add(secondLife)) {
			t.Errorf("%s until %s", now.Serial, now.Server.NotAfter)
		}
	}

	// A ticket that is not for a node makes no node.
	j, err := OpenJoined(filepath.Join(t.TempDir(), "joined"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Save(issue(t, a, Request{Reusable: true})); err != nil {
		t.Fatal(err)
	}
	_, err = OpenSecond(j.dir.path, "net", 0, c.now)
	wantCode(t, err, args.CodeWrongUse, "--for-node")
}

// TestNodeRequests: a ticket for a node has its rights, and is for one machine.
func TestNodeRequests(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	for _, q := range []Request{
		{Node: true, Reusable: true}, {Node: true, Uses: 2}, {Node: true, Ephemeral: true}, {Node: true, Rights: rights(t, "call:a")},
		{Node: true, Rights: rights(t, "admin", "relay")}, {Mesh: true},
	} {
		_, err := a.Issue(LocalUser, q)
		wantCode(t, err, args.CodeBadRight, "for a node")
	}
	ticket, err := a.Issue(LocalUser, Request{Node: true, Rights: rights(t, "admin")})
	if err != nil || !ticket.Rights.Equal(NodeRights(true)) {
		t.Errorf("%v, %v", ticket, err)
	}
}

// TestSecondAdmits: a second node admits what the CA has signed and its list does not contain, with the
// rights in the certificate, and no invitation.
func TestSecondAdmits(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	dir, own := joinNode(t, a, "b")
	s := openSecondTest(t, dir, time.Hour, c)
	var gone []string
	s.OnRevoke(func(serials []string) { gone = append(gone, serials...) })
	ci, cd := issue(t, a, Request{Name: "ci", Reusable: true}), issue(t, a, Request{Name: "cd", Reusable: true})
	enter := func(ticket *Ticket) (*Identity, error) {
		t.Helper()
		return s.Admit(shake(t, s.ServerConfig(), ticket.ClientConfig(c.now)), "x:1")
	}
	_, err := enter(ci)
	wantCode(t, err, args.CodeShut, "no list")
	update(t, s, a)
	id, err := enter(ci)
	if err != nil || id.Caller() != "ticket:ci" || !id.Rights.Equal(ci.Rights) || id.Serial != ci.Serial || s.Check(id) != nil {
		t.Errorf("%+v, %v", id, err)
	}
	_, err = enter(issue(t, a, Request{Name: "new"}))
	wantCode(t, err, args.CodeNoNode, "127.0.0.1:1")

	// What is revoked is refused with the next list, of which the connections learn.
	if _, _, err := a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	update(t, s, a)
	if !slices.Equal(gone, []string{ci.Serial}) {
		t.Errorf("gone: %v", gone)
	}
	_, err = enter(ci)
	wantCode(t, err, args.CodeRevoked, "ticket ci was revoked")
	wantCode(t, s.Check(id), args.CodeRevoked)
	wantCode(t, s.Standing("", ci.Serial), args.CodeRevoked)
	again := openSecondTest(t, dir, time.Hour, c) // after a restart too
	wantCode(t, again.Check(id), args.CodeRevoked)
	if _, err := enter(cd); err != nil {
		t.Error(err)
	}

	// A list that is too old admits nobody, until it is fresh.
	c.add(61 * time.Minute)
	_, err = enter(cd)
	wantCode(t, err, args.CodeShut, "--trust-max-age")
	update(t, s, a)
	if _, err := enter(cd); err != nil {
		t.Error(err)
	}

	// So does a node that is revoked itself, by its list or as the first node says.
	s.Refused(revoked(&Record{Name: "b"}, c.now()))
	_, err = enter(cd)
	wantCode(t, err, args.CodeShut, "refuses this node")
	s.Refused(args.Errorf(args.CodeNoNode, "away"))
	_, err = enter(cd)
	wantCode(t, err, args.CodeShut, "refuses this node")
	again = openSecondTest(t, dir, time.Hour, c) // after a restart too
	wantCode(t, again.Refresh(), args.CodeShut, "ticket b was revoked")
	s.Refused(nil)
	if _, err := enter(cd); err != nil {
		t.Error(err)
	}
	if err := openSecondTest(t, dir, time.Hour, c).Refresh(); err != nil {
		t.Error(err)
	}
	if _, _, err := a.Revoke(own.Serial); err != nil {
		t.Fatal(err)
	}
	update(t, s, a)
	_, err = enter(cd)
	wantCode(t, err, args.CodeShut, "ticket b was revoked")
	again = openSecondTest(t, dir, time.Hour, c)
	wantCode(t, again.Refresh(), args.CodeShut, "ticket b was revoked")

	// Its user joins again, with another ticket.
	s.Refused(revoked(&Record{Name: "b"}, c.now()))
	ticket, err := a.Issue(LocalUser, Request{Name: "b", Node: true})
	if err != nil {
		t.Fatal(err)
	}
	req, err := s.joined.Begin(ticket)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := a.Exchange(ticket.Serial, req, "b:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.joined.Finish(ticket, certs); err != nil {
		t.Fatal(err)
	}
	s.Reload()
	if err := s.Refresh(); err != nil {
		t.Error(err)
	}
	if err := openSecondTest(t, dir, time.Hour, c).Refresh(); err != nil {
		t.Error(err)
	}
}

// TestSecondList: a second node takes a list of its network's CA only, and never goes back to an older
// one. The number rises with every addition, and whatever becomes of the file.
func TestSecondList(t *testing.T) {
	c := newClock()
	home := privateTemp(t)
	a := openTest(t, home, c)
	dir, _ := joinNode(t, a, "b")
	s := openSecondTest(t, dir, 0, c)
	first := listOf(t, a)
	update(t, s, a)
	c.add(time.Minute)
	update(t, s, a)
	if i := s.Info(); i.Age != 0 || i.Revoked != 0 || i.Number == 0 {
		t.Errorf("%+v", i)
	}
	if err := s.Update(first, FromFirst); err != nil { // of the same number: nothing was added
		t.Error(err)
	}
	if i := s.Info(); i.Age != 0 || i.From != FromFirst {
		t.Errorf("one that was signed earlier makes it %vs old: %+v", i.Age, i)
	}
	number := s.Number()
	ci := issue(t, a, Request{Name: "ci", Reusable: true})
	if _, _, err := a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	update(t, s, a)
	if s.Number() <= number {
		t.Errorf("number %d after %d", s.Number(), number)
	}
	wantCode(t, s.Update(first, FromRelay), args.CodeDamaged, "an earlier one had")
	if s.Standing("", ci.Serial) == nil {
		t.Error("it has gone back")
	}
	for _, text := range []string{"", "x", string(a.CA()), string(pem.EncodeToMemory(&pem.Block{Type: listBlock, Bytes: []byte("x")}))} {
		if err := s.Update([]byte(text), FromRelay); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
	other := openTest(t, privateTemp(t), c) // of the same name
	if err := s.Update(listOf(t, other), FromRelay); err == nil {
		t.Error("another CA's list is accepted")
	}

	// The CA of an old network has a certificate that does not say that it may sign such lists.
	a.root.Load().ca.KeyUsage, s.Ticket().CA.KeyUsage = x509.KeyUsageCertSign, x509.KeyUsageCertSign
	update(t, s, a)

	// Without its file the authority begins again, with a greater number. A certificate that the list of
	// tickets has forgotten stays revoked until it expires.
	number = s.Number()
	c.add(time.Second)
	if err := os.Remove(filepath.Join(home, revocationsName)); err != nil {
		t.Fatal(err)
	}
	b := openTest(t, home, c)
	update(t, s, b)
	if s.Number() <= number {
		t.Errorf("number %d after %d", s.Number(), number)
	}
	if err := b.list.update(func(l *table) (bool, error) {
		l.records = slices.DeleteFunc(l.records, func(r Record) bool { return r.State == Revoked })
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	update(t, s, b)
	if s.Standing("", ci.Serial) == nil {
		t.Error("it is forgotten")
	}
	c.add(DefaultReusableTTL + 2*slowClock)
	b = openTest(t, home, c)
	update(t, s, b)
	if s.Standing("", ci.Serial) != nil {
		t.Error("it stays there for ever")
	}

	// The whole directory is an older copy: the node that is started with it has a greater number.
	backup := map[string][]byte{listName: nil, revocationsName: nil}
	for name := range backup {
		data, err := os.ReadFile(filepath.Join(home, name))
		if err != nil {
			t.Fatal(err)
		}
		backup[name] = data
	}
	issue(t, b, Request{Name: "cd", Reusable: true})
	c.add(time.Hour)
	if _, _, err := b.Revoke("cd"); err != nil {
		t.Fatal(err)
	}
	update(t, s, b)
	c.add(time.Second)
	for name, data := range backup {
		if err := os.WriteFile(filepath.Join(home, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	update(t, s, openTest(t, home, c))

	// A file that is damaged is reported, and nothing is made of it.
	if err := os.WriteFile(filepath.Join(home, revocationsName), []byte(`{"number":1`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := openTest(t, home, c).RevocationList()
	wantCode(t, err, args.CodeDamaged, revocationsName)
}

// TestRenewForAnother: a request for renewal needs the key of its serial, whoever has brought it.
func TestRenewForAnother(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	ticket := issue(t, a, Request{Name: "box"})
	req, key := request(t)
	if _, err := a.Exchange(ticket.Serial, req, "x:1"); err != nil {
		t.Fatal(err)
	}
	records, _ := a.Tickets()
	own := records[1].Serial
	if _, err := a.Renew(own, req); err != nil {
		t.Error(err)
	}
	other, _ := request(t)
	_, err := a.Renew(own, other)
	wantCode(t, err, args.CodeBadCertificate, "another key")
	text, err := keyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Renew(own, text)
	wantCode(t, err, args.CodeBadCertificate)
}
