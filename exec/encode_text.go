package exec

import (
	"bytes"
	"strconv"
	"strings"
)

// encodeText writes one argument after another, each ended by end: a newline
// or a NUL. What holds the end itself cannot be told apart, and is refused.
func encodeText(a *arguments, end byte) ([]byte, error) {
	flat, err := a.flat()
	if err != nil {
		return nil, err
	}
	var out []byte
	for i, v := range flat.values {
		if v.nested() {
			return nil, badInput("%s is an array or an object, which cannot be a line of text", flat.name(i))
		}
		word, err := flat.word(i)
		if err != nil {
			return nil, err
		}
		if bytes.IndexByte(word, end) >= 0 {
			what := "a newline"
			if end == 0 {
				what = "a NUL byte"
			}
			return nil, badInput("%s holds %s, which ends an argument here", flat.name(i), what)
		}
		out = append(append(out, word...), end)
	}
	return out, nil
}

// word is one argument as text, a field as key=value.
func (a *arguments) word(i int) ([]byte, error) {
	if a.kind != KindMap {
		return a.values[i].text, nil
	}
	key := a.keys[i]
	if strings.Contains(key, "=") {
		return nil, badInput("field %q holds =, which ends a field's name here", key)
	}
	return append([]byte(key+"="), a.values[i].text...), nil
}

func itoa(n int) string { return strconv.Itoa(n) }
