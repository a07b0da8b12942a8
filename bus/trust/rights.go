package trust

import (
	"cmp"
	"encoding/json"
	"path"
	"slices"
	"strings"

	"fbus/bus/args"
)

// Rights are the permissions of a ticket's holder. The zero value allows nothing.
//
// A glob matches whole function names: * is any run of characters, ? any one, [a-z0-9]
// one of a class, [^a-z] one outside it. Other characters are literal. No glob matches a
// name that begins with fbus., which are the node's own functions. Those need Admin,
// except for functions that the node opens to every caller. Nobody may offer them.
type Rights struct {
	Call, Offer []string // globs
	Admin       bool     // may call fbus.*; does not affect other functions
	Monitor     bool     // may see what others do, and change nothing; Admin contains it
	Relay       bool     // may make calls for others, under their names; nothing contains it
}

const (
	maxGlob   = 128 // as long as a function name
	maxRights = 64  // per ticket: a certificate has to stay small

	ownPrefix = "fbus." // of the node's own functions
)

// ParseRights parses the words of [Rights.Words]: call:GLOB, offer:GLOB, admin, monitor,
// relay.
func ParseRights(words ...string) (Rights, error) {
	var r Rights
	for _, w := range words {
		kind, glob, hasGlob := strings.Cut(w, ":")
		switch {
		case kind == "call" && hasGlob:
			r.Call = append(r.Call, glob)
		case kind == "offer" && hasGlob:
			r.Offer = append(r.Offer, glob)
		case w == "admin":
			r.Admin = true
		case w == "monitor":
			r.Monitor = true
		case w == "relay":
			r.Relay = true
		default:
			return Rights{}, errorf(args.CodeBadRight, "invalid right %q", args.Shown(w)).WithHint("rights are call:GLOB, offer:GLOB, monitor, relay and admin")
		}
	}
	return r, r.check(wellFormed)
}

// Check checks the globs.
func (r Rights) Check() error { return r.check(CheckGlob) }

func (r Rights) check(glob func(string) error) error {
	if n := len(r.Call) + len(r.Offer); n > maxRights {
		return errorf(args.CodeBadRight, "%d rights exceed the limit of %d", n, maxRights).WithHint("use fewer globs, or a second ticket")
	}
	for _, g := range slices.Concat(r.Call, r.Offer) {
		if err := glob(g); err != nil {
			return err
		}
	}
	return nil
}

// NodeRights are the rights of a node that is not its network's first.
func NodeRights(admin bool) Rights {
	return Rights{Call: []string{"*"}, Offer: []string{"*"}, Monitor: true, Relay: true, Admin: admin}
}

// CheckGlob checks a glob from a user. Its error suggests a correction.
func CheckGlob(glob string) error {
	if err := cmp.Or(wellFormed(glob), args.CheckNoToken("glob", glob)); err != nil {
		return err
	}
	if r := emptyRange(glob); r != "" {
		return badGlob(glob, "a range runs from low to high, as in [a-z]", "the range %s is empty", r)
	}
	return nil
}

func badGlob(glob, hint, format string, a ...any) error {
	return errorf(args.CodeBadRight, "glob %q: "+format, append([]any{args.Shown(glob)}, a...)...).WithHint("%s", hint)
}

// wellFormed checks the rules that also hold for globs granted earlier: one that breaks
// them makes the list unreadable.
func wellFormed(glob string) error {
	bad := func(hint, format string, a ...any) error { return badGlob(glob, hint, format, a...) }
	switch {
	case glob == "":
		return bad("* stands for every function", "an empty glob matches nothing")
	case len(glob) > maxGlob:
		return bad("no function has a longer name", "%d characters exceed the limit of %d", len(glob), maxGlob)
	case glob[0] == '-' || glob[0] == '.':
		return bad("is the glob missing before a flag?", "no function's name begins with %c", glob[0])
	case strings.HasPrefix(glob, ownPrefix):
		return bad("--admin allows what a node offers itself", "names that begin with fbus. are the node's own")
	case strings.Contains(glob, "[!"):
		return bad("[^...] matches any character that is not in the class", "[! does not begin a class")
	case strings.ContainsAny(glob, "{},"):
		return bad("give one right for each name", "a glob cannot contain braces or commas")
	}
	if i := strings.IndexFunc(glob, func(c rune) bool { return c > 0x7f || !args.NameByte(byte(c)) && !strings.ContainsRune("*?[]^", c) }); i >= 0 {
		return bad("a glob has letters, digits, _ . - and * ? [...] [^...]", "no function name contains %q", []rune(glob[i:])[0])
	}
	if _, err := path.Match(glob, ""); err != nil {
		return bad("a class is closed and not empty, as in [a-z] or [^0-9]", "invalid class")
	}
	return nil
}

