package mcp

import "testing"

func TestHalfSurrogatesBecomeCharacters(t *testing.T) {
	for doc, want := range map[string]string{
		``: ``, `"a\n"`: `"a\n"`, `"\ud83d\ude00"`: `"\ud83d\ude00"`, `"\\ud800"`: `"\\ud800"`, `"\u00e9"`: `"\u00e9"`,
		`"\ud800"`: `"\ufffd"`, `["\uDFFF\uD800"]`: `["\ufffd\ufffd"]`, `"\ud800\ud83d\ude00"`: `"\ufffd\ud83d\ude00"`, `"\\\ud800\n"`: `"\\\ufffd\n"`, `"\ud800\u0041"`: `"\ufffd\u0041"`,
	} {
		if got := string(wellFormed([]byte(doc))); got != want {
			t.Errorf("%s: %s, want %s", doc, got, want)
		}
	}
	for _, doc := range []string{`{"properties":{"x":{"const":"\ud800"}}}`, `{"properties":{"\udc00":{}}}`} {
		if text, err := cleanSchema([]byte(doc)); err == nil {
			t.Errorf("%s became %s", doc, text)
		}
	}
}
