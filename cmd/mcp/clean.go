package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"fbus/bus/args"
)

// hidden reports whether a character is invisible but not for an agent.
func hidden(r rune) bool { return r == '\u200b' || r >= 0xe0000 && r <= 0xe007f }

// wellFormed returns a JSON document with U+FFFD in place of each escape that is half of a surrogate pair. The
// parsers of many clients refuse the whole message over one (RFC 8259, section 8.2).
func wellFormed(doc []byte) []byte {
	out := doc
	for i := 0; i < len(doc); i++ {
		if doc[i] != '\\' {
			continue
		}
		switch r := escaped(doc[i:]); {
		case !utf16.IsSurrogate(r):
			i++ // what is escaped
		case utf16.DecodeRune(r, escaped(doc[i+6:])) != utf8.RuneError:
			i += 11
		default:
			if &out[0] == &doc[0] {
				out = bytes.Clone(doc)
			}
			copy(out[i:], `\ufffd`)
			i += 5
		}
	}
	return out
}

// escaped returns the number of the escape \uXXXX that text begins with, -1 if it begins with none.
func escaped(text []byte) rune {
	if len(text) < 6 || string(text[:2]) != `\u` {
		return -1
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(n)
}

// cleanSchema makes the descriptions in a schema safe to show. It returns an error if a name is not: it
// cannot be changed.
func cleanSchema(text json.RawMessage) (json.RawMessage, error) {
	var doc any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if !bytes.Equal(wellFormed(text), text) {
		return nil, errors.New("the schema has half of a surrogate pair, which is not a character")
	}
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	changed := false
	var walk func(v any) error
	walk = func(v any) (err error) {
		switch v := v.(type) {
		case []any:
			for i := 0; i < len(v) && err == nil; i++ {
				err = walk(v[i])
			}
		case map[string]any:
			for key, value := range v {
				if strings.ContainsFunc(key, func(r rune) bool { return hidden(r) || args.Unsafe(r) }) {
					return fmt.Errorf("the schema has a name with a control character or an invisible one: %q", args.Shown(key))
				}
				said, ok := value.(string)
				switch {
				case key == "const" || key == "enum": // documents
				case ok && (key == "description" || key == "title" || key == "$comment"):
					if clean := plain(said); clean != said {
						v[key], changed = clean, true
					}
				case !ok:
					if err := walk(value); err != nil {
						return err
					}
				}
			}
		}
		return err
	}
	if err := walk(doc); err != nil || !changed {
		return text, err
	}
	return json.Marshal(doc)
}
