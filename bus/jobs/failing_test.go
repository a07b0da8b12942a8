package jobs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// TestCommitsFail: while commits fail, whether or not the disk has what they were to
// write, no post is acknowledged, and what is refused is not there afterwards. What
// has ended meanwhile is told when it is on disk, and is not run again.
func TestCommitsFail(t *testing.T) {
	t.Parallel()
	for _, failure := range []struct {
		name, code, words string
		err               error
		torn              bool
	}{
		{"lost", "store_failed", "cannot be written: input/output error", syscall.EIO, false},
		{"written and not synced", "store_failed", "cannot be written: input/output error", syscall.EIO, true},
		{"no room", "store_full", "is full: the disk is full", syscall.ENOSPC, false},
		{"read only", "store_failed", "cannot be written: read-only file system", syscall.EROFS, false},
	} {
		t.Run(failure.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			c := b.dial("poster")
			var ran atomic.Int32
			g := newGate()
			b.offer(b.dial("worker"), "f", 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
				ran.Add(1)
				g.handle(ctx, inv)
				return saying("got " + string(inv.Head()))
			})
			ids := []string{b.post(c, "f", `{"then":"g"}`, "1"), b.post(c, "f", `{"retries":3}`, "2"), b.post(c, "f", "", "3")}
			for range 2 {
				await(t, "it runs", g.started)
			}
			b.m.FailCommits(failure.err, failure.torn)
			if failure.torn {
				b.refused(c, "f", `{}`, "refused", 255, "whether job ")
			}
			for _, unique := range []string{`{}`, `{"unique":"key"}`, `{"unique":"key"}`, `{"delay":0.001}`} {
				b.refused(c, "f", unique, "refused", 75, failure.words)
			}
			if e := call(c, "fbus.post", args.List("f"), "refused"); e.res.Code != failure.code {
				t.Errorf("%+v", e.res)
			}
			for range 2 { // with the third, which may or may not run
				g.release <- exit(0)
			}
			b.m.AwaitKept(2)
			for _, id := range ids[:2] {
				if e := call(c, "fbus.result", args.List(id, `{"wait":false}`), ""); e.res.Status != 75 || e.out != "" {
					t.Errorf("an end was told that is not on disk: %+v", e)
				}
			}
			eventually(t, "the operator is told", func() bool { return strings.Contains(b.warnings(), failure.words) })
			b.m.FailCommits(nil, false)
			for range 10 {
				g.release <- exit(0)
			}
			for i, id := range ids {
				if e := b.result(c, id); e.res.Status != 0 || e.out != fmt.Sprint("got ", i+1) {
					t.Errorf("%+v", e)
				}
			}
			if ran.Load() != 3 {
				t.Errorf("3 jobs were run %d times", ran.Load())
			}
			eventually(t, "a post is taken", func() bool { return call(c, "fbus.post", args.List("h", `{"unique":"key"}`), "").res.Status == 0 })
			var names []string
			list, total := b.list(c, `{}`)
			for _, i := range list {
				names = append(names, i.Function)
			}
			slices.Sort(names)
			if total != 5 || strings.Join(names, "") != "fffgh" {
				t.Errorf("%d jobs: %+v", total, list)
			}
			if !strings.Contains(b.warnings(), "can be written again") {
				t.Errorf("the operator was told %q", b.warnings())
			}
		})
	}
}

// TestKilledAfterRefusal: a post that was refused is not there, even if the node is killed
// before it can write again. If a failed commit may be on disk all the same, its posts are
// not refused: whether they were kept is unknown, and they are whole if they were.
func TestKilledAfterRefusal(t *testing.T) {
	t.Parallel()
	input := strings.Repeat("x", 100<<10) // in a file
	for _, torn := range []bool{false, true} {
		b := newBed(t)
		c := b.dial("poster")
		b.post(c, "g", "", "")
		b.m.FailCommits(syscall.EIO, torn)
		e := call(c, "fbus.post", args.List("f"), input)
		dir := filepath.Join(t.TempDir(), "jobs")
		if err := os.CopyFS(dir, os.DirFS(b.cfg.Dir)); err != nil { // what a kill leaves
			t.Fatal(err)
		}
		b.m.FailCommits(nil, false)
		eventually(t, "it works again", func() bool { return !b.m.Failing() })
		if _, total := b.list(c, `{}`); total != 1 || len(jobs.Files(b.cfg.Dir)) != 0 {
			t.Errorf("torn %v: without a kill there are %d jobs, and the files %q", torn, total, jobs.Files(b.cfg.Dir))
		}
		next := newBed(t, func(b *bed) { b.cfg.Dir = dir })
		list, _ := next.list(next.dial("poster"), `{"function":"f"}`)
		if !torn {
			if e.res.Status != 75 || e.res.Code != args.CodeStoreFailed || len(list) != 0 {
				t.Errorf("%+v, and there is %+v", e.res, list)
			}
			continue
		}
		if e.res.Status != 255 || e.res.Code != args.CodeUncertain || e.res.Hint == "" || len(list) != 1 || !strings.Contains(e.res.Message, list[0].ID) {
			t.Fatalf("%+v, and there is %+v", e.res, list)
		}
		next.offer(next.dial("worker"), "f", 1, echo)
		if got := next.result(next.dial("reader"), list[0].ID); got.out != input {
			t.Errorf("%+v, %d bytes", got.res, len(got.out))
		}
	}
}

