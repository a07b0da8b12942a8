package exec

import (
	"strings"
	"testing"
)

// A waiting process serves one call, and what it said before is that call's.
func TestWarm(t *testing.T) {
	f := sh(t, "echo banner; cat; echo $1", func(s *Spec) { s.Warm = 2; s.Slots = 2 })
	for _, in := range []string{"a\n", "", strings.Repeat("x", 200_000) + "\n"} {
		check(t, runCall(t.Context(), f, &Call{Input: []byte(in)}), programExit(0), "banner\n"+in+"\n")
	}
	check(t, runCall(t.Context(), f, list(t, "a", "b")), programExit(0), "banner\n[\"a\",\"b\"]\n\n")
}
