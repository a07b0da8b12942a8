package trust

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus/args"
)

// TestToken checks that a token is known by its text alone, which the list does not have, until
// it is revoked or expires.
func TestToken(t *testing.T) {
	dir, c := privateTemp(t), newClock()
	a := openTest(t, dir, c)
	q := Request{Name: "ci", Rights: rights(t, "call:a", "monitor")}
	text, r, err := a.IssueToken(LocalUser, q)
	if err != nil || !wellFormedToken(text) || len(text) != 53 || r.Expires.Sub(r.Issued) != DefaultReusableTTL {
		t.Fatalf("%q, %+v, %v", text, r, err)
	}
	list, err := os.ReadFile(filepath.Join(dir, listName))
	if err != nil || bytes.Contains(list, []byte(text[5:20])) || !bytes.Contains(list, []byte(hashToken(text))) {
		t.Errorf("the list is %s, %v", list, err)
	}
	got, err := a.Token(text, "gateway")
	if err != nil || got.Serial != r.Serial || got.Name != "ci" || !got.Rights.Equal(q.Rights) || named(a, "ci") != r.Serial {
		t.Errorf("%+v, %v", got, err)
	}
	again := openTest(t, dir, c) // from the file
	if _, err := again.Token(text, ""); err != nil {
		t.Error(err)
	}

	other, wrong := newToken(), "A"
	if strings.HasSuffix(text, wrong) {
		wrong = "B"
	}
	_, err = a.Token(other, "")
	wantCode(t, err, args.CodeUnlisted, "not on the list")
	for _, typo := range []string{"", text[:52], text + "A", text[1:], text[:52] + wrong, strings.ToLower(text)} {
		_, err = a.Token(typo, "")
		wantCode(t, err, args.CodeUnlisted, "not a token", "cut short")
		if err != nil && len(typo) > 20 && strings.Contains(err.Error()+err.(*args.Error).Hint, typo[10:20]) {
			t.Errorf("%v shows the token", err)
		}
	}

	_, err = a.TokenNamed("nobody")
	wantCode(t, err, args.CodeUnlisted, "there is no token nobody")
	_, _, err = a.IssueToken(LocalUser, q)
	wantCode(t, err, args.CodeNameTaken, "token ci exists already", "fbus revoke ci")
	_, err = a.Issue(LocalUser, q)
	wantCode(t, err, args.CodeNameTaken, "token ci exists already")
	if _, _, err := a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	_, err = a.Token(text, "")
	wantCode(t, err, args.CodeRevoked, "token ci was revoked")
	_, err = again.Token(text, "")
	wantCode(t, err, args.CodeRevoked)
	_, err = a.TokenNamed("ci")
	wantCode(t, err, args.CodeRevoked, "token ci was revoked")

	q.TTL = time.Hour
	text, _, err = a.IssueToken(LocalUser, q)
	if err != nil {
		t.Fatal(err)
	}
	start := c.now()
	c.add(59 * time.Minute)
	if _, err := a.Token(text, ""); err != nil || a.TokenExpired(start, c.now()) {
		t.Error("expired too soon", err)
	}
	c.add(2 * time.Minute)
	_, err = a.Token(text, "")
	wantCode(t, err, args.CodeExpired, "token ci expired")
	_, err = a.TokenNamed("ci")
	wantCode(t, err, args.CodeExpired, "token ci expired")
	if !a.TokenExpired(start, c.now()) || a.TokenExpired(c.now(), c.now()) || named(a, "ci") != "" {
		t.Error("its expiry is not noted once")
	}
}

// TestTokenChecks checks what a token cannot have, and that it is revoked with the ticket that it
// was issued with.
func TestTokenChecks(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	call := rights(t, "call:a")
	for what, q := range map[string]Request{
		"nothing": {}, "offers": {Rights: rights(t, "offer:a")}, "admin": {Rights: rights(t, "call:a", "admin")}, "relay": {Rights: rights(t, "call:a", "relay")},
		"reusable": {Rights: call, Reusable: true}, "uses": {Rights: call, Uses: 1}, "ephemeral": {Rights: call, Ephemeral: true},
		"addresses": {Rights: call, Addresses: []string{"a:1"}}, "name": {Rights: call, Name: "a b"}, "ttl": {Rights: call, TTL: time.Second},
	} {
		if text, _, err := a.IssueToken(LocalUser, q); err == nil || text != "" {
			t.Errorf("%s: %q", what, text)
		} else {
			wantCode(t, err, args.CodeBadRight)
		}
	}
	boss := issue(t, a, Request{Name: "boss", Rights: rights(t, "admin"), Reusable: true})
	text, r, err := a.IssueToken(boss.Serial, Request{Rights: call})
	if err != nil || !strings.HasPrefix(r.Name, "token-") {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, _, err := a.Revoke("boss"); err != nil {
		t.Fatal(err)
	}
	_, err = a.Token(text, "")
	wantCode(t, err, args.CodeRevoked)
}

// TestFirst checks that an identity is known by its first serial over all renewals, also when the
// list has dropped that, and that another one of the same name has another.
func TestFirst(t *testing.T) {
	c := newClock()
	dir := privateTemp(t)
	a := openTest(t, dir, c)
	inv := issue(t, a, Request{Name: "box"})
	req, _ := request(t)
	cert, err := a.Exchange(inv.Serial, req, "")
	if err != nil {
		t.Fatal(err)
	}
	first := serialText(parseOne(t, cert).SerialNumber)
	began := c.now()
	for serial := first; c.now().Sub(began) < 3*IdentityLife; {
		c.add(IdentityLife * 3 / 4)
		if cert, err = a.Renew(serial, req); err != nil {
			t.Fatal(err)
		}
		serial = serialText(parseOne(t, cert).SerialNumber)
		table := a.list.current.Load()
		if got, since := table.first(table.get(serial)); got != first || serial == first || !since.Equal(began) {
			t.Errorf("it was %s at first, since %s, not %s, since %s", got, since, first, began)
		}
	}
	err = a.list.update(func(t *table) (bool, error) {
		t.records = t.records[len(t.records)-1:]
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	table := openTest(t, dir, c).list.current.Load()
	if got, _ := table.first(&table.records[0]); got != first || len(table.records) != 1 {
		t.Errorf("it was %s at first, not %s, in %+v", got, first, table.records)
	}
	if _, _, err := a.Revoke("box"); err != nil {
		t.Fatal(err)
	}
	next := issue(t, a, Request{Name: "box", Reusable: true})
	table = a.list.current.Load()
	if got, since := table.first(table.get(next.Serial)); got != next.Serial || !since.Equal(c.now()) {
		t.Errorf("another of the name was %s at first", got)
	}
}

// named returns the serial of the valid token of that name; "": there is none.
func named(a *Authority, name string) string {
	r, err := a.TokenNamed(name)
	if err != nil {
		return ""
	}
	return r.Serial
}
