package trust

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus/args"
)

// TestFounding checks file modes, the CA's shape, and reopening the same authority.
func TestFounding(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a := openTest(t, dir, c)
	for name, mode := range map[string]os.FileMode{".": 0o700, caName: 0o600, listName: 0o600, "..": 0o700} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
	ca := a.root.Load().ca
	if !ca.IsCA || !ca.MaxPathLenZero || ca.MaxPathLen != 0 || ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || ca.Subject.CommonName != "net" ||
		!ca.NotBefore.Equal(c.now().Add(-time.Hour)) || ca.NotAfter.Sub(c.now()) != caLife {
		t.Errorf("CA: %+v", ca)
	}
	if b := openTest(t, dir, c); !bytes.Equal(b.CA(), a.CA()) {
		t.Error("the second start made another CA")
	}
}

// TestFoundingAtOnce checks that concurrent starts end up with the same CA.
func TestFoundingAtOnce(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	var wg sync.WaitGroup
	cas := make([][]byte, 8)
	for i := range cas {
		wg.Go(func() { cas[i] = openTest(t, dir, c).CA() })
	}
	wg.Wait()
	for _, ca := range cas {
		if !bytes.Equal(ca, cas[0]) {
			t.Fatal("two CAs were made")
		}
	}
}

// TestNodeCertificate checks that the certificate is for servers only and is replaced in
// time.
func TestNodeCertificate(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	get := func() *x509.Certificate {
		cert, err := a.NodeCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf
	}
	first := get()
	if !onlyUse(first, serverUse) || fmt.Sprint(first.DNSNames) != "[net.fbus.invalid]" || len(first.URIs) > 0 {
		t.Errorf("%+v", first)
	}
	c.add(nodeLife / 2)
	if get() != first {
		t.Error("made anew with half of its life left")
	}
	c.add(nodeLife / 4)
	second := get()
	if second == first || second.NotAfter.Sub(c.now()) != nodeLife {
		t.Error("not made anew with a quarter of its life left")
	}
	c.add(-nodeLife / 2)
	if third := get(); third == second {
		t.Error("not made anew after the clock was set back by months")
	}
	c.add(caLife - nodeLife/2)
	if last := get(); !last.NotAfter.Equal(a.root.Load().ca.NotAfter) || get() != last {
		t.Error("the last one has to end with the CA, and is made once")
	}
}

// TestIssueChecks checks that refused requests get a useful hint.
func TestIssueChecks(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	call := rights(t, "call:a")
	issue(t, a, Request{Name: "ci", Reusable: true})
	for _, c := range []struct {
		q    Request
		code string
		hint string
	}{
		{Request{Name: "x"}, args.CodeBadRight, "use --call GLOB"},
		{Request{Name: "a b", Rights: call}, args.CodeBadRight, "letters"},
		{Request{Name: newSerial(), Rights: call}, args.CodeBadRight, "serial"},
		{Request{Name: "ci", Rights: call}, args.CodeNameTaken, "revoke ci"},
		{Request{Rights: call, TTL: time.Second}, args.CodeBadRight, "at least"},
		{Request{Rights: call, TTL: -time.Hour}, args.CodeBadRight, "at least"},
		{Request{Rights: call, TTL: 20 * caLife}, args.CodeBadRight, "365d"},
		{Request{Rights: Rights{Call: []string{"fbus.*"}}}, args.CodeBadRight, "--admin"},
		{Request{Rights: call, Addresses: []string{"host"}}, args.CodeBadRight, "HOST:PORT"},
		{Request{Rights: call, Addresses: []string{"h:1\nname: x"}}, args.CodeBadRight, "HOST:PORT"},
		{Request{Rights: call, Addresses: make([]string, 17)}, args.CodeBadRight, "limit"},
	} {
		_, err := a.Issue(LocalUser, c.q)
		wantCode(t, err, c.code, c.hint)
	}
	records, err := a.Tickets()
	if err != nil || len(records) != 1 {
		t.Errorf("%d records, %v", len(records), err)
	}
	if free := issue(t, a, Request{}); CheckName(free.Name) != nil || free.Expires.Sub(free.Issued) != DefaultTTL {
		t.Errorf("defaults: %+v", free)
	}
}

