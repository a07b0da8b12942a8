package slots

import (
	"testing"
	"time"
)

// idler carries out nothing.
type idler struct{}

func (idler) Want(bool)          {}
func (idler) Give(bool)          {}
func (idler) Take(int)           {}
func (idler) Free(int)           {}
func (idler) Return(string, int) {}
func (idler) Offer(string, int)  {}
func (idler) Wake(time.Duration) {}

// A slot is not kept any longer for a peer whose call has used it, however short the call was.
func TestShortCall(t *testing.T) {
	f := &Function{Actions: idler{}}
	f.Local(1, Local{Free: 1})
	if n := f.AskedTake(2, "a", 1); n != 1 {
		t.Fatalf("a gets %d slots", n)
	}
	if n := f.AskedTake(3, "b", 1); n != 0 {
		t.Fatalf("b gets %d slots, while one is kept for a", n)
	}
	f.Local(4, Local{Free: 1, Begun: 1})
	if n := f.AskedTake(5, "b", 1); n != 1 {
		t.Errorf("b gets %d slots after the call of a", n)
	}
}
