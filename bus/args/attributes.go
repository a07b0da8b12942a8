package args

import (
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
