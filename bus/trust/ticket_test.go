package trust

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus/args"
)

// TestTicketText checks that Format's output is readable by a person and by ParseTicket.
func TestTicketText(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	addrs := []string{"10.0.0.1:10101", "[2001:db8::1]:10101", "node.example:1"}
	for _, reusable := range []bool{true, false} {
		made := issue(t, a, Request{Rights: rights(t, "call:resize*", "offer:[a-c]?"), Reusable: reusable, Addresses: addrs})
		text, err := made.Format()
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{
			"network: net", "name: " + made.Name, "rights: call resize*, offer [a-c]?", "expires: " + stamp(made.Expires),
			"serial: " + made.Serial, "server name: net.fbus.invalid", "address: [2001:db8::1]:10101",
		} {
			if !strings.Contains(string(text), "\n"+line+"\n") {
				t.Errorf("lacks the line %q:\n%s", line, text)
			}
		}
		back, err := ParseTicket(text)
		if err != nil {
			t.Fatal(err)
		}
		if back.Network != "net" || back.Name != made.Name || back.Joining == reusable || back.Serial != made.Serial ||
			!back.Expires.Equal(made.Expires) || !slices.Equal(back.Addresses, addrs) || reusable && !back.Rights.Equal(made.Rights) || !reusable && !back.Rights.Empty() {
			t.Errorf("%+v", back)
		}
		path := filepath.Join(t.TempDir(), "t")
		must(t, os.WriteFile(path, text, 0o600))
		for _, from := range []string{path, string(text)} {
			if back, err := ReadTicket(from, "T"); err != nil || back.Serial != made.Serial {
				t.Errorf("%v, %v", back, err)
			}
		}
	}
}

// TestTicketComments checks that editing the comments changes only the dialled
// addresses.
func TestTicketComments(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	made := issue(t, a, Request{Name: "ci", Reusable: true})
	text, _ := made.Format()
	text = bytes.Replace(text, []byte("rights: call a"), []byte("rights: admin\naddress: x:1\naddress: bad\nnetwork: other"), 1)
	text = bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")) // as a mailer may do
	back, err := ParseTicket(append(text, "address: late:1\n"...))
	if err != nil || back.Rights.Admin || back.Network != "net" || !slices.Equal(back.Addresses, []string{"x:1"}) {
		t.Errorf("%+v, %v", back, err)
	}
}

// TestTicketLineEnds checks that line ends, and a cut after the last line, do not change
// the ticket.
func TestTicketLineEnds(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	made := issue(t, a, Request{Name: "ci", Reusable: true, Addresses: []string{"h:1", "h:2"}})
	plain, _ := made.Format()
	text := strings.TrimRight(string(plain), "\n")
	windows := strings.ReplaceAll(text, "\n", "\r\n")
	for what, text := range map[string]string{
		"LF": text + "\n", "no end": text, "CRLF": windows + "\r\n", "CRLF, no end": windows, "CRLF, a CR at the end": windows + "\r",
		"CR": strings.ReplaceAll(text, "\n", "\r"), "LF, a CR at the end": text + "\r", "twice": strings.ReplaceAll(windows, "\r", "\r\r") + "\r",
	} {
		back, err := ReadTicket(text, "T")
		if err != nil || back.Serial != made.Serial || !slices.Equal(back.Addresses, made.Addresses) {
			t.Errorf("%s: %+v, %v", what, back, err)
		}
	}
}

// TestTicketInOneLine checks the forms of a ticket that fit a variable.
func TestTicketInOneLine(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	made := issue(t, a, Request{Name: "ci", Reusable: true, Addresses: []string{"h:1", "h:2"}})
	plain, _ := made.Format()
	text := string(plain)
	written := strings.ReplaceAll(text, "\n", `\n`)
	quoted, _ := json.Marshal(text)
	std := base64.StdEncoding.EncodeToString(plain)
	if back, err := ParseTicket([]byte(strings.ReplaceAll(text, "\n", ""))); err != nil || back.Serial != made.Serial {
		t.Errorf("without line ends: %v", err) // its addresses cannot be told apart
	}
	for what, text := range map[string]string{
		"base64": std, "wrapped": std[:76] + "\n" + std[76:152] + "\r\n" + std[152:] + "\n", "URL": base64.RawURLEncoding.EncodeToString(plain),
		`\n`: written, `\r\n`: strings.ReplaceAll(written, `\n`, `\r\n`), "quoted": string(quoted) + "\n", "of a line": base64.StdEncoding.EncodeToString([]byte(written)),
		"spaces": strings.ReplaceAll(text, "\n", " "), "quoted spaces": `"` + strings.ReplaceAll(text, "\n", " ") + `"`,
		"BOM": "\ufeff" + std, "Windows": base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(text, "\n", "\r\n"))),
	} {
		path := filepath.Join(t.TempDir(), "t")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		for _, from := range []string{path, text} {
			back, err := ReadTicket(from, "T")
			if err != nil || back.Serial != made.Serial || !slices.Equal(back.Addresses, made.Addresses) {
				t.Errorf("%s: %+v, %v", what, back, err)
			}
		}
	}
}

