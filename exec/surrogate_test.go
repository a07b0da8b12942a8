package exec

import (
	"strings"
	"testing"
)

func TestUnpaired(t *testing.T) {
	for doc, want := range map[string]bool{
		`"a"`: false, `"\u00e9"`: false, `"\\ud800"`: false, `"\ud83d\ude00"`: false, `"\ufffd"`: false, `["\n\t\\"]`: false,
		`"\ud800"`: true, `"\udc00"`: true, `"\ud800\n"`: true, `"\ud83d\ud83d\ude00"`: true, `"\ud83d\u0041"`: true, `{"a\uD800":1}`: true, `"\ude00\ud83d"`: true,
	} {
		if Unpaired([]byte(doc)) != want {
			t.Errorf("%s: %v", doc, !want)
		}
	}
}

// What is no text reaches a program as JSON, or not at all.
func TestUnpairedArguments(t *testing.T) {
	for _, doc := range []string{`["\ud800"]`, `{"a":"\ud800"}`, `{"\ud800":1}`, `"\ud800"`} {
		a := arguments{kind: KindJSON, doc: []byte(doc)}
		if out, err := encodeJSON(&a); err != nil || string(out) != doc+"\n" {
			t.Errorf("%s as JSON: %q, %v", doc, out, err)
		}
		_, lines := encodeText(&a, '\n')
		_, packed := encodeMsgpack(&a)
		for as, err := range map[string]error{"lines": lines, "msgpack": packed} {
			if err == nil || !strings.Contains(err.Error(), "half of a surrogate pair") {
				t.Errorf("%s as %s: %v", doc, as, err)
			}
		}
	}
	a := arguments{kind: KindMap, keys: []string{"k"}, values: []value{{text: []byte(`"\ud800"`), json: true}}}
	if _, err := encodeText(&a, 0); err == nil {
		t.Error("a field became text")
	}
}
