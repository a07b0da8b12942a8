package args

import (
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

// OneLine makes a foreign text fit to be shown. Line breaks and tabs become spaces; other
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

// Shown is OneLine for a message with a text that a peer chose: of a longer text only the
// first 200 bytes.
func Shown[T string | []byte](text T) string { return beginning(text, 200) }

// Shorten is Shown for a longer message: only the first 60 bytes, without surrounding spaces.
func Shorten[T string | []byte](text T) string { return strings.TrimSpace(beginning(text, 60)) }

func beginning[T string | []byte](text T, most int) string {
	if len(text) <= most {
		return OneLine(text)
	}
	return OneLine(text[:most]) + "…"
}

// SafeJSON escapes unsafe characters of valid JSON, which are in its strings. It returns doc
// itself if there are none.
func SafeJSON(doc []byte) []byte {
	if !slices.ContainsFunc(doc, func(c byte) bool { return c >= 0x7f }) {
		return doc
	}
	out := make([]byte, 0, len(doc)+64)
	for _, r := range string(doc) { // bytes that are not UTF-8 become U+FFFD
		if r >= 0x7f && Unsafe(r) {
			out = AppendEscape(out, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

// AppendEscape appends a character below U+10000 as JSON escapes it.
func AppendEscape(dst []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
