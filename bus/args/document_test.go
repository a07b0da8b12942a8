package args

import (
	"strings"
	"testing"
)

// TestCheckJSON: an error of a document names the place, in lines and characters, and the reason.
func TestCheckJSON(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":1}`:                    "",
		" [1, 2]\n":                  "",
		"":                           "line 1, column 1: it is empty",
		" \n":                        "line 1, column 1: it is empty",
		"[1,\n 2\n\n":                "line 2, column 3: its end is missing",
		`{"a":`:                      "line 1, column 6: its end is missing",
		"{\n \"a\": x}":              "line 2, column 7: unexpected 'x' where a value must begin",
		`{"a":1} {}`:                 "line 1, column 9: unexpected '{' after top-level value",
		`{"ü":é}`:                    "line 1, column 6: unexpected 'é' where a value must begin",
		"\ufeff{}":                   `line 1, column 1: unexpected '\ufeff' where a value must begin`,
		"{\n\"ü\": \"\xff\"}":        "line 2, column 7: the byte 0xff is not UTF-8",
		"{\"a\": \xff}":              "line 1, column 7: the byte 0xff is not UTF-8",
		"[x, \"\xff\"]":              "line 1, column 2: unexpected 'x' where a value must begin",
		"\"a\x1b\"":                  `line 1, column 3: unexpected '\x1b' in string literal`,
		"\xff\xfe{\x00}\x00":         "line 1, column 1: it is UTF-16, and must be UTF-8",
		strings.Repeat("[", 10001):   "nested deeper than 10000",
		strings.Repeat(`{"a":`, 1e5): "nested deeper than 10000",
	} {
		err := CheckJSON([]byte(text))
		switch {
		case want == "" && err == nil:
		case err == nil || !strings.Contains(err.Error(), want):
			t.Errorf("%.40q: %v, want %s", text, err, want)
		case strings.HasPrefix(want, "line") && !strings.HasPrefix(err.Error(), "this is not JSON: "):
			t.Errorf("%.40q: %v", text, err)
		}
	}
	if got := WithoutBOM([]byte("\ufeff\ufeff1")); string(got) != "\ufeff1" {
		t.Errorf("%q", got)
	}
}
