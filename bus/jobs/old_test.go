package jobs_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// left returns which of some jobs are there, by their places in the list.
func (b *bed) left(c *bus.Client, ids []string) (places string) {
	b.t.Helper()
	list, _ := b.list(c, `{}`)
	for k, id := range ids {
		for _, i := range list {
			if i.ID == id {
				places += fmt.Sprint(k)
			}
		}
	}
	return places
}

// results posts jobs to f, an hour after each other, and waits for each.
func (b *bed) results(c *bus.Client, options ...string) (ids []string) {
	b.t.Helper()
	for _, o := range options {
		id := b.post(c, "f", o, "")
		b.becomes(c, id, jobs.Done)
		ids = append(ids, id)
		b.clock.pass(time.Hour)
	}
	return ids
}

func (b *bed) offerSaying(size int) {
	b.t.Helper()
	b.offer(b.dial("worker"), "f", 1, func(context.Context, *bus.Invocation) bus.Result { return saying(strings.Repeat("x", size)) })
}

func (b *bed) dies(c *bus.Client) (id string) {
	b.t.Helper()
	b.offer(c, "dies", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(1) })
	id = b.post(c, "dies", "", "")
	b.becomes(c, id, jobs.Dead)
	return id
}

// TestOldResultsGoFirst: before a post is refused, results that are older than a day are
// deleted, the oldest first, and no more of them than are in the way. Dead jobs, younger
// results and those whose key is kept stay.
func TestOldResultsGoFirst(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxJobs = 6 })
	c := b.dial("poster")
	b.offerSaying(10)
	ids := []string{b.dies(c)}
	ids = append(ids, b.results(c, `{"unique":"k","unique_for":1e6}`, `{"keep":1e6}`, ``, `{"keep":9e4}`)...) // the second expires last of all
	b.clock.pass(22*time.Hour + 30*time.Minute)                                                               // the last of them is not old
	b.post(c, "waits", "", "")
	if got := b.left(c, ids); got != "01234" {
		t.Errorf("with room for all, of 5 jobs %s are left", got)
	}
	for _, want := range []string{"0134", "014"} {
		b.post(c, "waits", "", "")
		if got := b.left(c, ids); got != want {
			t.Errorf("of 5 jobs %s are left, want %s", got, want)
		}
	}
	if e := call(c, "fbus.post", args.List("waits"), ""); e.res.Status != 75 || e.res.Code != args.CodeStoreFull {
		t.Errorf("with a younger result: %+v", e.res)
	}
	if b.n.Info().NoPosts == "" {
		t.Error("nothing is wrong with a node that takes no posts")
	}
	b.clock.pass(31 * time.Minute)
	if why := b.n.Info().NoPosts; why != "" {
		t.Errorf("a node that takes posts says %q", why)
	}
	b.post(c, "waits", "", "")
	if got := b.left(c, ids); got != "01" {
		t.Errorf("of 5 jobs %s are left", got)
	}
}

// TestOldResultsInBytes: the same is true of --max-spool, for input and for output.
func TestOldResultsInBytes(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxSpool = 1 << 20 })
	c := b.dial("poster")
	b.offerSaying(300 << 10)
	ids := b.results(c, ``, ``, ``)
	b.clock.pass(48 * time.Hour)
	waits := b.post(c, "waits", "", strings.Repeat("x", 300<<10))
	if got := b.left(c, ids); got != "12" {
		t.Errorf("of 3 jobs %s are left", got)
	}
	fresh := b.post(c, "f", "", "")
	b.becomes(c, fresh, jobs.Done)
	if got := b.left(c, append(ids, waits, fresh)); got != "234" {
		t.Errorf("of 5 jobs %s are left", got)
	}
}

