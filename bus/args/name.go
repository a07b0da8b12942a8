package args

import "strings"

// ValidName reports whether a function may have that name:
// [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}, but nothing that may be a token, which lists and logs would
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
	return len(name) < len(TokenPrefix)+minToken || string(name[:len(TokenPrefix)]) != TokenPrefix || hideTokens(string(name)) == string(name)
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
