package args

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Texts of peers, programs and files end up in messages and tables that people read on
// terminals and in logs. There a line break forges a line, a control character moves the
// cursor, and a bidi control reorders what is shown.

// Unsafe reports whether r must not reach a terminal or a log as it is: a control character
// (C0, DEL, C1), a bidi control, or a line or paragraph separator.
func Unsafe(r rune) bool {
	if r >= ' ' && r < 0x7f {
		return false
	}
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029'
}

// OneLine makes a foreign text safe to show. Line breaks and tabs become spaces; other
// unsafe characters, and bytes that are not UTF-8, become question marks.
func OneLine[T string | []byte](text T) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError:
			return '?'
		case !Unsafe(r):
			return r
		case unicode.IsSpace(r):
			return ' '
		}
		return '?'
	}, string(text))
}

// Shown is OneLine for at most the first 200 bytes of a text.
func Shown[T string | []byte](text T) string { return beginning(text, 200) }

// Shorten is Shown for at most 60 bytes, without surrounding spaces.
func Shorten[T string | []byte](text T) string { return strings.TrimSpace(beginning(text, 60)) }

func beginning[T string | []byte](text T, most int) string {
	shown := hideTokens(string(text))
	if len(shown) <= most {
		return OneLine(shown)
	}
	return OneLine(shown[:most]) + "…"
}

// SafeJSON escapes the unsafe characters in the strings of a JSON document. It returns an
// ASCII document as it is.
func SafeJSON(doc []byte) []byte {
	if !slices.ContainsFunc(doc, func(c byte) bool { return c >= 0x7f }) {
		return doc
	}
	out := make([]byte, 0, len(doc)+64)
	for _, r := range string(doc) { // bytes that are not UTF-8 become U+FFFD
		if r >= 0x7f && Unsafe(r) { // all of them are below U+10000
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}