// TestNamesAreFreed checks that revocation and expiry free a name.
func TestNamesAreFreed(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	first := issue(t, a, Request{Name: "ci", Reusable: true, TTL: time.Hour})
	if _, _, err := a.Revoke(first.Serial); err != nil {
		t.Fatal(err)
	}
	issue(t, a, Request{Name: "ci", Reusable: true, TTL: time.Hour})
	c.add(2 * time.Hour)
	issue(t, a, Request{Name: "ci", Reusable: true, TTL: time.Hour})
	_, _, err := a.Revoke("nobody")
	wantCode(t, err, args.CodeNoTicket, "fbus tickets")
}

// TestRevokeIssued checks that revoking a ticket also revokes the tickets issued with
// it, through exchange and renewal, and nothing else.
func TestRevokeIssued(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	admin := issue(t, a, Request{Name: "admin", Rights: Rights{Admin: true}, TTL: time.Hour})
	req, _ := request(t)
	cert, err := a.Exchange(admin.Serial, req, "h:1")
	if err != nil {
		t.Fatal(err)
	}
	serial, _, err := CertificateEnd(cert)
	if err != nil {
		t.Fatal(err)
	}
	child := issueBy(t, a, serial, Request{Name: "child", Rights: Rights{Admin: true}, Reusable: true})
	grandchild := issueBy(t, a, child.Serial, Request{Name: "grandchild"})
	other := issue(t, a, Request{Name: "other"})
	revoke := func(name string, want ...string) {
		t.Helper()
		gone, _, err := a.Revoke(name)
		var got []string
		for _, r := range gone {
			got = append(got, r.Name+" "+r.Serial)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("revoked %q, %v; want %q", got, err, want)
		}
	}
	revoke("admin", "admin "+admin.Serial, "admin "+serial, "child "+child.Serial, "grandchild "+grandchild.Serial)
	revoke("other", "other "+other.Serial)
}

// TestIssuers checks that an issuer that is gone issues nothing, and that one that expires
// later leaves its tickets valid.
func TestIssuers(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	boss := issue(t, a, Request{Name: "boss", Rights: Rights{Admin: true}, Reusable: true, TTL: time.Hour})
	fired := issue(t, a, Request{Name: "fired", Rights: Rights{Admin: true}, Reusable: true, TTL: time.Hour})
	inv := issueBy(t, a, boss.Serial, Request{Name: "inv"})
	_, _, err := a.Revoke("fired")
	must(t, err)
	refused := func(by, code string) {
		t.Helper()
		_, err := a.Issue(by, Request{Rights: rights(t, "call:a")})
		wantCode(t, err, code)
	}
	refused(fired.Serial, args.CodeRevoked)
	refused(inv.Serial, args.CodeWrongUse)
	refused(newSerial(), args.CodeUnlisted)
	refused("", args.CodeUnlisted)
	c.add(2 * time.Hour)
	refused(boss.Serial, args.CodeExpired)
	req, _ := request(t)
	_, err = a.Exchange(inv.Serial, req, "")
	must(t, err)
}

// TestIssueWhileRevoked checks that no ticket of a revoked issuer is live when Revoke
// returns, or later, whichever process issues.
func TestIssueWhileRevoked(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a, b := openTest(t, dir, c), openTest(t, dir, c)
	boss := issue(t, a, Request{Name: "boss", Rights: Rights{Admin: true}, Reusable: true})
	q := Request{Rights: rights(t, "admin"), Reusable: true}
	started := make(chan struct{}, 8)
	var wg sync.WaitGroup
	var over atomic.Bool
	for _, a := range []*Authority{a, a, b, b} {
		wg.Go(func() {
			for err := error(nil); err == nil && !over.Load(); _, err = a.Issue(boss.Serial, q) {
				select {
				case started <- struct{}{}:
				default:
				}
			}
		})
	}
	for range cap(started) {
		<-started
	}
	_, _, err := a.Revoke("boss")
	must(t, err)
	_, err = b.Issue(boss.Serial, q)
	wantCode(t, err, args.CodeRevoked)
	over.Store(true)
	wg.Wait()
	records, err := a.Tickets()
	must(t, err)
	for _, r := range records {
		if r.State != Revoked || r.Serial != boss.Serial && r.IssuedBy != boss.Serial {
			t.Errorf("%+v", r)
		}
	}
}

