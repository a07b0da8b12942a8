package args

import (
	"strings"
	"unicode/utf8"
)

// Bounds of the attributes of an offer.
const (
	MaxAttributes     = 32
	MaxAttributeName  = 64
	MaxAttributeBytes = 64 << 10 // of all names and values
)

// CheckAttributes checks the attributes of an offer: what companions need to know of a function.
// Names without a dot are fbus's own.
func CheckAttributes(attributes map[string]string) error {
	if n := len(attributes); n > MaxAttributes {
		return Errorf(CodeUsage, "%d attributes exceed the limit of %d", n, MaxAttributes)
	}
	size := 0
	for name, value := range attributes {
		size += len(name) + len(value)
		switch {
		case !validAttribute(name):
			return Errorf(CodeUsage, "invalid attribute name %q: use at most %d of a-z 0-9 . _ -, a letter first", Shown(name), MaxAttributeName)
		case !utf8.ValidString(value):
			return Errorf(CodeUsage, "the attribute %s is not UTF-8", name)
		}
	}
	if size > MaxAttributeBytes {
		return Errorf(CodeUsage, "attributes of %d bytes exceed the limit of %d", size, MaxAttributeBytes)
	}
	return nil
}

func validAttribute(name string) bool {
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')) {
			return false
		}
	}
	return len(name) > 0 && len(name) <= MaxAttributeName
}

// ValidName reports whether a function may have that name:
// [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}, but nothing with what may be a token, which lists and logs would
// show.
func ValidName[T string | []byte](name T) bool {
	if len(name) == 0 || len(name) > 128 {
		return false
	}
	for i := 0; i < len(name); i++ {
		if !NameByte(name[i]) || i == 0 && (name[0] == '.' || name[0] == '-') {
			return false
		}
	}
	for i := 0; i+len(TokenPrefix)+minToken <= len(name); i++ {
		if string(name[i:i+len(TokenPrefix)]) == TokenPrefix {
			return !HasToken(string(name))
		}
	}
	return true
}

// NameByte reports whether the name of a function or a ticket may contain c.
func NameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
}

// CheckNetwork checks a network id: [a-z0-9-]{1,63}.
func CheckNetwork(id string) error {
	if id == "" || len(id) > 63 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return Errorf(CodeUsage, "invalid network id %q", Shown(id)).WithHint("a network id has 1 to 63 characters of a-z 0-9 -")
	}
	return nil
}
