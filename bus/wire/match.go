package wire

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// MaxGlob bounds the glob of a call's on, in bytes.
const MaxGlob = 256

// On selects workers as a call's on does (PROTOCOL.md, section 5.1): the empty one admits all,
// # and an id that connection, a name the workers of that name, and a glob those whose name
// matches.
type On struct {
	text  string
	glob  bool
	parts []part // of a glob, between its stars
}

// part is what stands between two stars of a glob.
type part struct {
	text  string
	plain bool // text stands for itself
	runes int  // that it matches, if it is not plain
}

// ParseOn compiles a call's on.
func ParseOn(text string) (On, error) {
	on := On{text: text, glob: !strings.HasPrefix(text, "#") && strings.ContainsAny(text, `*?[\`)}
	if !on.glob {
		return on, nil
	}
	if len(text) > MaxGlob {
		return on, fmt.Errorf("glob of %d bytes exceeds the limit of %d", len(text), MaxGlob)
	}
	if _, err := path.Match(text, ""); err != nil {
		return on, fmt.Errorf("invalid glob %q", text)
	}
	for from, i := 0, 0; i <= len(text); i++ {
		switch {
		case i == len(text) || text[i] == '*':
			on.parts = append(on.parts, newPart(text[from:i]))
			from = i + 1
		case text[i] == '\\':
			i++
		case text[i] == '[':
			i += classLen(text[i:]) - 1
		}
	}
	return on, nil
}

// classLen returns the length of the class with which a valid glob begins.
func classLen(glob string) int {
	for i := 1; i < len(glob); i++ {
		switch glob[i] {
		case '\\':
			i++
		case ']':
			return i + 1
		}
	}
	return len(glob)
}

func newPart(text string) part {
	if !strings.ContainsAny(text, `?[\`) {
		return part{text: text, plain: true}
	}
	p := part{text: text}
	for i := 0; i < len(text); p.runes++ {
		switch text[i] {
		case '[':
			i += classLen(text[i:])
		case '\\':
			i++
			fallthrough
		default:
			_, size := utf8.DecodeRuneInString(text[i:])
			i += size
		}
	}
	return p
}

// find returns where the part matches first in a name, from its beginning only or anywhere, and
// where the match ends; -1: nowhere.
func (p *part) find(name string, anywhere bool) (start, end int) {
	if p.plain {
		switch {
		case anywhere:
			start = strings.Index(name, p.text)
		case !strings.HasPrefix(name, p.text):
			start = -1
		}
		return start, start + len(p.text)
	}
	n := 0
	for ; n < p.runes && end < len(name); n++ {
		_, size := utf8.DecodeRuneInString(name[end:])
		end += size
	}
	for n == p.runes {
		if ok, _ := path.Match(p.text, name[start:end]); ok {
			return start, end
		}
		if !anywhere || end == len(name) {
			break
		}
		_, a := utf8.DecodeRuneInString(name[start:])
		_, b := utf8.DecodeRuneInString(name[end:])
		start, end = start+a, end+b
	}
	return -1, -1
}

// String returns the text of which On was compiled.
func (on *On) String() string { return on.text }

// Glob reports whether workers of several names may match.
func (on *On) Glob() bool { return on.glob }

// Connection returns the id of the only connection that matches.
func (on *On) Connection() (id string, ok bool) { return strings.CutPrefix(on.text, "#") }

// Match reports whether the worker of that name and id matches. Its time is bounded by the length
// of the glob times that of the name.
func (on *On) Match(name, id string) bool {
	if on.text == "" {
		return true
	}
	if want, ok := on.Connection(); ok {
		return want == id
	}
	if !on.glob {
		return on.text == name
	}
	if strings.Contains(name, "/") { // no star goes beyond it
		ok, _ := path.Match(on.text, name)
		return ok
	}
	last := len(on.parts) - 1
	start, end := on.parts[0].find(name, false)
	if start < 0 || last == 0 {
		return start == 0 && end == len(name)
	}
	name = name[end:]
	for i := 1; i < last; i++ {
		if start, end = on.parts[i].find(name, true); start < 0 {
			return false
		}
		name = name[end:]
	}
	return on.parts[last].ends(name)
}

// ends reports whether the part matches the end of a name.
func (p *part) ends(name string) bool {
	if p.plain {
		return strings.HasSuffix(name, p.text)
	}
	n := utf8.RuneCountInString(name)
	if n < p.runes {
		return false
	}
	for ; n > p.runes; n-- {
		_, size := utf8.DecodeRuneInString(name)
		name = name[size:]
	}
	ok, _ := path.Match(p.text, name)
	return ok
}

// MatchWorker reports whether an on that is used once matches the worker of that name and id.
func MatchWorker(on, name, id string) bool {
	o, err := ParseOn(on)
	return err == nil && o.Match(name, id)
}
