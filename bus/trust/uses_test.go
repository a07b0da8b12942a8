package trust

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"fbus/bus/args"
)

// joins exchanges an invitation for a new key, and returns the identity's name and serial.
func joins(t *testing.T, a *Authority, inv *Ticket, from string) (name, serial string, req []byte) {
	t.Helper()
	req, _ = request(t)
	cert, err := a.Exchange(inv.Serial, req, from)
	if err != nil {
		t.Fatal(err)
	}
	if name, err = CertificateName(cert); err != nil {
		t.Fatal(err)
	}
	serial, _, _ = CertificateEnd(cert)
	return name, serial, req
}

// TestUses checks that an invitation admits as many keys as it says, each under a name of
// its own, over restarts, and that revoking it revokes them all.
func TestUses(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a := openTest(t, dir, c)
	inv := issue(t, a, Request{Name: "farm", Uses: 3, TTL: time.Hour})
	issue(t, a, Request{Name: "farm-2", Reusable: true})
	one, serial, req := joins(t, a, inv, "10.0.0.1:9")
	a.Close()
	a = openTest(t, dir, c)
	two, _, _ := joins(t, a, inv, "10.0.0.2:9")
	if again, err := a.Exchange(inv.Serial, req, ""); err != nil || parseOne(t, again).SerialNumber.Text(16) == "" {
		t.Errorf("the same key again: %v", err)
	} else if s, _, _ := CertificateEnd(again); s != serial {
		t.Error("the same key got another identity")
	}
	if err := a.Unused(inv.Serial); err != nil {
		t.Error(err)
	}
	three, _, _ := joins(t, a, inv, "10.0.0.3:9")
	if got := fmt.Sprint(one, two, three); got != fmt.Sprint("farm-1", "farm-3", "farm-4") {
		t.Errorf("the identities are %s", got)
	}
	fourth, _ := request(t)
	_, err := a.Exchange(inv.Serial, fourth, "")
	wantCode(t, err, args.CodeUsed, "3 times", "10.0.0.3:9")
	wantCode(t, a.Unused(inv.Serial), args.CodeUsed)
	records, err := a.Tickets()
	if err != nil || records[0].Uses != 3 || records[0].Used != 3 || records[0].State != Burnt || records[2].Via != inv.Serial {
		t.Errorf("%+v, %v", records, err)
	}

	// One identity is revoked alone, for its key too; then all of them.
	if gone, _, err := a.Revoke(one); err != nil || len(gone) != 1 {
		t.Errorf("%v, %v", gone, err)
	}
	_, err = a.Exchange(inv.Serial, req, "")
	wantCode(t, err, args.CodeRevoked)
	if gone, _, err := a.Revoke("farm"); err != nil || len(gone) != 3 { // the invitation and two
		t.Errorf("%v, %v", gone, err)
	}
}

// TestUsesRefused checks requests that make no sense.
func TestUsesRefused(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	long := "a123456789b123456789c123456789d123456789e123456789f123456789ab"
	for _, q := range []Request{
		{Uses: -1}, {Uses: maxLive + 1}, {Uses: 2, Reusable: true}, {Uses: 1, Reusable: true}, {Ephemeral: true, Reusable: true}, {Name: long, Uses: 10},
	} {
		q.Rights = rights(t, "call:a")
		_, err := a.Issue(LocalUser, q)
		wantCode(t, err, args.CodeBadRight)
	}
	if inv := issue(t, a, Request{Name: long, Uses: 9}); inv.Uses != 9 {
		t.Error(inv.Uses)
	}
}

