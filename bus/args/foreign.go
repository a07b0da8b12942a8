package args

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/kballard/go-shellquote"
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

// sequences matches what terminals take for colours, cursor movements and titles (ECMA-48). A title that has no
// end ends with its line: it must not hide what comes after it.
var sequences = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|P[^\x1b]*\x1b\\|[\]PX^_][^\x1b\x07\n]*(?:\x1b\\|\x07)?|[ -/]*[0-~])`)
})

// WithoutSequences removes what terminals take for colours, cursor movements and titles.
func WithoutSequences(text string) string {
	if !strings.Contains(text, "\x1b") {
		return text
	}
	return sequences().ReplaceAllString(text, "")
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

// Quote writes words as a shell reads them, on one line whatever they contain.
func Quote(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		if strings.ContainsFunc(w, func(r rune) bool { return r == utf8.RuneError || Unsafe(r) }) {
			quoted[i] = quoteControl(w)
		} else {
			quoted[i] = shellquote.Join(w)
		}
	}
	return strings.Join(quoted, " ")
}

// quoteControl writes a word with unsafe characters in $'…'.
func quoteControl(w string) string {
	b := []byte("$'")
	for _, c := range []byte(w) {
		switch {
		case c == '\'' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < ' ' || c >= 0x7f:
			b = fmt.Appendf(b, `\x%02x`, c)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '\''))
}

// TokenPrefix begins a bearer token. 48 characters of base64url follow.
const TokenPrefix = "fbus_"

// minToken is the length from which such characters are hidden: of a part of a token too.
const minToken = 16

// minSecret is the length from which a run of base64 characters is hidden: less than a line
// of PEM, more than an id.
const minSecret = 40

// HideSecrets replaces the parts of a message that may be a ticket, a token or a key: PEM, and
// base64 of anything. A variable or an operand holds such a text where something else was expected,
// and messages reach logs.
func HideSecrets(text string) string {
	text = hideTokens(text)
	if len(text) < minSecret {
		return text
	}
	if begin := strings.Index(text, "-----BEGIN "); begin >= 0 {
		end := max(strings.LastIndex(text, "-----")+5, begin+len("-----BEGIN "))
		text = text[:begin] + "(a ticket or key, not shown)" + text[end:]
	}
	var out strings.Builder
	for text != "" {
		n := strings.IndexFunc(text, func(r rune) bool { return !isBase64(r) })
		if n < 0 {
			n = len(text)
		}
		if n >= minSecret && isRandom(text[:n]) {
			out.WriteString("(base64, not shown)")
		} else {
			out.WriteString(text[:n])
		}
		text = text[n:]
		if n = strings.IndexFunc(text, isBase64); n < 0 {
			n = len(text)
		}
		out.WriteString(text[:n])
		text = text[n:]
	}
	return out.String()
}

// HasToken reports whether a text contains what may be a token. It is not to be kept where it is shown.
func HasToken(text string) bool { return hideTokens(text) != text }

// CheckNoToken refuses such a text.
func CheckNoToken(what, text string) error {
	if HasToken(text) {
		return Errorf(CodeUsage, "%s: must not contain a token: others would be shown it", what)
	}
	return nil
}

func hideTokens(text string) string {
	for at := 0; ; {
		i := strings.Index(text[at:], TokenPrefix)
		if i < 0 {
			return text
		}
		at += i
		rest := text[at+len(TokenPrefix):]
		n := strings.IndexFunc(rest, func(r rune) bool { return r != '-' && r != '_' && (r > 'z' || !NameByte(byte(r)) || r == '.') })
		if n < 0 {
			n = len(rest)
		}
		if n >= minToken && strings.ContainsAny(rest[:n], capitals) && strings.ToUpper(rest[:n]) != rest[:n] {
			text = text[:at] + "(a token, not shown)" + rest[n:]
		} else {
			at += len(TokenPrefix)
		}
	}
}

const capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

func isBase64(r rune) bool {
	return r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("+/_=-", r)
}

// isRandom distinguishes base64 from paths and names: it changes between capital letters,
// small ones and digits at more than 2 of 5 characters.
func isRandom(run string) bool {
	var last, changes, capitals, small int
	for _, c := range []byte(run) {
		class := last
		switch {
		case c >= 'A' && c <= 'Z':
			class = 1
			capitals++
		case c >= 'a' && c <= 'z':
			class = 2
			small++
		case c >= '0' && c <= '9':
			class = 3
		}
		if class != last {
			changes++
		}
		last = class
	}
	return changes*5 > len(run)*2 && capitals*8 > len(run) && small*8 > len(run)
}
