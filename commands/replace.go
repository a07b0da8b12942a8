package commands

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"fbus/bus/args"
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

// unknown is the first that looks like a replacement string of GNU parallel's, and
// is none here; "" if there is none.
func (t nameTemplate) unknown() string {
	for _, p := range t {
		for s := p.text; ; s = s[1:] {
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

// holds reports whether a name is in the directory that the template begins with,
// if it does: items may come from anywhere, and must not lead out of there by ...
func (t nameTemplate) holds(name string) bool {
	if t[0].verb != "" {
		return true
	}
	slash := strings.LastIndexByte(t[0].text, '/')
	if slash < 0 {
		return !slices.Contains(strings.Split(name, "/"), "..")
	}
	rel, err := filepath.Rel(filepath.Clean(t[0].text[:slash+1]), filepath.Clean(name))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// name is the file's name for an item.
func (t nameTemplate) name(item string, seq int) (string, error) {
	var b strings.Builder
	for _, p := range t {
		if p.verb == "" {
			b.WriteString(p.text)
			continue
		}
		b.WriteString(replace(p.verb, item, seq))
	}
	name := b.String()
	switch {
	case !t.holds(name):
		return "", fail(args.CodeBadInput, "the output would leave the directory of -o: %s", shorten([]byte(name)))
	case strings.ContainsRune(name, 0):
		return "", fail(args.CodeBadInput, "an output's name must not hold a NUL: %s", shorten([]byte(item)))
	case name == "" || strings.HasSuffix(name, "/"):
		return "", fail(args.CodeBadInput, "the item gives no output's name: %q", shorten([]byte(item)))
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

// withoutExtension cuts what follows the last dot of the last element, as GNU
// parallel does even of an element that begins with it.
func withoutExtension(s string) string {
	dot := strings.LastIndexByte(s, '.')
	if slash := strings.LastIndexByte(s, '/'); dot > slash {
		return s[:dot]
	}
	return s
}