// TestGoneIssuer checks a list in which a ticket outlived the revocation of its issuer:
// the ticket does not enter, is not exchanged, issues nothing and runs no job.
func TestGoneIssuer(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	boss := issue(t, a, Request{Name: "boss", Rights: Rights{Admin: true}, Reusable: true})
	child := issueBy(t, a, boss.Serial, Request{Name: "child", Rights: Rights{Admin: true}, Reusable: true})
	inv := issueBy(t, a, child.Serial, Request{Name: "inv"})
	must(t, a.list.update(func(t *table) (bool, error) { t.get(boss.Serial).State = Revoked; return true, nil }))
	wantCode(t, a.Check(&Identity{Name: "child", Serial: child.Serial, Rights: child.Rights, Expires: child.Expires}), args.CodeRevoked, "child")
	req, _ := request(t)
	_, err := a.Exchange(inv.Serial, req, "")
	wantCode(t, err, args.CodeRevoked, "inv")
	_, err = a.Issue(child.Serial, Request{Rights: rights(t, "call:a")})
	wantCode(t, err, args.CodeRevoked)
	_, err = a.Standing(child.Serial)
	wantCode(t, err, args.CodeRevoked)
}

// TestRevokeAgain checks that a second revocation reports the first, and not an earlier
// one of the same name.
func TestRevokeAgain(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	issue(t, a, Request{Name: "ci", Reusable: true})
	_, _, err := a.Revoke("ci")
	must(t, err)
	c.add(time.Hour)
	ci := issue(t, a, Request{Name: "ci", Rights: Rights{Admin: true}, Reusable: true})
	child := issueBy(t, a, ci.Serial, Request{Name: "child"})
	at := c.now()
	for _, name := range []string{"ci", "ci", ci.Serial} {
		gone, before, err := a.Revoke(name)
		if err != nil || len(gone) != 2 || gone[0].Serial != ci.Serial || gone[1].Serial != child.Serial || before.IsZero() != c.now().Equal(at) {
			t.Errorf("revoked %+v before %s, %v", gone, before, err)
		}
		if !before.IsZero() && !before.Equal(at) {
			t.Errorf("revoked at %s, not %s", before, at)
		}
		c.add(time.Minute)
	}
}

