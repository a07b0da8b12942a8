package exec

import (
	"bytes"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Unpaired reports whether a string in a valid JSON document holds an escape for
// half of a surrogate pair: as JSON it can be passed on, but it stands for no text.
func Unpaired(doc []byte) bool {
	for {
		i := bytes.IndexByte(doc, '\\')
		if i < 0 {
			return false
		}
		half := escaped(doc[i:])
		switch {
		case half < 0: // another escape, of which the second byte may be a backslash
			doc = doc[i+2:]
		case !utf16.IsSurrogate(half):
			doc = doc[i+6:]
		case utf16.DecodeRune(half, escaped(doc[i+6:])) == utf8.RuneError:
			return true
		default:
			doc = doc[i+12:]
		}
	}
}

// escaped is the character of the \uXXXX that valid JSON begins with, -1 if it
// begins with something else.
func escaped(doc []byte) rune {
	if !bytes.HasPrefix(doc, []byte(`\u`)) {
		return -1
	}
	n, _ := strconv.ParseUint(string(doc[2:6]), 16, 32) // it is valid
	return rune(n)
}

var errUnpaired = badInput("a string holds half of a surrogate pair, which is no text")
