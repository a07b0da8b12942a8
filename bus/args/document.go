package args

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// bom is a byte order mark in UTF-8, with which some editors begin a file.
var bom = []byte("\ufeff")

// WithoutBOM returns a text without the byte order mark at its beginning.
func WithoutBOM(text []byte) []byte { return bytes.TrimPrefix(text, bom) }

// IsUTF16 reports whether a text begins with a byte order mark of UTF-16, as Windows makes it.
func IsUTF16(text []byte) bool {
	return bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff"))
}

// maxNesting is how deep encoding/json reads.
const maxNesting = 10000

// CheckJSON returns an error if text is not one JSON document. The error says where, and why.
// Every JSON document that fbus reads is checked here, so that the words are the same.
func CheckJSON(text []byte) error {
	if json.Valid(text) && utf8.Valid(text) {
		return nil
	}
	at, why := len(text), "" // of the byte that is wrong
	var syntax *json.SyntaxError
	if err := json.Unmarshal(text, new(json.RawMessage)); errors.As(err, &syntax) {
		at, why = int(min(max(syntax.Offset-1, 0), int64(len(text)))), strings.TrimPrefix(syntax.Error(), "json: ")
	}
	foreign := foreignByte(text)
	switch {
	case strings.Contains(why, "exceeded max depth"):
		return fmt.Errorf("the JSON document is nested deeper than %d levels", maxNesting)
	case IsUTF16(text):
		at, why = 0, "it is UTF-16, and must be UTF-8"
	case foreign <= at && foreign < len(text):
		at, why = foreign, fmt.Sprintf("the byte 0x%02x is not UTF-8", text[foreign])
	case strings.HasPrefix(why, "unexpected end"):
		at, why = len(bytes.TrimRight(text, " \t\r\n")), "its end is missing"
		if at == 0 {
			why = "it is empty"
		}
	case at < len(text) && strings.HasPrefix(why, "invalid character "):
		r, _ := utf8.DecodeRune(text[at:]) // encoding/json names only a byte
		_, where, _ := strings.Cut(why, "' ")
		where = strings.Replace(where, "looking for beginning of value", "where a value must begin", 1)
		where = strings.Replace(where, "looking for beginning of object key string", "where the name of a field must begin", 1)
		why = fmt.Sprintf("unexpected %q %s", r, where)
	}
	before := text[:at]
	line := before[bytes.LastIndexByte(before, '\n')+1:]
	return fmt.Errorf("this is not JSON: line %d, column %d: %s", bytes.Count(before, []byte("\n"))+1, utf8.RuneCount(line)+1, why)
}

// foreignByte returns the offset of the first byte that is not UTF-8, or the length of the text.
func foreignByte(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(text)
}
