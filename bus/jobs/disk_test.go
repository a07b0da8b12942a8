package jobs_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// large is output that is kept in a file of its own.
var large = strings.Repeat("much output ", 10000)

// sayLarge is a function that says that, and counts how often.
func sayLarge(ran *atomic.Int32) bus.Handler {
	return func(_ context.Context, inv *bus.Invocation) bus.Result {
		ran.Add(1)
		if _, err := inv.Stdout.Write([]byte(large)); err != nil {
			return exit(74)
		}
		return exit(0)
	}
}

// echo gives its input back.
func echo(_ context.Context, inv *bus.Invocation) bus.Result {
	var all strings.Builder
	all.Write(inv.Head())
	buf := make([]byte, 32<<10)
	for inv.Rest() != nil {
		n, err := inv.Rest().Read(buf)
		all.Write(buf[:n])
		if err != nil {
			break
		}
	}
	if _, err := inv.Stdout.Write([]byte(all.String())); err != nil {
		return exit(74)
	}
	return exit(0)
}

// TestPostbackHasNoRoom: a postback whose input has no room on the disk is made when
// there is, once, and until then the end that posts it is not told: neither is there
// without the other.
func TestPostbackHasNoRoom(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]error{"full": syscall.ENOSPC, "failing": syscall.EIO, "read only": syscall.EROFS} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			c := b.dial("poster")
			var ran, after atomic.Int32
			b.offer(b.dial("worker"), "f", 1, sayLarge(&ran))
			b.m.FailLinks(failure)
			id := b.post(c, "f", `{"then":"g","finally":"g"}`, "")
			eventually(t, "the operator is told", func() bool { return strings.Contains(b.warnings(), failure.Error()) || b.m.Failing() })
			if e := call(c, "fbus.result", args.List(id, `{"wait":false}`), ""); e.res.Status != 75 || e.out != "" {
				t.Errorf("an end was told without its postback: %+v", e)
			}
			b.refused(c, "f", "", "", 75, "the store of jobs")
			b.m.FailLinks(nil)
			if e := b.result(c, id); e.res.Status != 0 || e.out != large {
				t.Errorf("%+v, %d bytes", e.res, len(e.out))
			}
			b.offer(b.dial("second"), "g", 1, func(ctx context.Context, inv *bus.Invocation) bus.Result {
				after.Add(1)
				return echo(ctx, inv)
			})
			children := b.job(c, id).Children
			if len(children) != 2 {
				t.Fatalf("children %q", children)
			}
			for _, child := range children {
				if e := b.result(c, child); e.res.Status != 0 || e.out != large {
					t.Errorf("%+v, %d bytes", e.res, len(e.out))
				}
			}
			if _, total := b.list(c, `{}`); total != 3 || ran.Load() != 1 || after.Load() != 2 {
				t.Errorf("%d jobs; f was run %d times, g %d", total, ran.Load(), after.Load())
			}
			if n, bytes := b.m.Totals(); n != 3 || bytes != 3*int64(len(large)) || len(jobs.Files(b.cfg.Dir)) != 3 {
				t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
			}
		})
	}
}

// unlinked posts a job whose large output goes on to another, while files can not be
// linked for that reason, and returns how the other ends.
func (b *bed) unlinked(err error) ended {
	b.t.Helper()
	c := b.dial("poster")
	var ran atomic.Int32
	b.offer(b.dial("worker"), "f", 1, sayLarge(&ran))
	b.offer(b.dial("second"), "g", 1, echo)
	b.m.FailLinks(err)
	id := b.post(c, "f", `{"then":"g"}`, "")
	b.becomes(c, id, jobs.Done)
	return b.result(c, b.job(c, id).Children[0])
}

// TestPostbackIsCopied: where files can not be linked they are copied.
func TestPostbackIsCopied(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if e := b.unlinked(syscall.EPERM); e.res.Status != 0 || e.out != large {
		t.Errorf("%+v, %d bytes", e.res, len(e.out))
	}
	if n, bytes := b.m.Totals(); n != 2 || bytes != 2*int64(len(large)) || len(jobs.Files(b.cfg.Dir)) != 2 {
		t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
	}
}

