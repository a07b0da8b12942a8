package exec

import (
	"context"
	"testing"
	"time"
)

// Lineages that fork and exit without end are never where one looks.
func TestHoppers(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"1", "4"} {
		f := offer(t, Spec{Grace: 50 * time.Millisecond, Argv: []string{"perl", "-e",
			`$| = 1; $SIG{TERM} = "IGNORE"; for (1..$ARGV[0]) { fork or do { while (1) { fork and exit } } } print "x\n"; sleep 1000`, n}})
		ctx, cancel := context.WithCancel(t.Context())
		said := newLines()
		done := background(ctx, f, &Call{Stdout: said})
		said.next(t)
		cancel()
		if res := await(t, done); res.Code != "cancelled" {
			t.Errorf("%s: %+v", n, res)
		}
	}
}
