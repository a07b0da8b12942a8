package args

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

func TestShown(t *testing.T) {
	for text, want := range map[string]string{
		"plain é 日本 👩\u200d🔬": "plain é 日本 👩\u200d🔬", "a\x1b[31m\n": "a?[31m ", "\xff\xc3": "??", "\u009b": "?", "a\r\nb\tc": "a  b c",
		"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x7f": "?????????????", "\u0085\u2028\u2029": "   ",
		strings.Repeat("x", 201): strings.Repeat("x", 200) + "…", "": "",
	} {
		if got := Shown(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestSafeJSON(t *testing.T) {
	const evil = "é\x1b\x7f\u0080\u009f\u061c\u200e\u202e\u2069\u2028\u2029 \n日本"
	doc, _ := json.Marshal(map[string]string{evil: evil})
	safe := SafeJSON(doc)
	for _, r := range string(safe) {
		if Unsafe(r) {
			t.Errorf("%U in %s", r, safe)
		}
	}
	var back map[string]string
	if err := json.Unmarshal(safe, &back); err != nil || back[evil] != evil || !strings.Contains(string(safe), "é") {
		t.Errorf("%s: %v", safe, err)
	}
	if plain := []byte(`{"a":1}`); &SafeJSON(plain)[0] != &plain[0] {
		t.Error("a plain document is copied")
	}
}

// TestQuoteUnsafe checks that a word in a hint shows no unsafe character, and is the same word
// to a shell.
func TestQuoteUnsafe(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	for _, word := range []string{"a\nb", "\x1b[31m", "é\u202eb", "\u009b'\\", "\xff", "plain é"} {
		quoted := Quote(word)
		if OneLine(quoted) != quoted {
			t.Errorf("%q: %q", word, quoted)
		}
		out, err := exec.Command(bash, "-c", "printf %s "+quoted).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q: %s is %q to bash, %v", word, quoted, out, err)
		}
	}
}

func TestWithoutSequences(t *testing.T) {
	for text, want := range map[string]string{
		"plain [1m": "plain [1m", "\x1b[1;31mred\x1b[0m": "red", "\x1b]0;title\a\x1b]8;;x\x1b\\link": "link", "\x1b[2K\x1b7a\x1b(Bb": "ab", "end\x1b": "end\x1b",
		"\x1b]0;title\nnext\nlast\a": "\nnext\nlast\a", "\x1b]0;title": "", "\x1bPq#0\n#1\x1b\\after a sixel": "after a sixel", "\x1bPq#0\nnext": "\nnext",
	} {
		if got := WithoutSequences(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
