package args

// ValidName reports whether a function may have that name:
// [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}.
func ValidName[T string | []byte](name T) bool {
	if len(name) == 0 || len(name) > 128 {
		return false
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		word := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return true
}
