package slots

import (
	"testing"
	"time"
)

// recorder counts what a Function needs done.
type recorder struct {
	taken, returned, told int
	again                 bool // of the last Take
	wake                  time.Duration
}

func (*recorder) Want(bool)                {}
func (*recorder) Give(bool)                {}
func (r *recorder) Take(n int, again bool) { r.taken, r.again = r.taken+n, again }
func (r *recorder) Free(int)               { r.told++ }
func (r *recorder) Return(_ string, n int) { r.returned += n }
func (*recorder) Offer(string, int)        {}
func (r *recorder) Wake(at time.Duration)  { r.wake = at }

// What the node reports may overtake the calls that it has placed: the last one that waits gets
// its slot all the same.
func TestReportOvertakesCalls(t *testing.T) {
	r := &recorder{}
	f := &Function{Actions: r}
	f.Local(1, Local{Queued: 2})
	f.Taken(2, "b", 1, 1)
	f.Taken(2, "b", 1, 1)
	f.Local(3, Local{Queued: 1}) // of three, two are placed
	f.Started(4, "b")
	f.Started(4, "b")
	if r.taken != 2 {
		t.Fatalf("%d slots were asked for, want 2", r.taken)
	}
	for range 10 {
		if r.wake == 0 {
			break
		}
		f.Tick(r.wake)
	}
	if r.taken != 3 {
		t.Errorf("%d slots were asked for, want 3", r.taken)
	}
}

// Nor does a refusal that was reported before make the node ask again and again.
func TestReportOvertakesRefusal(t *testing.T) {
	r := &recorder{}
	f := &Function{Actions: r}
	f.Local(1, Local{Queued: 1})
	f.Taken(2, "b", 1, 1)
	s := f.Started(3, "b")
	f.Local(4, Local{Free: 1}) // the call waits again, and is placed here
	f.Local(5, Local{})
	f.Ended(6, s, Refused)
	for range 100 {
		if f.asking > 0 {
			f.Taken(f.now+1, "", 1, 0)
		} else if r.wake > 0 {
			f.Tick(r.wake)
		}
	}
	if r.taken > 3 || !f.Idle() {
		t.Errorf("%d slots were asked for; %+v", r.taken, f)
	}
}

// A slot that was granted and is not used is returned, and one that is kept for nobody is free
// after 2 seconds.
func TestUnused(t *testing.T) {
	r := &recorder{}
	f := &Function{Actions: r}
	f.Local(1, Local{Queued: 1})
	f.Taken(2, "b", 1, 1)
	f.Local(3, Local{})
	f.Tick(2 + unused)
	if r.returned != 1 {
		t.Error("the slot is not returned")
	}
	g := &Function{Actions: &recorder{}}
	g.Local(1, Local{Free: 1})
	if n := g.AskedTake(2, "a", 5, false); n != 1 {
		t.Errorf("%d slots are kept, want 1", n)
	}
	if n := g.AskedTake(3, "c", 1, false); n != 0 {
		t.Error("a slot is kept twice")
	}
	g.Tick(2 + hold)
	if n := g.AskedTake(2+hold, "c", 1, false); n != 1 {
		t.Error("the slot is not free again")
	}
	g.Returned(3+hold, "a", 1)
	g.Returned(3+hold, "c", 1)
	if !g.Idle() {
		t.Errorf("%+v", g)
	}
}

// A slot is not kept any longer for a peer whose call has used it, however short the call was.
func TestShortCall(t *testing.T) {
	f := &Function{Actions: &recorder{}}
	f.Local(1, Local{Free: 1})
	if n := f.AskedTake(2, "a", 1, false); n != 1 {
		t.Fatalf("a gets %d slots", n)
	}
	if n := f.AskedTake(3, "b", 1, false); n != 0 {
		t.Fatalf("b gets %d slots, while one is kept for a", n)
	}
	f.Local(4, Local{Free: 1, Begun: 1})
	if n := f.AskedTake(5, "b", 1, false); n != 1 {
		t.Errorf("b gets %d slots after the call of a", n)
	}
}

// Requests that are sent together fail together: the next pause is the first one.
func TestFailTogether(t *testing.T) {
	r := &recorder{}
	f := &Function{Actions: r}
	f.Local(1, Local{Queued: 3})
	if r.taken != 3 || r.again {
		t.Fatalf("%d slots are asked for, again %v", r.taken, r.again)
	}
	for at := range 3 {
		f.Taken(time.Duration(2+at), "", 1, 0)
	}
	if r.wake != 2+pauses[0] {
		t.Errorf("it asks again at %v, want %v", r.wake, 2+pauses[0])
	}
	if f.Tick(r.wake); r.taken != 6 || !r.again {
		t.Errorf("%d slots are asked for, again %v", r.taken, r.again)
	}
}

// A node that has found nobody who waits is silent for a while, unless slots are scarce.
func TestSilent(t *testing.T) {
	r := &recorder{}
	f := &Function{Actions: r}
	now := time.Duration(1)
	free := func() int { // a slot becomes free; returns how often others were asked
		before := r.told
		f.Local(now, Local{})
		f.Local(now, Local{Free: 1})
		for range 10 {
			if r.told > before || r.wake == 0 {
				break
			}
			now = r.wake
			f.Tick(now)
		}
		if r.told > before {
			f.Freed(now, "", 0)
		}
		now += time.Millisecond
		return r.told - before
	}
	if free() != 1 {
		t.Fatal("nobody is asked")
	}
	for range skips {
		if free() != 0 {
			t.Fatal("others are asked, though nobody waited")
		}
	}
	if free() != 1 {
		t.Fatal("nobody is asked any more")
	}
	if f.AskedTake(now, "a", 1, true); free() != 1 {
		t.Error("nobody is asked, though slots are scarce")
	}
	if now += skipping; free() != 1 {
		t.Error("nobody is asked after a long call")
	}
}
