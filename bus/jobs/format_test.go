package jobs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFormat: a store of a later format is refused, and one that does not say is looked
// at for itself.
func TestFormat(t *testing.T) {
	t.Parallel()
	var s said
	cfg := Config{Dir: filepath.Join(t.TempDir(), "jobs"), Volatile: true, Warn: s.warn}
	mark := filepath.Join(cfg.Dir, "format")
	for _, was := range []string{"", "fbus-jobs 99\n", "fbus-jobs 2\n", "garbage\n", "\n"} {
		if was != "" {
			if err := os.WriteFile(mark, []byte(was), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m, err := Open(cfg)
		if later := strings.HasPrefix(was, "fbus-jobs"); later != (err != nil) || later && !strings.Contains(err.Error(), "format "+strings.Fields(was)[1]+" is not known") {
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
	if n := strings.Count(strings.Join(s.lines, "\n"), "is damaged: it is made anew"); n != 2 {
		t.Errorf("%d of 2 were told of: %q", n, s.lines)
	}
}
