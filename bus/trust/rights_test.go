package trust

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"

	"fbus/bus/args"
)

// TestGlobs checks a table of globs and names; PROTOCOL.md defines the rules.
func TestGlobs(t *testing.T) {
	for _, c := range []struct {
		glob, name string
		want       bool
	}{
		{"*", "wc", true},
		{"*", "a.b-c_D9", true},
		{"*", "fbus", true},
		{"*", "fbusy.x", true},
		{"*", "fbus.invite", false},
		{"*", "fbus.", false},
		{"*.*", "fbus.invite", false},
		{"fbus*", "fbus.invite", false},
		{"f???.*", "fbus.invite", false},
		{"[f]bus.*", "fbus.invite", false},
		{"?bus.invite", "fbus.invite", false},
		{"*invite", "fbus.invite", false},
		{"*", "", false},
		{"*", "a/b", false},
		{"*", "a\nb", false},
		{"*", ".hidden", false},
		{"*", strings.Repeat("x", 129), false},
		{"resize*", "resize", true},
		{"resize*", "resize.png", true},
		{"resize*", "a.resize", false},
		{"resize", "resize2", false},
		{"resize", "Resize", false},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"a.c", "abc", false},
		{"[a-c]x", "bx", true},
		{"[a-c]x", "dx", false},
		{"[^a-c]x", "dx", true},
		{"[^a-c]x", "ax", false},
		{"img[0-9]*", "img7.big", true},
		{"*-*", "a-b", true},
		{"z-a[a-az-z]", "z-az", true},
		{"a*b*c", "axxbyyc", true},
		{"a*b*c", "axxbyy", false},
	} {
		if err := CheckGlob(c.glob); err != nil {
			t.Errorf("CheckGlob(%q): %v", c.glob, err)
		}
		if got := (Rights{Call: []string{c.glob}}).MayCall(c.name); got != c.want {
			t.Errorf("call %q: %q: got %v", c.glob, c.name, got)
		}
		if got := (Rights{Offer: []string{c.glob}}).MayOffer(c.name); got != c.want {
			t.Errorf("offer %q: %q: got %v", c.glob, c.name, got)
		}
	}
}

// TestBadGlobs checks that each is refused with a hint that suggests a correction.
func TestBadGlobs(t *testing.T) {
	for glob, hint := range map[string]string{
		"":                       "every function",
		"fbus.*":                 "--admin",
		"fbus.invite":            "--admin",
		"--offer":                "before a flag",
		".x":                     "before a flag",
		"[!a]":                   "[^...]",
		"{a,b}":                  "one right for each",
		"a,b":                    "one right for each",
		"a b":                    "a glob has letters",
		"a/b":                    "a glob has letters",
		`a\*`:                    "a glob has letters",
		"ä":                      "a glob has letters",
		"a\x00":                  "a glob has letters",
		"[a":                     "closed",
		"[]":                     "closed",
		"[a-]":                   "closed",
		"[z-a]":                  "low to high",
		"x[^a-c0_-Z].[b]*":       "low to high",
		strings.Repeat("a", 129): "longer",
	} {
		var e *args.Error
		if err := CheckGlob(glob); !errors.As(err, &e) || e.Code != args.CodeBadRight || !strings.Contains(e.Hint, hint) {
			t.Errorf("CheckGlob(%q) = %v, hint wants %q", glob, e, hint)
		}
	}
}

// TestRights checks that each right allows its functions and nothing else.
func TestRights(t *testing.T) {
	call := Rights{Call: []string{"a"}}
	if !call.MayCall("a") || call.MayCall("b") || call.MayOffer("a") || call.MayCall("fbus.invite") {
		t.Error("call a")
	}
	offer := Rights{Offer: []string{"*"}}
	if offer.MayCall("a") || !offer.MayOffer("a") || offer.MayOffer("fbus.x") {
		t.Error("offer *")
	}
	admin := Rights{Admin: true}
	if !admin.MayCall("fbus.invite") || admin.MayCall("a") || admin.MayOffer("fbus.x") || admin.MayOffer("a") || admin.MayCall("fbus.\n") {
		t.Error("admin")
	}
	relay := Rights{Relay: true}
	if relay.MayCall("fbus.invite") || relay.MayCall("a") || relay.MayOffer("a") || relay.Empty() || relay.Equal(Rights{}) || relay.Equal(Rights{Admin: true, Monitor: true}) {
		t.Error("relay")
	}
	if (Rights{}).MayCall("a") || !(Rights{}).Empty() || (Rights{}).String() != "nothing" {
		t.Error("zero value")
	}
	r := Rights{Call: []string{"b", "a", "b"}, Relay: true, Monitor: true, Offer: []string{"o"}, Admin: true}
	if got := r.String(); got != "admin, call a, call b, monitor, offer o, relay" {
		t.Errorf("String: %q", got)
	}
	if !r.Equal(Rights{Call: []string{"a", "b"}, Offer: []string{"o"}, Monitor: true, Relay: true, Admin: true}) || r.Equal(call) {
		t.Error("Equal")
	}
	for _, bad := range []string{"", "call", "admin:x", "relay:x", "join", "name:x", "root", "call:fbus.*", "CALL:a"} {
		if _, err := ParseRights(bad); !errors.Is(err, &args.Error{Code: args.CodeBadRight}) {
			t.Errorf("ParseRights(%q): %v", bad, err)
		}
	}
	if _, err := ParseRights(strings.Split(strings.Repeat("call:a ", 65), " ")[:65]...); err == nil {
		t.Error("65 rights were taken")
	}
	data, err := json.Marshal(r)
	var back Rights
	if err != nil || json.Unmarshal(data, &back) != nil || !back.Equal(r) {
		t.Errorf("JSON: %s %v", data, err)
	}
}