// TestExchange checks that an invitation becomes an identity once. The same key may ask
// again, another key is refused, and a revoked one cannot be exchanged.
func TestExchange(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	inv := issue(t, a, Request{Name: "box", Rights: rights(t, "offer:r*"), TTL: time.Hour})
	req, _ := request(t)
	first, err := a.Exchange(inv.Serial, req, "10.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Exchange(inv.Serial, req, "10.0.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	x, y := parseOne(t, first), parseOne(t, again)
	if x.SerialNumber.Cmp(y.SerialNumber) != 0 || !bytes.Equal(x.RawSubject, y.RawSubject) || !x.NotAfter.Equal(y.NotAfter) {
		t.Error("asked again, the same key got something else")
	}
	if n, err := parseNames(x.URIs); err != nil || n.name != "box" || n.join || n.rights.String() != "offer r*" || x.NotAfter.Sub(c.now()) != IdentityLife {
		t.Errorf("%+v, %v, until %s", n, err, x.NotAfter)
	}
	other, _ := request(t)
	_, err = a.Exchange(inv.Serial, other, "10.0.0.3:9")
	wantCode(t, err, args.CodeUsed, "10.0.0.1:9", "revoke box")
	_, err = a.Issue(LocalUser, Request{Name: "box", Rights: rights(t, "call:a")})
	wantCode(t, err, args.CodeNameTaken)
	c.add(2 * time.Hour)
	_, err = a.Exchange(inv.Serial, req, "")
	wantCode(t, err, args.CodeExpired, "clock")
	c.add(-2 * time.Hour)
	if serials, _, err := a.Revoke("box"); err != nil || len(serials) != 2 {
		t.Errorf("revoked %v, %v", serials, err)
	}
	_, err = a.Exchange(inv.Serial, req, "")
	wantCode(t, err, args.CodeRevoked)
}

func parseOne(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	certs, _, err := parseBundle(text)
	if err != nil || len(certs) != 1 {
		t.Fatal(len(certs), err)
	}
	return certs[0]
}

// TestExchangeRefusals covers tickets that are not invitations, and malformed requests.
func TestExchangeRefusals(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	inv := issue(t, a, Request{})
	reusable := issue(t, a, Request{Reusable: true})
	req, _ := request(t)
	own, _ := inv.Request()
	for _, c := range []struct {
		serial, code string
		req          []byte
	}{
		{newSerial(), args.CodeUnlisted, req},
		{"", args.CodeUnlisted, req},
		{reusable.Serial, args.CodeWrongUse, req},
		{inv.Serial, args.CodeBadCertificate, own},
		{inv.Serial, args.CodeBadCertificate, nil},
		{inv.Serial, args.CodeBadCertificate, []byte("hello")},
		{inv.Serial, args.CodeBadCertificate, certPEM(inv.Leaf.Raw)},
		{inv.Serial, args.CodeBadCertificate, bytes.Repeat([]byte("x"), maxTicket+1)},
		{inv.Serial, args.CodeBadCertificate, bytes.Replace(req, []byte("MI"), []byte("MJ"), 1)},
	} {
		_, err := a.Exchange(c.serial, c.req, "")
		wantCode(t, err, c.code)
	}
	if _, err := a.Exchange(inv.Serial, req, ""); err != nil {
		t.Errorf("after refusals: %v", err)
	}
}

// TestExchangeRace checks that exactly one of many concurrent keys wins.
func TestExchangeRace(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	as := []*Authority{openTest(t, dir, c), openTest(t, dir, c)} // as two processes
	inv := issue(t, as[0], Request{})
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		req, _ := request(t)
		wg.Go(func() { _, errs[i] = as[i%2].Exchange(inv.Serial, req, "") })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, &args.Error{Code: args.CodeUsed}) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d keys won", won)
	}
}

// TestRenew checks that renewal works in the last third, for the same key, and issues
// one certificate however often it is requested. Revoking covers the whole chain.
func TestRenew(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	inv := issue(t, a, Request{Name: "box"})
	req, key := request(t)
	cert, err := a.Exchange(inv.Serial, req, "")
	if err != nil {
		t.Fatal(err)
	}
	serial := serialText(parseOne(t, cert).SerialNumber)
	renew := func() *x509.Certificate {
		t.Helper()
		text, err := a.Renew(serial, req)
		if err != nil {
			t.Fatal(err)
		}
		return parseOne(t, text)
	}
	if soon := renew(); serialText(soon.SerialNumber) != serial {
		t.Error("renewed at once")
	}
	early := issueBy(t, a, serial, Request{})
	c.add(IdentityLife * 3 / 4)
	first, again := renew(), renew()
	if serialText(first.SerialNumber) == serial || first.SerialNumber.Cmp(again.SerialNumber) != 0 || first.NotAfter.Sub(c.now()) != IdentityLife {
		t.Error("not renewed, or more than once")
	}
	if !key.PublicKey.Equal(first.PublicKey) {
		t.Error("renewed with another key")
	}
	other, _ := request(t)
	_, err = a.Renew(serial, other)
	wantCode(t, err, args.CodeBadCertificate)
	_, err = a.Renew(inv.Serial, req)
	wantCode(t, err, args.CodeWrongUse)
	// Tickets that it issued stay with it, also when the list has dropped the old certificate.
	for _, by := range []string{serial, serialText(first.SerialNumber)} {
		issued := issueBy(t, a, by, Request{})
		if r := a.list.current.Load().get(issued.Serial); r.IssuedBy != serialText(first.SerialNumber) {
			t.Errorf("issued by %s", r.IssuedBy)
		}
	}
	if r := a.list.current.Load().get(early.Serial); r.IssuedBy != serialText(first.SerialNumber) {
		t.Errorf("issued by %s before, and by %s now", serial, r.IssuedBy)
	}
	serials, _, err := a.Revoke(serialText(first.SerialNumber))
	if err != nil || len(serials) != 6 {
		t.Errorf("revoked %v, %v", serials, err)
	}
	_, err = a.Renew(serial, req)
	wantCode(t, err, args.CodeRevoked)
}
