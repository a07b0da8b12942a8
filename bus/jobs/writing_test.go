package jobs_test

import "testing"

// TestWriting: the time that commits wait for the disk is known, so that a node on one
// processor can tell that it is full.
func TestWriting(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.Volatile = false })
	c := b.dial("poster")
	for range 3 {
		before := b.n.Writing()
		b.post(c, "f", "", "")
		if after := b.n.Writing(); after <= before {
			t.Errorf("it was %v before a post, and is %v after it", before, after)
		}
	}
}
