package commands

import (
	"strings"
	"testing"

	"fbus/bus/args"

	"github.com/kballard/go-shellquote"
)

// TestGetoptHints checks that no line of odd words makes a panic, and that a corrected line
// is accepted by the parser that refused the first one.
func TestGetoptHints(t *testing.T) {
	odd := []string{"", "-", "--", "-x", "-w", "-t5s", "--wait", "--timeout=5s", "--=", "--x", "f", "a b", "-qn", "é", "-é"}
	tried := 0
	for _, c := range commandTable {
		if c.mix == interleaved {
			continue
		}
		for _, x := range odd {
			for _, y := range odd {
				for _, z := range odd {
					words := []string{c.name, x, y, z}
					_, _, err := prepare(words)
					if err == nil || c.mix == untilDashDash {
						continue
					}
					hint := explain(err).Hint
					hint = strings.TrimPrefix(hint, "for fbus: ")
					hint, _, _ = strings.Cut(hint, "; ")
					line, ok := strings.CutPrefix(hint, args.Quote("fbus", c.name)+" ")
					if !ok || strings.Contains(hint, "--help") {
						continue
					}
					again, err := shellquote.Split(line)
					if err != nil {
						t.Fatal(line, err)
					}
					if _, _, err := prepare(append([]string{c.name}, again...)); err != nil && !strings.Contains(err.Error(), " needs a value") && !strings.Contains(err.Error(), "has no flag") && !strings.Contains(err.Error(), "empty") {
						t.Errorf("%q leads to %q: %v", words, hint, err)
					}
					tried++
				}
			}
		}
	}
	if tried < 100 {
		t.Errorf("%d corrected lines were tried", tried)
	}
}