// TestKilledAttempt: the history of a job has what is known of an attempt that ran when the node was
// killed.
func TestKilledAttempt(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	id := b.post(b.dial("poster"), "f", "", "")
	await(t, "it runs", g.started)
	eventually(t, "it is noted", func() bool { return b.job(b.dial("reader"), id).Call != "" })
	b.m.AwaitIdle()
	dir := filepath.Join(t.TempDir(), "jobs")
	if err := os.CopyFS(dir, os.DirFS(b.cfg.Dir)); err != nil { // what a kill leaves
		t.Fatal(err)
	}
	next := newBed(t, func(b *bed) { b.cfg.Dir = dir })
	h := next.job(next.dial("reader"), id).History
	if len(h) != 1 || h[0].Status == nil || *h[0].Status != 255 || h[0].Code != args.CodeNodeLost || h[0].Worker != "worker" || !h[0].Ended.IsZero() {
		t.Errorf("%+v", h)
	}
}

// TestRestartWhileFailing: a node that ends while its store cannot be written has
// acknowledged nothing that is gone, and runs again what it could not note the end of.
func TestRestartWhileFailing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	id := b.post(c, "f", "", "once more")
	waits := b.post(c, "f", "", "then this")
	await(t, "it runs", g.started)
	b.m.FailCommits(syscall.EIO, false)
	b.refused(c, "f", "", "", 75, "cannot be written")
	g.release <- exit(0)
	b.m.AwaitKept(1)
	b.restart()
	c = b.dial("poster")
	g = newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	for _, want := range []string{id, waits} {
		if inv := await(t, "it runs", g.started); inv.Job != want {
			t.Errorf("%s was run, not %s", inv.Job, want)
		}
		g.release <- exit(0)
		b.becomes(c, want, jobs.Done)
	}
	if _, total := b.list(c, `{}`); total != 2 {
		t.Errorf("%d jobs", total)
	}
}

// TestFailingWithManyQueued: lines of jobs that are longer than what memory has of
// them go on when the store can be read again.
func TestFailingWithManyQueued(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	const n = 3000
	var posters sync.WaitGroup
	for range 10 {
		posters.Go(func() {
			for range n / 10 {
				b.post(c, "f", "", "")
			}
		})
	}
	posters.Wait()
	var ran atomic.Int32
	b.offer(b.dial("worker"), "f", 4, func(context.Context, *bus.Invocation) bus.Result {
		ran.Add(1)
		return exit(0)
	})
	for more := int32(500); more < n-500; more += 500 {
		eventually(t, "some run", func() bool { return ran.Load() > more })
		b.m.FailCommits(syscall.EIO, more%1000 == 0)
		eventually(t, "that is noticed", func() bool { return b.m.Failing() || ran.Load() == n })
		b.m.FailCommits(nil, false)
		eventually(t, "it works again", func() bool { return !b.m.Failing() })
	}
	eventually(t, "all are done", func() bool { _, total := b.list(c, `{"state":"done"}`); return total == n })
	if ran.Load() != n {
		t.Errorf("%d jobs were run %d times", n, ran.Load())
	}
}

// TestBounds: more jobs or more bytes than the bounds are refused, loudly and without
// a trace, and taken when there is room again.
func TestBounds(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxJobs, b.cfg.MaxSpool = 10, 1<<20 })
	c := b.dial("poster")
	for range 10 {
		b.post(c, "f", `{"delay":1000}`, "")
	}
	b.refused(c, "f", "", "", 75, "too many jobs (limit 10, --max-jobs)")
	purge := func() {
		t.Helper()
		if e := call(c, "fbus.purge", args.JSON([]byte(`{"state":"delayed"}`)), ""); e.res.Status != 0 {
			t.Errorf("%+v", e.res)
		}
	}
	purge()
	half := strings.Repeat("x", 400<<10)
	b.post(c, "f", `{"delay":1000}`, half)
	b.post(c, "f", `{"delay":1000}`, half)
	b.refused(c, "f", `{"delay":1000}`, half, 75, "too much input and output (limit 1048576 bytes, --max-spool)")
	b.post(c, "f", `{"delay":1000}`, "small")
	if n, bytes := b.m.Totals(); n != 3 || bytes != 2*int64(len(half))+5 || len(jobs.Files(b.cfg.Dir)) != 2 {
		t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
	}
	b.restart()
	c = b.dial("poster")
	b.refused(c, "f", `{"delay":1000}`, half, 75, "--max-spool")
	purge()
	b.offer(b.dial("worker"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		for range 3 {
			if _, err := inv.Stdout.Write([]byte(half)); err != nil {
				return exit(9)
			}
		}
		return exit(0)
	})
	e := b.result(c, b.post(c, "f", "", ""))
	if e.res.Status != 70 || !strings.Contains(e.res.Message, "could not be kept") || !strings.Contains(e.res.Message, "--max-spool") {
		t.Errorf("output that there is no room for: %+v", e.res)
	}
	if n, bytes := b.m.Totals(); n != 1 || bytes != 0 || len(jobs.Files(b.cfg.Dir)) != 0 {
		t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
	}
}
