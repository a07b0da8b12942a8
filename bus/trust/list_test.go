package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

// TestList checks that a list survives writing and reading.
func TestList(t *testing.T) {
	records := []Record{{
		Serial: newSerial(), Name: "a", Rights: rights(t, "call:x*", "admin"), State: Burnt, Issued: newClock().now(), Expires: newClock().now(),
		Key: strings.Repeat("0f", 32), Into: newSerial(), Ended: newClock().now(), By: "h:1", Seen: newClock().now(), From: "h:2",
	}}
	data, err := formatList("net", records)
	if err != nil {
		t.Fatal(err)
	}
	back, err := parseList("net", data)
	if err != nil || !reflect.DeepEqual(back, records) {
		t.Errorf("%+v, %v", back, err)
	}
	if _, err := parseList("other", data); err == nil {
		t.Error("read as another network's")
	}
}

// TestListDamaged checks that a list truncated anywhere, or with any byte changed, is
// refused as a whole.
func TestListDamaged(t *testing.T) {
	data, _ := formatList("net", []Record{{Serial: newSerial(), Name: "a", State: Active, Key: strings.Repeat("0", 64)}})
	for i := range data {
		if _, err := parseList("net", data[:i]); err == nil {
			t.Fatalf("cut at %d of %d: taken", i, len(data))
		}
		changed := bytes.Clone(data)
		changed[i] ^= 1
		if _, err := parseList("net", changed); err == nil {
			t.Fatalf("byte %d changed: taken", i)
		}
	}
	if _, err := parseList("net", append(data, ' ')); err == nil {
		t.Error("with a byte more: taken")
	}
}

