package fanout

import (
	"hash/maphash"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"fbus/bus/args"

	"github.com/kballard/go-shellquote"
)

// Template names a file after an item, with the replacement strings of GNU parallel: {}
// the item, {.} without its extension, {/} its base name, {//} its directory, {/.} its
// base name without extension, {#} the number of the call. Any text is a template.
type Template string

// Replacements are the replacement strings of a [Template].
var Replacements = []string{"{}", "{.}", "{/}", "{//}", "{/.}", "{#}"}

// expand replaces each replacement string by the value in its place.
func (t Template) expand(values ...string) string {
	var pairs []string
	for i, r := range Replacements {
		pairs = append(pairs, r, values[i])
	}
	return strings.NewReplacer(pairs...).Replace(string(t))
}

// texts returns the text between the replacement strings.
func (t Template) texts() []string {
	return strings.Split(t.expand("\x00", "\x00", "\x00", "\x00", "\x00", "\x00"), "\x00")
}

// Varies reports whether the name depends on the item.
func (t Template) Varies() bool { return len(t.texts()) > 1 }

// Unknown returns a replacement string of GNU parallel that templates lack, or "".
func (t Template) Unknown() string {
	for _, s := range t.texts() {
		for ; ; s = s[1:] {
			i := strings.IndexByte(s, '{')
			if i < 0 {
				break
			}
			s = s[i:]
			if end := strings.IndexByte(s, '}'); end > 1 && strings.IndexByte("0123456789-+./#%=:,^", s[1]) >= 0 {
				return s[:end+1]
			}
		}
	}
	return ""
}

// leaves reports whether a value in a name leads out of the directory before it: an item may
// come from anywhere, and its ".." must not lead elsewhere. NULs surround each value. A
// value that begins the name may choose any directory.
func leaves(marked string) bool {
	parts := strings.Split(marked, "\x00") // texts, and the values between them
	for i := 1; i < len(parts); i += 2 {
		before := strings.Join(parts[:i], "")
		if before == "" {
			continue
		}
		dir := filepath.Clean(before[:strings.LastIndexByte(before, '/')+1])
		if rel, err := filepath.Rel(dir, filepath.Clean(before+parts[i])); err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			return true
		}
	}
	return false
}

// values returns what stands for each replacement string.
func values(item string, seq int) []string {
	base := item[strings.LastIndexByte(item, '/')+1:]
	return []string{item, withoutExtension(item), base, filepath.Dir(item), withoutExtension(base), strconv.Itoa(seq)}
}

// Numbers reports whether the name depends on the number of the call.
func (t Template) Numbers() bool { return strings.Contains(string(t), "{#}") }

// Text returns the template's text for an item, which names no file.
func (t Template) Text(item string) string { return t.expand(values(item, 0)...) }

func (t Template) name(item string, seq int) (string, error) {
	if strings.ContainsRune(item, 0) {
		return "", args.Errorf(args.CodeBadInput, "the name of an output must not contain NUL: %s", args.Shorten(item))
	}
	values := values(item, seq)
	name := t.expand(values...)
	for i, v := range values {
		values[i] = "\x00" + v + "\x00"
	}
	switch {
	case leaves(t.expand(values...)):
		return "", args.Errorf(args.CodeBadInput, "the output would leave the directory of -o: %s", args.Shorten(name))
	case slices.Contains([]string{"", ".", ".."}, name[strings.LastIndexByte(name, '/')+1:]): // before it is cleaned: out/. would be the file out
		return "", args.Errorf(args.CodeBadInput, "the item makes no name for its output: %q", args.Shorten(item))
	}
	return filepath.Clean(name), nil
}

// withoutExtension cuts the last element at its last dot, as GNU parallel does even if
// the element begins with it.
func withoutExtension(s string) string {
	dot := strings.LastIndexByte(s, '.')
	if slash := strings.LastIndexByte(s, '/'); dot > slash {
		return s[:dot]
	}
	return s
}

// Names gives each task a file of its own for its output.
type Names struct {
	template Template
	seed     maphash.Seed

	mu    sync.Mutex     // protects the fields below
	taken map[uint64]int // the task of each name, hashed: there may be millions
	again bool           // some are of an earlier run
}

// NewNames makes names with a template.
func NewNames(t Template) *Names {
	return &Names{template: t, seed: maphash.MakeSeed(), taken: map[uint64]int{}}
}

// Reserve returns the name for a task before its call is made: no output replaces that
// of another task. The same task may have it again.
func (n *Names) Reserve(t *Task) (string, error) {
	name, err := n.template.name(strings.Join(t.Words, " "), t.Seq)
	if err != nil {
		return "", err
	}
	key := maphash.String(n.seed, name)
	n.mu.Lock()
	defer n.mu.Unlock()
	if seq, ok := n.taken[key]; ok && seq != t.Seq {
		if n.again {
			return "", args.Errorf(args.CodeBadInput, "%s is the result of another item, which had this number when it was done", name)
		}
		return "", args.Errorf(args.CodeBadInput, "%s is another item's already; {#} in -o makes names differ", name)
	}
	n.taken[key] = t.Seq
	return name, nil
}

// Done reserves the name that an item had in an earlier run, given its command in the
// job log. Items may have other numbers now, and must not replace its output.
func (n *Names) Done(seq int, command string) {
	words, err := shellquote.Split(command)
	if err != nil || len(words) < 2 {
		return
	}
	if name, err := n.template.name(strings.Join(words[1:], " "), seq); err == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.taken[maphash.String(n.seed, name)] = -1
		n.again = true
	}
}