// TestNotTickets checks that each error names the problem.
func TestNotTickets(t *testing.T) {
	a := openTest(t, privateTemp(t), newClock())
	one, two := issue(t, a, Request{Reusable: true}), issue(t, a, Request{Reusable: true})
	otherCA, otherKey := testCA(t, "net")
	node, _ := a.NodeCertificate(nil)
	key := func(k any) string { p, _ := keyPEM(k); return string(p) }
	cert := func(der []byte) string { return string(certPEM(der)) }
	ca, leaf := cert(a.root.Load().ca.Raw), cert(one.Leaf.Raw)
	below := testLeaf(t, two.Leaf, two.Key.(*ecdsa.PrivateKey), nil)
	noName := testLeaf(t, otherCA, otherKey, nil)
	noName.Leaf.URIs = nil
	for what, c := range map[string]struct{ text, want string }{
		"empty":          {"", "no PEM block"},
		"words":          {"hello\nworld", "no PEM block"},
		"public only":    {leaf + ca, "no key"},
		"key only":       {key(one.Key), "must have two certificates"},
		"no CA":          {leaf + key(one.Key), "must have two certificates"},
		"no leaf":        {ca + key(one.Key), "must have two certificates"},
		"two CAs":        {leaf + key(one.Key) + ca + ca, "two CAs"},
		"two leaves":     {leaf + cert(two.Leaf.Raw) + key(one.Key) + ca, "two certificates"},
		"a leaf as CA":   {cert(below.Leaf.Raw) + key(below.PrivateKey) + cert(two.Leaf.Raw) + ca, "not signed by a CA"},
		"under a leaf":   {cert(below.Leaf.Raw) + key(below.PrivateKey) + ca, `, not by the CA in the ticket, of "net"`},
		"two keys":       {leaf + key(one.Key) + key(two.Key) + ca, "two keys"},
		"another's key":  {leaf + key(two.Key) + ca, "key is not that"},
		"another CA":     {leaf + key(one.Key) + cert(otherCA.Raw), "not by the CA in the ticket"},
		"the node's":     {cert(node.Certificate[0]) + key(node.PrivateKey) + ca, "not for clients"},
		"the CA's own":   {ca + key(a.key), "must have two certificates"},
		"encrypted":      {leaf + "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n" + ca, "not encrypted"},
		"bad key":        {leaf + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n" + ca, "malformed"},
		"bad cert":       {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "malformed"},
		"too long":       {strings.Repeat("x", maxTicket+1), "limit"},
		"CA key as leaf": {cert(otherCA.Raw) + key(otherKey), "must have two certificates"},
	} {
		_, err := ParseTicket([]byte(c.text))
		if err == nil || !strings.Contains(err.Error()+err.(*args.Error).Hint, c.want) {
			t.Errorf("%s: got %v, want %q", what, err, c.want)
		}
	}
	_, err := ReadTicket(filepath.Join(t.TempDir(), "none"), "T")
	wantCode(t, err, args.CodeBadTicket, "T is neither")
	for _, secret := range []string{strings.Repeat("TUlH", 1000), "x\ny", "s3cret"} {
		if _, err := ReadTicket(secret, "T"); err == nil || err.Error() != "T is neither a file nor a ticket" {
			t.Errorf("%.10s: %v", secret, err)
		}
	}
	_, err = ReadTicket(t.TempDir(), "T")
	wantCode(t, err, args.CodeBadTicket, "directory")
}

// TestJoin checks that the key is on the disk before the request, that beginning again
// keeps it, and that the stored identity can be used and renewed.
func TestJoin(t *testing.T) {
	c := newClock()
	a := openTest(t, privateTemp(t), c)
	made := issue(t, a, Request{Name: "box", Rights: rights(t, "offer:r*"), Addresses: []string{"h:1"}})
	text, _ := made.Format()
	inv, err := ParseTicket(text)
	must(t, err)
	dir := privateTemp(t)
	j, err := OpenJoined(dir)
	must(t, err)
	defer j.Close()
	req, err := j.Begin(inv)
	must(t, err)
	_, err = a.Exchange(inv.Serial, req, "") // the reply is lost
	must(t, err)
	j2, err := OpenJoined(dir)
	must(t, err)
	defer j2.Close()
	req, err = j2.Begin(inv)
	must(t, err)
	cert, err := a.Exchange(inv.Serial, req, "")
	must(t, err)
	if _, err := j2.Finish(inv, []byte("no")); err == nil {
		t.Error("took an answer that is no certificate")
	}
	if _, err := j2.Finish(inv, certPEM(inv.Leaf.Raw)); err == nil {
		t.Error("took the invitation for an identity")
	}
	own, err := j2.Finish(inv, cert)
	must(t, err)
	if own.Joining || own.Name != "box" || own.Rights.String() != "offer r*" || !slices.Equal(own.Addresses, []string{"h:1"}) {
		t.Errorf("%+v", own)
	}
	if names, _ := j2.dir.list(); !slices.Equal(names, []string{lockName, "net.pem"}) {
		t.Errorf("kept: %v", names)
	}
	if st, _ := os.Stat(dir + "/net.pem"); st.Mode().Perm() != 0o600 {
		t.Error(st.Mode())
	}
	testRenewJoined(t, a, j2, c)
	if ids, err := j.Networks(); err != nil || !slices.Equal(ids, []string{"net"}) {
		t.Errorf("%v, %v", ids, err)
	}
	must(t, j.Remove("net"))
	_, err = j.Load("net")
	wantCode(t, err, args.CodeNoTicket, "fbus join")
	wantCode(t, j.Remove("net"), args.CodeNoTicket)
}

func testRenewJoined(t *testing.T, a *Authority, j *Joined, c *clock) {
	own, err := j.Load("net")
	must(t, err)
	if own.RenewalDue(c.now()) {
		t.Error("to be renewed at once")
	}
	c.add(IdentityLife * 3 / 4)
	if !own.RenewalDue(c.now()) {
		t.Error("not to be renewed")
	}
	req, err := own.Request()
	must(t, err)
	cert, err := a.Renew(own.Serial, req)
	must(t, err)
	next, err := own.WithCertificate(cert)
	must(t, err)
	must(t, j.Save(next))
	if kept, err := j.Load("net"); err != nil || kept.Serial == own.Serial || kept.RenewalDue(c.now()) {
		t.Errorf("%+v, %v", kept, err)
	}
}

// TestJoinRefusals checks that another network of the same name does not replace the
// joined one, and that other texts cannot be joined.
func TestJoinRefusals(t *testing.T) {
	c := newClock()
	a, b := openTest(t, privateTemp(t), c), openTest(t, privateTemp(t), c)
	j, err := OpenJoined(privateTemp(t))
	must(t, err)
	defer j.Close()
	reusable := issue(t, a, Request{Reusable: true, TTL: time.Hour})
	must(t, j.Save(reusable))
	_, err = j.Begin(reusable)
	wantCode(t, err, args.CodeWrongUse)
	_, err = j.Begin(issue(t, b, Request{}))
	wantCode(t, err, args.CodeOtherNetwork, "remove")
	wantCode(t, j.Save(issue(t, b, Request{Reusable: true})), args.CodeOtherNetwork)
	wantCode(t, j.Save(issue(t, a, Request{})), args.CodeWrongUse, "fbus join")
	_, err = j.Load("../net")
	wantCode(t, err, args.CodeUsage)
	must(t, os.WriteFile(j.dir.join("net.pem"), []byte("hello"), 0o600))
	_, err = j.Load("net")
	wantCode(t, err, args.CodeDamaged, "join again")
}

func FuzzTicket(f *testing.F) {
	a := openTest(f, privateTemp(f), newClock())
	made := issue(f, a, Request{Reusable: true, Addresses: []string{"h:1"}})
	text, _ := made.Format()
	f.Add(text)
	inv := issue(f, a, Request{})
	text, _ = inv.Format()
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseTicket(text)
		if err != nil {
			return
		}
		again, err := got.Format()
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseTicket(again)
		if err != nil || back.Serial != got.Serial || !slices.Equal(back.Addresses, got.Addresses) {
			t.Errorf("%+v, %v", back, err)
		}
	})
}