// TestOldResultsOfShares: the share of a poster gets room from its own results. Those of
// others go only where they leave it less than its share.
func TestOldResultsOfShares(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets, func(b *bed) { b.cfg.MaxJobs = 40 })
	b.offerSaying(1)
	root := b.dial("root")
	ann, _ := b.guest("ann", "*")
	roots := b.results(root, ``)
	anns := b.results(ann, ``, ``)
	b.clock.pass(48 * time.Hour)
	for range 9 { // a quarter of 40 is 10
		b.post(ann, "waits", "", "")
	}
	if got := b.left(root, append(roots, anns...)); got != "02" {
		t.Errorf("of 3 jobs %s are left", got)
	}
	b.post(ann, "waits", "", "")
	b.refused(ann, "waits", `{}`, "", 75, "too many jobs of ticket:ann")
	if got := b.left(root, append(roots, anns...)); got != "0" {
		t.Errorf("of 3 jobs %s are left", got)
	}
	for range 28 {
		b.becomes(root, b.post(root, "f", "", ""), jobs.Done)
	}
	bob, _ := b.guest("bob", "*")
	b.post(bob, "waits", "", "")
	if got := b.left(root, roots); got != "" {
		t.Error("an old result of another leaves a poster no room")
	}
	b.refused(bob, "waits", `{}`, "", 75, "too many jobs of ticket:bob")
}

// TestOldResultsInNobodysWay: a bound of jobs that have not ended deletes no result.
func TestOldResultsInNobodysWay(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	b.offerSaying(1)
	ids := b.results(c, ``)
	b.clock.pass(48 * time.Hour)
	refused := false
	for i := range 257 {
		refused = call(c, "fbus.post", args.List("waits", fmt.Sprintf(`{"on":"%d*"}`, i)), "").res.Code == args.CodeStoreFull
	}
	if got := b.left(c, ids); !refused || got != "0" {
		t.Errorf("refused: %v; of 1 result %q is left", refused, got)
	}
}

// TestOldResultsOnFullDisk: the same is true of the disk.
func TestOldResultsOnFullDisk(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	b.offerSaying(1 << 20)
	ids := b.results(c, ``, ``, ``, ``)
	b.clock.pass(21*time.Hour + 30*time.Minute) // the first two are old
	b.m.FullAt(3)
	b.post(c, "waits", "", "")
	if got := b.left(c, ids); got != "23" {
		t.Errorf("of 4 jobs %s are left", got)
	}
	if e := call(c, "fbus.post", args.List("waits"), ""); e.res.Status != 75 || e.res.Code != args.CodeStoreFull {
		t.Errorf("%+v", e.res)
	}
	b.m.FailCommits(nil, false)
	eventually(t, "it works again", func() bool { return !b.m.Failing() })
}

// TestNeverFits: a job whose output can never have room is dead at once, however much room
// others take now, whatever its retries are. One that finds none only now uses an attempt
// after a few tries.
func TestNeverFits(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets, func(b *bed) { b.cfg.MaxSpool = 1 << 20 })
	c := b.dial("poster")
	ann, _ := b.guest("ann", "*")
	b.refused(c, "f", `{}`, strings.Repeat("x", 1<<20+1), 65, "more than the 1048576 bytes")
	b.refused(ann, "f", `{}`, strings.Repeat("x", 600<<10), 65, "more than the 524288 bytes")
	b.post(c, "other", "", strings.Repeat("x", 700<<10))
	b.offer(b.dial("worker"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		var size int
		fmt.Sscan(string(inv.Head()), &size)
		out := inv.Stdout
		for ; size > 0; size -= 32 << 10 {
			if out.Write(make([]byte, 32<<10)); size == 64<<10 {
				out = inv.Stderr
			}
		}
		return exit(0)
	})
	for _, test := range []struct {
		c    *bus.Client
		size int
		most string
	}{{c, 2 << 20, "1048576"}, {ann, 700 << 10, "524288"}} {
		i := b.becomes(c, b.post(test.c, "f", `{"retries":5}`, fmt.Sprint(test.size)), jobs.Dead)
		if i.Attempts != 1 || !strings.Contains(i.Message, "more than the "+test.most+" bytes of input and output that --max-spool allows "+i.Poster) {
			t.Errorf("%d bytes: %+v", test.size, i)
		}
	}
	i := b.becomes(c, b.post(c, "f", `{"backoff":0.001}`, fmt.Sprint(500<<10)), jobs.Dead)
	if i.Attempts != 4 || i.Used != 1 || !strings.Contains(i.Message, "--max-spool") {
		t.Errorf("%+v", i)
	}
	if n := b.m.Held("ticket:ann"); n.Bytes != 6 {
		t.Errorf("%+v is counted", n)
	}
}
