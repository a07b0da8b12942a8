//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fbus/cmd/testbus"
)

func TestMain(m *testing.M) { testbus.Main(m, map[string]func(){"fbus-mcp": main}) }

// TestScripts runs fbus mcp as its users do.
func TestScripts(t *testing.T) { testbus.Scripts(t, nil) }

func TestFileSaysWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mcp.toml")
	for text, want := range map[string]string{
		"[tools.f]\ndescription = 'mine'\n":                 "",
		"\ufeff[tools.'a.b']\ndescription = 'mine'\n":       "",
		"[tools.f]\ndescripton = 'mine'\n":                  ":2:1: unknown key tools.f.descripton",
		"[tool.f]\ndescription = 'mine'\n":                  ":1:2: unknown key tool",
		"[tools.f.more]\nx = 1\n":                           ":1:2: unknown key tools.f.more",
		"names = 'exact'\n":                                 ":1:1: unknown key names",
		"[tools.f]\ndescription = 3\n":                      ":2:15: tools.f.description must be a string",
		"[tools]\nf = 'mine'\n":                             ":2:5: tools.f must be a table",
		"tools = ['f']\n":                                   ":1:9: tools must be a table",
		"[tools.f]\ndescription = 'a'\ndescription = 'b'\n": ":3:1: ",
		"[tools.f\n":                                        ":1:9: ",
		"[tools.f]\n":                                       ": [tools.f]: description must not be empty",
		"[tools.'a b']\ndescription = 'mine'\n":             ": [tools.a b]: invalid function name",
		"\xff\xfe[\x00":                                     ":1:1: it is UTF-16, and must be UTF-8",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readFile(path)
		got := fmt.Sprint(err)
		if (want == "") != (err == nil) || !strings.HasPrefix(got, path+want) && err != nil {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
		for _, word := range []string{"struct", "decode", "main.", "map["} {
			if strings.Contains(got, word) {
				t.Errorf("%q: %s", text, got)
			}
		}
	}
}
