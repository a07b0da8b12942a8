package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFormat: a store of a later format is refused, and one that does not say is looked
// at for itself.
func TestFormat(t *testing.T) {
	t.Parallel()
	var lines []string
	cfg := Config{Dir: filepath.Join(t.TempDir(), "jobs"), Volatile: true, Warn: func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }}
	mark := filepath.Join(cfg.Dir, "format")
	for _, was := range []string{"", "fbus-jobs 99\n", "fbus-jobs 2\n", "garbage\n", "\n"} {
		if was != "" {
			if err := os.WriteFile(mark, []byte(was), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m, err := Open(cfg)
		if later := strings.HasPrefix(was, "fbus-jobs"); later != (err != nil) || later && !strings.Contains(err.Error(), "format "+strings.Fields(was)[1]+" is unknown") {
			t.Errorf("%q: error %v", was, err)
		}
		if err != nil {
			continue
		}
		m.Close()
		if text, err := os.ReadFile(mark); string(text) != "fbus-jobs 1\n" {
			t.Errorf("%q became %q, error %v", was, text, err)
		}
	}
	os.Rename(mark, mark+".real")
	if err := os.Symlink(mark+".real", mark); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("a link: error %v", err)
	}
	if n := strings.Count(strings.Join(lines, "\n"), "is damaged: it is written again"); n != 2 {
		t.Errorf("%d of 2 were told of: %q", n, lines)
	}
}