// TestPostbackOfWhatIsGone: a postback whose input was taken away is made, and says
// so when its turn comes.
func TestPostbackOfWhatIsGone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if e := b.unlinked(syscall.ENOENT); e.res.Status != 70 || !strings.Contains(e.res.Message, "is damaged") {
		t.Errorf("%+v", e.res)
	}
	b.m.FailLinks(nil)
	b.post(b.dial("poster"), "f", `{}`, "")
}

// TestEndedHoldsNoInput: an attempt that has ended keeps no file of its input open while its
// end cannot be written: a filesystem that has to be repaired could not be unmounted.
func TestEndedHoldsNoInput(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	id := b.post(b.dial("poster"), "f", `{}`, large)
	open := func() bool {
		fds, _ := filepath.Glob("/proc/self/fd/*")
		return slices.ContainsFunc(fds, func(fd string) bool {
			at, _ := os.Readlink(fd)
			return strings.Contains(at, "/"+id+".i.")
		})
	}
	await(t, "it runs", g.started)
	b.m.AwaitIdle()
	if !open() {
		t.Fatal("its input is not open while it runs")
	}
	b.m.FailCommits(syscall.EIO, false)
	g.release <- exit(0)
	eventually(t, "that is noticed", b.m.Failing)
	eventually(t, "its input is closed", func() bool { return !open() })
	b.m.FailCommits(nil, false)
	eventually(t, "it works again", func() bool { return !b.m.Failing() })
}

// TestUnsyncedIsThere: changes whose commit has failed and that are on disk
// nevertheless are neither made twice nor forgotten: ends with their output and
// postbacks, jobs whose time has come, retries, purges.
func TestUnsyncedIsThere(t *testing.T) {
	t.Parallel()
	failing := func(b *bed, what func()) {
		b.t.Helper()
		b.m.FailCommits(syscall.EIO, true)
		what()
		eventually(b.t, "that is noticed", b.m.Failing)
		b.m.FailCommits(nil, false)
		eventually(b.t, "it works again", func() bool { return !b.m.Failing() })
	}
	t.Run("end", func(t *testing.T) {
		t.Parallel()
		b := newBed(t)
		c := b.dial("poster")
		var ran, after atomic.Int32
		g := newGate()
		b.offer(b.dial("worker"), "f", 1, func(ctx context.Context, inv *bus.Invocation) bus.Result {
			ran.Add(1)
			inv.Stdout.Write([]byte(large))
			return g.handle(ctx, inv)
		})
		b.offer(b.dial("second"), "g", 1, func(ctx context.Context, inv *bus.Invocation) bus.Result {
			after.Add(1)
			return echo(ctx, inv)
		})
		id := b.post(c, "f", `{"then":"g"}`, "")
		await(t, "it runs", g.started)
		b.m.AwaitIdle()
		ended := make(chan ended, 1)
		go func() { ended <- b.result(c, id) }() // ends with the job
		eventually(t, "somebody waits", func() bool { return b.m.Awaited(id) })
		failing(b, func() { g.release <- exit(0) })
		if e := await(t, "the result", ended); e.res.Status != 0 || e.out != large {
			t.Errorf("%+v, %d bytes", e.res, len(e.out))
		}
		if e := b.result(c, b.job(c, id).Children[0]); e.res.Status != 0 || e.out != large {
			t.Errorf("%+v, %d bytes", e.res, len(e.out))
		}
		if n, bytes := b.m.Totals(); n != 2 || bytes != 2*int64(len(large)) || ran.Load() != 1 || after.Load() != 1 {
			t.Errorf("%d jobs, %d bytes; f was run %d times, g %d", n, bytes, ran.Load(), after.Load())
		}
	})
	t.Run("due", func(t *testing.T) {
		t.Parallel()
		b := newBed(t)
		c := b.dial("poster")
		b.offer(b.dial("worker"), "f", 1, echo)
		id := b.post(c, "f", `{"delay":1000}`, "in time")
		failing(b, func() { b.clock.pass(2000 * time.Second) })
		if e := b.result(c, id); e.out != "in time" {
			t.Errorf("%+v", e)
		}
	})
	t.Run("retry", func(t *testing.T) {
		t.Parallel()
		b := newBed(t)
		c := b.dial("poster")
		var ran atomic.Int32
		b.offer(b.dial("worker"), "f", 1, func(context.Context, *bus.Invocation) bus.Result {
			return exit(int(2 - min(ran.Add(1), 2))) // fails once
		})
		id := b.post(c, "f", "", "")
		b.becomes(c, id, jobs.Dead)
		failing(b, func() {
			if e := call(c, "fbus.retry", args.JSON([]byte(`{"ids":["`+id+`"]}`)), ""); e.res.Status != 75 {
				t.Errorf("%+v", e.res)
			}
		})
		b.becomes(c, id, jobs.Done)
	})
	t.Run("purge", func(t *testing.T) {
		t.Parallel()
		b := newBed(t)
		c := b.dial("poster")
		for range 10 {
			b.post(c, "f", "", large)
		}
		var e ended
		purge := func() { e = call(c, "fbus.purge", args.JSON([]byte(`{"state":"queued"}`)), "") }
		done := make(chan struct{})
		b.m.FailCommits(syscall.ENOSPC, true)
		go func() { // ends with the purge
			purge()
			close(done)
		}()
		eventually(t, "that is noticed", b.m.Failing)
		b.m.FailCommits(nil, false)
		await(t, "it is purged", done)
		if e.res.Status != 0 && e.res.Status != 75 {
			t.Errorf("%+v", e.res)
		}
		eventually(t, "it works again", func() bool { return !b.m.Failing() })
		purge()
		b.m.AwaitIdle() // what the failed purges have deleted is being accounted for
		if n, bytes := b.m.Totals(); n != 0 || bytes != 0 || len(jobs.Files(b.cfg.Dir)) != 0 {
			t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
		}
	})
}

