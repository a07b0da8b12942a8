package args

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/kballard/go-shellquote"
)

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
