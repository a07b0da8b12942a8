package commands

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// nameTemplate makes a file's name of an item, by GNU parallel's replacement
// strings: {} the item, {.} without its extension, {/} its base name, {//} its
// directory, {/.} its base name without extension, {#} the number of the call.
type nameTemplate []namePart

// namePart is text, or, if verb is set, a replacement.
type namePart struct {
	text string
	verb string
}

var replacements = []string{"{}", "{.}", "{/}", "{//}", "{/.}", "{#}"}

func parseTemplate(s string) nameTemplate {
	var t nameTemplate
	text := 0
	for i := 0; i < len(s); {
		j := slices.IndexFunc(replacements, func(r string) bool { return strings.HasPrefix(s[i:], r) })
		if j < 0 {
			i++
			continue
		}
		if i > text {
			t = append(t, namePart{text: s[text:i]})
		}
		t = append(t, namePart{verb: replacements[j]})
		i += len(replacements[j])
		text = i
	}
	if text < len(s) {
		t = append(t, namePart{text: s[text:]})
	}
	return t
}

// varies reports whether items get names of their own.
func (t nameTemplate) varies() bool {
	return slices.ContainsFunc(t, func(p namePart) bool { return p.verb != "" })
}

// name is the file's name for an item. An item must not lead out of where the
// template points to: items may come from anywhere.
func (t nameTemplate) name(item string, seq int) (string, error) {
	var b strings.Builder
	for _, p := range t {
		if p.verb == "" {
			b.WriteString(p.text)
			continue
		}
		s := replace(p.verb, item, seq)
		if slices.Contains(strings.Split(s, "/"), "..") {
			return "", fail(exitBadInput, "an output's name must not go up by ..: %s", shorten([]byte(s)))
		}
		b.WriteString(s)
	}
	name := b.String()
	switch {
	case strings.ContainsRune(name, 0):
		return "", fail(exitBadInput, "an output's name must not hold a NUL: %s", shorten([]byte(item)))
	case name == "" || strings.HasSuffix(name, "/"):
		return "", fail(exitBadInput, "the item gives no output's name: %q", shorten([]byte(item)))
	}
	return filepath.Clean(name), nil
}

func replace(verb, item string, seq int) string {
	switch verb {
	case "{.}":
		return withoutExtension(item)
	case "{/}":
		return item[strings.LastIndexByte(item, '/')+1:]
	case "{//}":
		return filepath.Dir(item)
	case "{/.}":
		return withoutExtension(item[strings.LastIndexByte(item, '/')+1:])
	case "{#}":
		return strconv.Itoa(seq)
	}
	return item
}

// withoutExtension cuts what follows the last dot of the last element, unless
// the element begins with that dot.
func withoutExtension(s string) string {
	dot := strings.LastIndexByte(s, '.')
	if slash := strings.LastIndexByte(s, '/'); dot > slash+1 {
		return s[:dot]
	}
	return s
}