// TestListContents checks that a list with a valid checksum but invalid contents is
// refused.
func TestListContents(t *testing.T) {
	good := Record{Serial: newSerial(), Name: "a", State: Active, Key: strings.Repeat("0", 64)}
	for what, change := range map[string]func(*Record){
		"serial":      func(r *Record) { r.Serial = "1" },
		"upper case":  func(r *Record) { r.Serial = strings.Repeat("AB", 16) },
		"name":        func(r *Record) { r.Name = "a b" },
		"state":       func(r *Record) { r.State = "odd" },
		"key":         func(r *Record) { r.Key = "" },
		"into":        func(r *Record) { r.Into = "x" },
		"kind":        func(r *Record) { r.Kind = "x" },
		"first":       func(r *Record) { r.First = "x" },
		"rights":      func(r *Record) { r.Rights.Call = []string{"["} },
		"node rights": func(r *Record) { r.Rights.Call = []string{"fbus.*"} },
	} {
		bad := good
		change(&bad)
		data, _ := formatList("net", []Record{bad})
		if _, err := parseList("net", data); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	data, _ := formatList("net", []Record{good, good})
	if _, err := parseList("net", data); err == nil {
		t.Error("twice the same serial: taken")
	}
}

// TestLostList checks that no earlier ticket is admitted, whether the list is lost while
// the node runs or before it starts. Tickets issued later are admitted.
func TestLostList(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a := openTest(t, dir, c)
	old := issue(t, a, Request{Reusable: true})
	id := &Identity{Name: old.Name, Serial: old.Serial, Rights: old.Rights, Expires: old.Expires}
	path := filepath.Join(dir, listName)
	kept, err := os.ReadFile(path)
	if err != nil || a.Check(id) != nil {
		t.Fatal(err, a.Check(id))
	}
	os.Remove(path)
	wantCode(t, a.Check(id), args.CodeListLost, "nobody is admitted")
	_, err = a.Issue(LocalUser, Request{Rights: rights(t, "call:a")})
	wantCode(t, err, args.CodeListLost)
	os.WriteFile(path, kept, 0o600)
	if err := a.Check(id); err != nil {
		t.Errorf("restored: %v", err)
	}
	os.WriteFile(path, kept[:len(kept)-3], 0o600)
	wantCode(t, a.Check(id), args.CodeListLost, path)
	_, err = Open(Options{Dir: dir, Network: "net", Now: c.now})
	wantCode(t, err, args.CodeListLost, path, "issue new tickets")

	os.Remove(path)
	warned := ""
	b, err := Open(Options{Dir: dir, Network: "net", Now: c.now, Warn: func(f string, args ...any) { warned += fmt.Sprintf(f, args...) }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	wantCode(t, b.Check(id), args.CodeUnlisted)
	if !strings.Contains(warned, "all tickets of network net are refused") {
		t.Errorf("warned %q", warned)
	}
	issue(t, b, Request{})
}

// TestLostCA checks that a missing CA is not replaced while a list exists. A new one
// would hide that all those tickets are void.
func TestLostCA(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	issue(t, openTest(t, dir, c), Request{})
	path := filepath.Join(dir, caName)
	kept, _ := os.ReadFile(path)
	os.Remove(path)
	_, err := Open(Options{Dir: dir, Network: "net", Now: c.now})
	wantCode(t, err, args.CodeDamaged, caName, "missing")
	for what, text := range map[string][]byte{
		"empty": nil, "cut": kept[:len(kept)-40], "no key": kept[:bytes.Index(kept, []byte("-----BEGIN PRIVATE"))], "text": []byte("hello"),
	} {
		os.WriteFile(path, text, 0o600)
		if _, err := Open(Options{Dir: dir, Network: "net", Now: c.now}); err == nil {
			t.Errorf("%s: taken", what)
		} else {
			wantCode(t, err, args.CodeDamaged, path)
		}
	}
	os.WriteFile(path, kept, 0o600)
	_, err = Open(Options{Dir: dir, Network: "other", Now: c.now})
	wantCode(t, err, args.CodeDamaged)
	openTest(t, dir, c)
}

// TestCAClock checks that with a clock before the network's start nobody is admitted and nothing
// is issued, and that all works once the clock is right.
func TestCAClock(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	ticket := issue(t, openTest(t, dir, c), Request{Reusable: true})
	c.add(-400 * 24 * time.Hour)
	a := openTest(t, dir, c)
	n := serve(t, a, c.now)
	wantCode(t, a.Refresh(), args.CodeNotYetValid, "clock", "no other machine is admitted")
	_, err := a.Issue(LocalUser, Request{Rights: rights(t, "call:a")})
	wantCode(t, err, args.CodeNotYetValid, "clock")
	_, err = n.enter(t, ticket.ClientConfig(newClock().now))
	wantCode(t, ticket.Explain(err, newClock().now()), args.CodeExpired, "clock")
	<-n.refused
	c.add(400 * 24 * time.Hour)
	must(t, a.Refresh())
	if got, err := n.enter(t, ticket.ClientConfig(c.now)); got != "x" {
		t.Errorf("%q, %v", got, err)
	}
	issue(t, a, Request{})
}

// TestCARenewal checks that the CA's certificate is replaced before its end, that earlier
// tickets stay valid with clients that know only the old one, and that clients get the new
// one with their next certificate.
func TestCARenewal(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a := openTest(t, dir, c)
	n := serve(t, a, c.now)
	enter := func(ticket *Ticket, cfg *tls.Config) {
		t.Helper()
		if got, err := n.enter(t, cfg); got != "x" {
			t.Errorf("%s: %q, %v", ticket.Name, got, err)
			return
		}
		<-n.ids
		<-n.handled
	}
	first := a.root.Load().ca
	long := issue(t, a, Request{Name: "long", Reusable: true, TTL: caLife})
	inv := issue(t, a, Request{Name: "inv", TTL: caLife})
	late := issue(t, a, Request{Name: "late", TTL: caLife})
	c.add(caLife - caRenewal - IdentityLife/4)
	must(t, a.Refresh())
	j, err := OpenJoined(filepath.Join(t.TempDir(), "joined"))
	must(t, err)
	defer j.Close()
	join := func(inv *Ticket) *Ticket {
		t.Helper()
		req, err := j.Begin(inv)
		must(t, err)
		cert, err := a.Exchange(inv.Serial, req, "")
		must(t, err)
		own, err := j.Finish(inv, cert)
		must(t, err)
		return own
	}
	own := join(inv)
	if a.root.Load().ca != first || own.CA.NotAfter != first.NotAfter {
		t.Fatal("renewed too early")
	}
	b := openTest(t, dir, c)

	c.add(IdentityLife / 2)
	must(t, a.Refresh())
	must(t, b.Refresh())
	next := a.root.Load().ca
	if !next.NotAfter.Equal(c.now().Add(caLife)) || !next.NotBefore.Equal(first.NotBefore) || !bytes.Equal(next.SubjectKeyId, first.SubjectKeyId) || !b.root.Load().ca.Equal(next) {
		t.Fatalf("%s to %s", next.NotBefore, next.NotAfter)
	}
	enter(long, long.ClientConfig(c.now))
	chain := long.certificate() // as other libraries send it
	chain.Certificate = append(chain.Certificate, first.Raw)
	enter(long, withCert(long.ClientConfig(c.now), chain))
	fresh := issue(t, a, Request{Name: "fresh", Reusable: true, TTL: caLife})
	enter(fresh, fresh.ClientConfig(c.now))
	if got := join(late); !got.CA.Equal(next) {
		t.Error("who joins late does not get the new certificate")
	}
	c.add(IdentityLife / 3)
	req, err := own.Request()
	must(t, err)
	cert, err := a.Renew(own.Serial, req)
	must(t, err)
	if own, err = own.WithCertificate(cert); err != nil || !own.CA.Equal(next) {
		t.Fatalf("renewed: %v", err)
	}
	must(t, j.Save(own))
	other, _ := testCA(t, "net")
	leaf, _, _ := bytes.Cut(cert, []byte("\n-----BEGIN"))
	_, err = own.WithCertificate(append(append(leaf, '\n'), certPEM(other.Raw)...))
	wantCode(t, err, args.CodeBadTicket)

	// The old one has ended, with the tickets that hold it.
	c.add(caRenewal - IdentityLife/2)
	_, err = a.Renew(own.Serial, req)
	wantCode(t, err, args.CodeExpired)
	must(t, a.Refresh())
	enter(fresh, fresh.ClientConfig(c.now))
	if _, err := n.enter(t, long.ClientConfig(c.now)); err == nil || long.Expires.After(first.NotAfter) {
		t.Errorf("a ticket until %s outlives its CA", long.Expires)
	}
	// A node that was off all that time.
	c.add(caLife)
	openTest(t, dir, c)
	must(t, a.Refresh())
}

// TestRevokeIsSeen checks that a revocation is effective here at once, in another
// process at its next check, and after a restart.
func TestRevokeIsSeen(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a, b := openTest(t, dir, c), openTest(t, dir, c)
	var here, there []string
	a.OnRevoke(func(s []string) { here = append(here, s...) })
	b.OnRevoke(func(s []string) { there = append(there, s...) })
	ticket := issue(t, a, Request{Name: "ci", Reusable: true})
	id := &Identity{Name: "ci", Serial: ticket.Serial, Rights: ticket.Rights, Expires: ticket.Expires}
	if err := b.Check(id); err != nil {
		t.Fatal(err)
	}
	a.OnRevoke(func([]string) { // before the disk has it
		wantCode(t, a.Check(id), args.CodeRevoked)
		if err := b.Check(id); err != nil {
			t.Error(err)
		}
	})
	if _, _, err := a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(here, []string{ticket.Serial}) || there != nil {
		t.Errorf("told %v and %v", here, there)
	}
	if err := b.Refresh(); err != nil || !slices.Equal(there, here) {
		t.Errorf("told %v, %v", there, err)
	}
	wantCode(t, b.Check(id), args.CodeRevoked, "ci")
	wantCode(t, openTest(t, dir, c).Check(id), args.CodeRevoked)
}

// TestPruning checks that finished records are dropped by number, and live ones never.
func TestPruning(t *testing.T) {
	c := newClock()
	l := &list{now: c.now}
	var records []Record
	for i := range maxFinished + 10 {
		records = append(records, Record{Serial: fmt.Sprint(i), State: Revoked}, Record{Serial: "live" + fmt.Sprint(i), State: Active, Expires: c.now()})
	}
	kept := l.finish(records)
	if len(kept) != 2*maxFinished+10 || kept[0].Serial != "live0" || kept[len(kept)-2].State != Revoked {
		t.Errorf("%d kept, first %s", len(kept), kept[0].Serial)
	}
}

// TestSeen checks that sightings are shown at once, written soon or at the close, and do
// not undo another process's change.
func TestSeen(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a, b := openTest(t, dir, c), openTest(t, dir, c)
	ticket := issue(t, a, Request{Name: "ci", Reusable: true})
	a.list.saw(ticket.Serial, "h:1")
	if r, err := a.Tickets(); err != nil || r[0].From != "h:1" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, _ := b.Tickets(); r[0].From != "" {
		t.Error("written at once")
	}
	issue(t, b, Request{Name: "two"})
	c.add(time.Second)
	soon := openTest(t, dir, c)
	soon.list.saw(ticket.Serial, "h:2")
	at := c.now()
	soon.Refresh()
	if r, _ := b.Tickets(); r[0].From != "" {
		t.Error("written by the first refresh")
	}
	c.add(seenPause)
	soon.Refresh()
	if r, _ := b.Tickets(); len(r) != 2 || r[0].From != "h:2" || !r[0].Seen.Equal(at) {
		t.Fatalf("%+v", r)
	}
	a.list.saw(ticket.Serial, "h:3")
	c.add(time.Second)
	a.list.saw(ticket.Serial, "h:4")
	a.Close()
	if r, _ := b.Tickets(); r[0].From != "h:4" {
		t.Errorf("%+v", r)
	}
}

// TestRevokeUnwritten checks revocation while the disk is full. The ticket is shut out
// at once, the error warns that this is not permanent, and revoking it again makes it
// permanent.
func TestRevokeUnwritten(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a := openTest(t, dir, c)
	ticket := issue(t, a, Request{Name: "ci", Rights: rights(t, "call:a"), Reusable: true})
	id := &Identity{Name: "ci", Serial: ticket.Serial, Rights: ticket.Rights, Expires: ticket.Expires}
	if err := a.Check(id); err != nil {
		t.Fatal(err)
	}
	var told []string
	a.OnRevoke(func(s []string) { told = append(told, s...) })
	full(t, func() {
		_, _, err := a.Revoke("ci")
		wantCode(t, err, args.CodeStorage, "not permanently yet", "revoke it again")
	})
	if !slices.Equal(told, []string{ticket.Serial}) {
		t.Errorf("told of %q", told)
	}
	wantCode(t, a.Check(id), args.CodeRevoked)
	_, err := a.Standing(ticket.Serial)
	wantCode(t, err, args.CodeRevoked)
	if err := openTest(t, dir, c).Check(id); err != nil {
		t.Errorf("it was written after all: %v", err)
	}
	_, before, err := a.Revoke("ci")
	if err != nil || before.IsZero() {
		t.Errorf("revoked again: %v, %v", before, err)
	}
	wantCode(t, openTest(t, dir, c).Check(id), args.CodeRevoked)
}

// TestListFull checks that a list that tickets have filled still takes their revocation, and
// that this does not wait for others that issue.
func TestListFull(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a := openTest(t, dir, c)
	boss := issue(t, a, Request{Name: "boss", Rights: Rights{Admin: true}, Reusable: true})
	a.list.limit = 16 << 10
	var err error
	for err == nil {
		_, err = a.Issue(boss.Serial, Request{Rights: rights(t, "call:a"), Reusable: true})
	}
	wantCode(t, err, args.CodeStorage, "exceeds the limit of 12288")
	a.list.turn.Lock()
	revoked := make(chan int, 1)
	go func() { // ends with the test
		gone, _, _ := a.Revoke("boss")
		revoked <- len(gone)
	}()
	select {
	case n := <-revoked:
		if n < 10 {
			t.Errorf("revoked %d", n)
		}
	case <-time.After(10 * time.Second):
		t.Error("waits for another's turn")
	}
	a.list.turn.Unlock()
	wantCode(t, openTest(t, dir, c).Check(&Identity{Serial: boss.Serial}), args.CodeRevoked)
}

// full runs f while no file can grow.
func full(t *testing.T, f func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Skip(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_FSIZE, &was)
	f()
}

// TestKilled checks that a writer killed at any moment leaves a readable list with all
// acknowledged changes.
func TestKilled(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	openTest(t, dir, c)
	acknowledged := 0
	for range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TRUST_TEST_WRITER="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		io.ReadFull(out, make([]byte, 10)) // ten changes are on the disk, another is under way
		cmd.Process.Kill()
		rest, _ := io.ReadAll(out)
		cmd.Wait()
		acknowledged += 10 + len(rest)
		r, err := openTest(t, dir, c).Tickets()
		if err != nil || len(r) < acknowledged {
			t.Fatalf("%d records of %d acknowledged, %v", len(r), acknowledged, err)
		}
		acknowledged = len(r) // one more may have been written than acknowledged
	}
	if left, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func writeUntilKilled(dir string) {
	c := newClock()
	a, err := Open(Options{Dir: dir, Network: "net", Now: c.now})
	for err == nil {
		if _, err = a.Issue(LocalUser, Request{Rights: Rights{Call: []string{"a"}}}); err == nil {
			os.Stdout.Write([]byte("."))
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func FuzzList(f *testing.F) {
	data, _ := formatList("net", []Record{{Serial: newSerial(), Name: "a", State: Active, Key: strings.Repeat("0", 64)}})
	_, body, _ := bytes.Cut(data, []byte("\n"))
	f.Add(body)
	f.Add([]byte("[]\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		parseList("net", body)
		records, err := parseList("net", withChecksum(body))
		if err != nil {
			return
		}
		again, err := formatList("net", records)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseList("net", again); err != nil {
			t.Errorf("taken, and not when written again: %v", err)
		}
	})
}

func withChecksum(body []byte) []byte {
	return append(fmt.Appendf(nil, "%s net %x\n", listVersion, sha256.Sum256(body)), body...)
}