// TestEphemeral checks that an ephemeral identity goes after an hour without a connection,
// which also counts over restarts, and not before.
func TestEphemeral(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a := openTest(t, dir, c)
	inv := issue(t, a, Request{Name: "ci", Uses: 5, Ephemeral: true, TTL: 24 * time.Hour})
	_, away, _ := joins(t, a, inv, "")
	_, here, _ := joins(t, a, inv, "")
	other := issue(t, a, Request{Name: "stays", TTL: 24 * time.Hour})
	_, stays, _ := joins(t, a, other, "")
	live := func() (serials []string) {
		t.Helper()
		records, err := a.Tickets()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if r.State == Active {
				serials = append(serials, r.Serial)
			}
		}
		return serials
	}
	drop := func(connected string, want int) {
		t.Helper()
		gone, err := a.DropAbsent(map[string]int{connected: 1})
		if err != nil || len(gone) != want {
			t.Fatalf("%v have gone, %v", gone, err)
		}
	}
	told := 0
	a.OnRevoke(func([]string) { told++ })
	for range 59 {
		c.add(time.Minute)
		drop(here, 0)
	}
	a.Left(here)
	c.add(time.Minute)
	drop("", 1) // away, which never connected
	if got := live(); len(got) != 2 || got[0] != here || got[1] != stays || told != 1 {
		t.Errorf("%q are left, %d told", got, told)
	}
	wantCode(t, a.Check(&Identity{Name: "ci-1", Serial: away, Rights: rights(t, "call:a")}), args.CodeUnlisted, "ephemeral")

	// The hour goes on while the node is down, but there is time to connect again after that.
	a.Close()
	c.add(10 * time.Hour)
	a = openTest(t, dir, c)
	c.add(9 * time.Minute)
	drop("", 0)
	drop(here, 0)
	c.add(59 * time.Minute)
	drop("", 0)
	a.Close()
	a = openTest(t, dir, c)
	c.add(10 * time.Minute)
	drop("", 1)
	if got := live(); len(got) != 1 || got[0] != stays {
		t.Errorf("%q are left", got)
	}
	// The machine may join again, with a use that is left.
	if name, _, _ := joins(t, a, inv, ""); name != "ci-3" {
		t.Errorf("it is %s now", name)
	}
}

// TestEphemeralIssuer checks that an identity with live tickets of its own stays on the
// list, to be revoked with them.
func TestEphemeralIssuer(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	inv := issue(t, a, Request{Name: "boss", Ephemeral: true, Rights: rights(t, "admin")})
	_, boss, _ := joins(t, a, inv, "")
	issueBy(t, a, boss, Request{Name: "child", Reusable: true})
	c.add(2 * time.Hour)
	if gone, err := a.DropAbsent(nil); err != nil || len(gone) != 0 {
		t.Errorf("%v, %v", gone, err)
	}
	if gone, _, err := a.Revoke("boss"); err != nil || len(gone) != 3 {
		t.Errorf("%v, %v", gone, err)
	}
}

// TestEphemeralRenewed checks that all certificates of an identity go together.
func TestEphemeralRenewed(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	inv := issue(t, a, Request{Name: "ci", Ephemeral: true})
	_, first, req := joins(t, a, inv, "")
	c.add(IdentityLife * 3 / 4)
	if gone, err := a.DropAbsent(map[string]int{first: 1}); err != nil || len(gone) > 0 {
		t.Fatal(gone, err)
	}
	if _, err := a.Renew(first, req); err != nil {
		t.Fatal(err)
	}
	c.add(30 * time.Minute)
	a.Left(first)
	c.add(59 * time.Minute)
	if gone, err := a.DropAbsent(nil); err != nil || len(gone) != 0 {
		t.Errorf("%v, %v", gone, err)
	}
	c.add(time.Minute)
	if gone, err := a.DropAbsent(nil); err != nil || len(gone) != 2 {
		t.Errorf("%v, %v", gone, err)
	}
}

// TestUsesRace checks that exactly as many of many concurrent keys win as the invitation has
// uses, each under another name.
func TestUsesRace(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	as := []*Authority{openTest(t, dir, c), openTest(t, dir, c)} // as two processes
	inv := issue(t, as[0], Request{Name: "farm", Uses: 5})
	names := make([]string, 12)
	var wg sync.WaitGroup
	for i := range names {
		req, _ := request(t)
		wg.Go(func() {
			cert, err := as[i%2].Exchange(inv.Serial, req, "")
			if err == nil {
				names[i], err = CertificateName(cert)
			}
			if err != nil && !errors.Is(err, &args.Error{Code: args.CodeUsed}) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(names)
	if got := slices.Compact(names); fmt.Sprint(got) != "[ farm-1 farm-2 farm-3 farm-4 farm-5]" {
		t.Errorf("%q", got)
	}
}
