package wire

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"fbus/bus/args"
)

// MaxGlob bounds the glob of a call's on, in bytes.
const MaxGlob = 256

// On selects workers as a call's on does (PROTOCOL.md, section 5.1): the empty one admits all,
// # and an id that connection, a name the workers of that name, and a glob those whose name
// matches.
type On struct {
	text   string
	behind string // the node behind a relay gets it
	glob   bool
	parts  []string // of a glob, between its stars; nil: it has more than stars
}

// ParseOn compiles a call's on.
func ParseOn(text string) (On, error) {
	if strings.HasPrefix(text, "#") {
		text, behind, _ := strings.Cut(text, "/")
		return On{text: text, behind: behind}, nil
	}
	on := On{text: text, glob: strings.ContainsAny(text, `*?[\`)}
	if args.HasToken(text) {
		return on, errors.New("the name of a worker must not contain a token: others would be shown it")
	}
	if !on.glob {
		return on, nil
	}
	if len(text) > MaxGlob {
		return on, fmt.Errorf("glob of %d bytes exceeds the limit of %d", len(text), MaxGlob)
	}
	if _, err := path.Match(text, ""); err != nil {
		return on, fmt.Errorf("invalid glob %q", text)
	}
	if !strings.ContainsAny(text, `?[\`) {
		on.parts = strings.Split(text, "*")
	}
	return on, nil
}

// String returns the text of which On was compiled, less what is behind a relay.
func (on *On) String() string { return on.text }

// Behind returns what selects workers at the node to which a relay passes the call.
func (on *On) Behind() string { return on.behind }

// Glob reports whether workers of several names may match.
func (on *On) Glob() bool { return on.glob }

// Connection returns the id of the only connection that matches.
func (on *On) Connection() (id string, ok bool) { return strings.CutPrefix(on.text, "#") }

// Match reports whether the worker of that name and id matches. Its time is bounded by the length
// of the glob times that of the name.
func (on *On) Match(name, id string) bool {
	if want, ok := on.Connection(); ok {
		return want == id
	}
	if !on.glob {
		return on.text == "" || on.text == name
	}
	if on.parts == nil || strings.Contains(name, "/") { // no star goes beyond that
		ok, _ := path.Match(on.text, name)
		return ok
	}
	last := len(on.parts) - 1
	name, ok := strings.CutPrefix(name, on.parts[0])
	for i := 1; ok && i < last; i++ {
		_, name, ok = strings.Cut(name, on.parts[i])
	}
	return ok && strings.HasSuffix(name, on.parts[last])
}

// MatchWorker reports whether an on that is used once matches the worker of that name and id.
func MatchWorker(on, name, id string) bool {
	o, err := ParseOn(on)
	return err == nil && o.Match(name, id)
}