// TestNames checks that every glob survives the certificate's URI names, in the one
// documented spelling.
func TestNames(t *testing.T) {
	n := names{name: "ci-2.a_b", rights: Rights{Call: []string{"re?ize*", "[^a-c]x"}, Offer: []string{"*"}, Relay: true, Admin: true}}
	want := "fbus:name:ci-2.a_b fbus:admin fbus:call:%5B%5Ea-c%5Dx fbus:call:re%3Fize* fbus:offer:* fbus:relay"
	var got []string
	var read []*url.URL
	for _, u := range n.uris() {
		got = append(got, u.String())
		back, err := url.Parse(u.String())
		if err != nil {
			t.Fatal(err)
		}
		read = append(read, back)
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %s", s)
	}
	back, err := parseNames(read)
	if err != nil || back.name != n.name || back.join || !back.rights.Equal(n.rights) {
		t.Errorf("%+v, %v", back, err)
	}
}

// TestBadNames checks that invalid names from a foreign CA are refused and not guessed
// at.
func TestBadNames(t *testing.T) {
	for _, c := range []string{
		"", "https://example.com/fbus:name:x", "fbus:call:*", "fbus:name:", "fbus:name:a fbus:name:b", "fbus:name:a%0Ab",
		"fbus:name:a fbus:call:a?", "fbus:name:a fbus:call:a?b", "fbus:name:a fbus:call:a#b", "fbus:name:a fbus:root", "fbus:name:a fbus:call",
		"fbus:name:a fbus:call:%zz", "fbus:name:a fbus:call:fbus.*", "fbus:name:a fbus:admin:x", "fbus://name/a", "fbus:name:a fbus:join:x",
		"fbus:name:0123456789abcdef0123456789abcdef", "fbus:name:%61lice", "fbus:name:a fbus:call:%72esize", "fbus:name:a fbus:call:a%2a",
		"fbus:name:a fbus:call:%5ba-c%5D", "fbus:name:a fbus:call:[a-c]",
	} {
		var uris []*url.URL
		for _, s := range strings.Fields(c) {
			u, err := url.Parse(s)
			if err != nil { // x509 refuses such a certificate
				continue
			}
			uris = append(uris, u)
		}
		if n, err := parseNames(uris); err == nil {
			t.Errorf("%q: taken as %+v", c, n)
		}
	}
	u, _ := url.Parse("fbus:call:resize*")
	v, _ := url.Parse("FBUS:name:a")
	if n, err := parseNames([]*url.URL{u, v}); err != nil || !n.rights.MayCall("resize1") {
		t.Errorf("a scheme in upper case: %+v, %v", n, err)
	}
}

func FuzzRight(f *testing.F) {
	f.Add("call:a*", "abc")
	f.Add("offer:[^a-z]?", "fbus.x")
	f.Fuzz(func(t *testing.T, word, name string) {
		r, err := ParseRights(word)
		if err != nil {
			return
		}
		if strings.HasPrefix(name, "fbus.") && (r.MayOffer(name) || r.MayCall(name) && !r.Admin) {
			t.Errorf("%q reaches %q", word, name)
		}
		ca, key := testCA(t, "net")
		cert := testLeaf(t, ca, key, func(c *x509.Certificate) { c.URIs = names{name: "a", rights: r}.uris() })
		if n, err := parseNames(cert.Leaf.URIs); err != nil || !n.rights.Equal(r) {
			t.Errorf("%q came back as %v, %v", word, n.rights, err)
		}
	})
}

// TestBothRights: what two rights have in common; of two globs the narrower.
func TestBothRights(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{
		{"call:*", "call:w*,call:b", "call:b call:w*"},
		{"call:w*", "call:*", "call:w*"},
		{"call:who,call:what", "call:w*", "call:what call:who"},
		{"call:who", "call:b", ""},
		{"call:a[bc]", "call:ab,call:ad", "call:ab"},
		{"call:who*", "call:w*", "call:who*"},
		{"call:a*z", "call:a*y", "call:a*y"},
		{"call:a*", "call:b*", ""},
		{"offer:*", "call:*", ""},
		{"admin", "monitor", "monitor"},
		{"monitor", "admin,relay", "monitor"},
		{"admin,relay", "admin", "admin"},
	} {
		a, b := rights(t, strings.Split(c.a, ",")...), rights(t, strings.Split(c.b, ",")...)
		if got := strings.Join(a.And(b).Words(), " "); got != c.want {
			t.Errorf("%s and %s: %q, not %q", c.a, c.b, got, c.want)
		}
	}
}
