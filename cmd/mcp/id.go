package mcp

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// mostID is the greatest number that all clients can keep.
const mostID = 1<<53 - 1

// CheckID returns an error if a message has an id that an answer cannot repeat: the library changes numbers that it
// has no room for, and text that is not Unicode, and a client would not find its request.
func CheckID(message []byte) error {
	var fields map[string]json.RawMessage
	if json.Unmarshal(message, &fields) != nil {
		return nil // the library says what is wrong
	}
	switch id := fields["id"]; {
	case id == nil:
		return nil
	case string(id) == "null":
		if fields["method"] != nil {
			return errors.New("the id of a request must be a string or a whole number, not null")
		}
		return nil
	case id[0] == '"':
		if !utf8.Valid(id) || string(wellFormed(id)) != string(id) {
			return errors.New("the id must be Unicode")
		}
		return nil
	default:
		whole, rest, _ := strings.Cut(string(id), ".")
		if n, err := strconv.ParseInt(whole, 10, 64); err != nil || n > mostID || n < -mostID || strings.Trim(rest, "0") != "" {
			return errors.New("the id must be a string or a whole number of at most 2^53-1")
		}
		return nil
	}
}