// TestOpenedLater: a store that can not be opened when the node starts is tried
// again. Posts are refused with the reason until it is there; what waited in it runs.
func TestOpenedLater(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.Patient = true })
	c := b.dial("poster")
	id := b.post(c, "f", "", "from before")
	b.close()
	aside := b.cfg.Dir + ".aside"
	if err := os.Rename(b.cfg.Dir, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.cfg.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.open()
	c = b.dial("poster")
	b.offer(b.dial("worker"), "f", 1, echo)
	b.refused(c, "f", "", "", 75, "not a directory")
	for name, query := range map[string]string{"fbus.jobs": `{}`, "fbus.purge": `{"state":"queued"}`, "fbus.retry": `{"ids":["` + id + `"]}`} {
		if e := call(c, name, args.JSON([]byte(query)), ""); e.res.Status != 75 || !strings.Contains(e.res.Message, "not a directory") {
			t.Errorf("%s: %+v", name, e.res)
		}
	}
	if err := os.Remove(b.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, b.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is opened", func() bool { return !b.m.Failing() })
	if e := b.result(c, id); e.out != "from before" {
		t.Errorf("%+v", e)
	}
	if e := b.result(c, b.post(c, "f", "", "new")); e.out != "new" {
		t.Errorf("%+v", e)
	}
	second := b.cfg
	if m, err := jobs.Open(second); err == nil {
		m.Close()
		t.Error("a second node has the store")
	}
	if !strings.Contains(b.warnings(), "can be written again") {
		t.Errorf("the operator was told %q", b.warnings())
	}
}

// TestNeverOpened: a node ends in time that never had its store.
func TestNeverOpened(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBed(t, func(b *bed) { b.cfg.Patient, b.cfg.Dir = true, dir })
	b.refused(b.dial("poster"), "f", "", "", 75, "not a directory")
}
