package args

import "strings"

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

// hideTokens is HideSecrets for tokens.
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