// emptyRange returns a class range that contains no character, such as z-a. The glob
// must be well formed.
func emptyRange(glob string) string {
	class := false
	for i := range len(glob) {
		switch c := glob[i]; {
		case c == '[':
			class = true
		case c == ']':
			class = false
		case class && c == '-' && glob[i-1] > glob[i+1]:
			return glob[i-1 : i+2]
		}
	}
	return ""
}

// MayCall reports whether calls of that function are allowed.
func (r Rights) MayCall(name string) bool {
	if strings.HasPrefix(name, ownPrefix) {
		return r.Admin && args.ValidName(name)
	}
	return matchAny(r.Call, name)
}

// MayOffer reports whether offers of that function are allowed.
func (r Rights) MayOffer(name string) bool { return matchAny(r.Offer, name) }

// And returns what both allow. Of two globs that overlap, and neither of which contains the other, it has
// that of o.
func (r Rights) And(o Rights) Rights {
	return Rights{
		Call: overlap(r.Call, o.Call), Offer: overlap(r.Offer, o.Offer), Admin: r.Admin && o.Admin,
		Monitor: (r.Admin || r.Monitor) && (o.Monitor || o.Admin && !r.Admin), Relay: r.Relay && o.Relay,
	}
}

func overlap(list, others []string) (both []string) {
	for _, o := range others {
		for _, g := range list {
			switch {
			case contains(o, g):
				both = append(both, g)
			case contains(g, o), strings.ContainsAny(g, "*?[") && strings.ContainsAny(o, "*?[") && mayOverlap(g, o):
				both = append(both, o)
			}
		}
	}
	return both
}

// contains reports whether a glob matches all that another one matches, as far as that is plain: that
// is a name, or * stands for the rest of it.
func contains(glob, other string) bool {
	if ok, _ := path.Match(glob, other); ok && !strings.ContainsAny(other, "*?[") {
		return true
	}
	head, all := strings.CutSuffix(glob, "*")
	return glob == other || all && !strings.ContainsAny(head, "*?[") && strings.HasPrefix(other, head)
}

// mayOverlap reports whether two globs have beginnings that allow a name that both match.
func mayOverlap(a, b string) bool {
	a, b = a[:strings.IndexAny(a, "*?[")], b[:strings.IndexAny(b, "*?[")]
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

// Empty reports whether nothing is allowed.
func (r Rights) Empty() bool {
	return len(r.Call) == 0 && len(r.Offer) == 0 && !r.Admin && !r.Monitor && !r.Relay
}

// Equal reports whether both allow the same, in any order.
func (r Rights) Equal(o Rights) bool { return slices.Equal(r.Words(), o.Words()) }

// Words returns the rights in canonical order without duplicates: admin, call:GLOB,
// monitor, offer:GLOB, relay.
func (r Rights) Words() []string {
	words := make([]string, 0, len(r.Call)+len(r.Offer)+3)
	if r.Admin {
		words = append(words, "admin")
	}
	for _, g := range r.Call {
		words = append(words, "call:"+g)
	}
	for _, g := range r.Offer {
		words = append(words, "offer:"+g)
	}
	if r.Monitor {
		words = append(words, "monitor")
	}
	if r.Relay {
		words = append(words, "relay")
	}
	slices.Sort(words)
	return slices.Compact(words)
}

// String formats the rights for a person: "call resize*, offer wc".
func (r Rights) String() string {
	if r.Empty() {
		return "nothing"
	}
	return strings.ReplaceAll(strings.Join(r.Words(), ", "), ":", " ")
}

// MarshalJSON writes the words.
func (r Rights) MarshalJSON() ([]byte, error) { return json.Marshal(r.Words()) }

// UnmarshalJSON reads the words.
func (r *Rights) UnmarshalJSON(p []byte) error {
	var words []string
	err := json.Unmarshal(p, &words)
	if err == nil {
		*r, err = ParseRights(words...)
	}
	return err
}

func matchAny(globs []string, name string) bool {
	if strings.HasPrefix(name, ownPrefix) || !args.ValidName(name) {
		return false
	}
	return slices.ContainsFunc(globs, func(g string) bool {
		ok, _ := path.Match(g, name) // neither contains a /, the only character special to path
		return ok
	})
}
