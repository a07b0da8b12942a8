package jobs_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// TestRoomForOutput: a job whose output finds no room is run again later, and no attempt
// of its is used.
func TestRoomForOutput(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxSpool = 1 << 20 })
	c := b.dial("poster")
	b.post(c, "other", "", strings.Repeat("x", 700<<10))
	b.offer(b.dial("worker"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		if _, err := inv.Stdout.Write(make([]byte, 400<<10)); err != nil {
			return exit(9)
		}
		return exit(0)
	})
	id := b.post(c, "f", "", "")
	if i := b.becomes(c, id, jobs.Delayed); i.Used != 0 || i.Attempts != 1 || !strings.Contains(i.Message, "--max-spool") {
		t.Errorf("%+v", i)
	}
	if !strings.Contains(b.warnings(), "--max-spool") {
		t.Error("the operator was told nothing")
	}
	if e := call(c, "fbus.purge", args.JSON([]byte(`{"state":"queued","function":"other"}`)), ""); e.res.Status != 0 {
		t.Errorf("%+v", e.res)
	}
	eventually(t, "it has room", func() bool {
		b.clock.pass(time.Minute)
		return b.job(c, id).State == jobs.Done
	})
	if i := b.job(c, id); i.Used != 0 || i.Out != 400<<10 {
		t.Errorf("%+v", i)
	}
}

// TestInputTooLarge: an input of unknown length that can never fit is refused for good, also
// while other jobs have the room.
func TestInputTooLarge(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxSpool = 1 << 20 })
	c := b.dial("poster")
	b.post(c, "f", "", strings.Repeat("x", 700<<10))
	b.refused(c, "f", "", strings.Repeat("x", 3<<20), 65, "more than the 1048576 bytes")
	b.refused(c, "f", "", strings.Repeat("x", 600<<10), 75, "--max-spool")
	if n, bytes := b.m.Totals(); n != 1 || bytes != 700<<10 || len(jobs.Files(b.cfg.Dir)) != 1 {
		t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
	}
}

// TestSentIsSpent: what a job was sent goes when it is done, and counts as room for what
// it writes: a store that is full of work gets through with it. What has failed keeps it,
// and the bound.
func TestSentIsSpent(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxSpool = 1 << 20 })
	c := b.dial("poster")
	input := strings.Repeat("x", 500<<10)
	ids := []string{b.post(c, "echo", "", input), b.post(c, "count", "", input)}
	b.refused(c, "count", "", input, 75, "--max-spool")
	b.refused(c, "fails", "", strings.Repeat("x", 100<<10), 75, "--max-spool")
	w := b.dial("worker")
	b.offer(w, "echo", 1, echo)
	b.offer(w, "count", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		n := len(inv.Head())
		if inv.Rest() != nil {
			rest, _ := io.Copy(io.Discard, inv.Rest())
			n += int(rest)
		}
		inv.Stderr.Write(make([]byte, 40<<10)) // more than is left
		return saying(fmt.Sprint(n))
	})
	for i, want := range []string{input, fmt.Sprint(len(input))} {
		if e := b.result(c, ids[i]); e.res.Status != 0 || e.out != want {
			t.Errorf("%+v, %d bytes", e.res, len(e.out))
		}
		if i := b.job(c, ids[i]); i.In != int64(len(input)) {
			t.Errorf("%+v", i)
		}
	}
	if n, bytes := b.m.Totals(); n != 2 || bytes != int64(len(input)+6+40<<10) || len(jobs.Files(b.cfg.Dir)) != 2 {
		t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
	}
	b.offer(w, "fails", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		if _, err := inv.Stdout.Write(make([]byte, 300<<10)); err != nil {
			return exit(8)
		}
		return exit(9)
	})
	id := b.post(c, "fails", "", strings.Repeat("x", 300<<10))
	if i := b.becomes(c, id, jobs.Dead); *i.Status != 9 || i.Out != 0 || !strings.Contains(i.Message, "--max-spool") || i.In != 300<<10 {
		t.Errorf("%+v, status %d", i, *i.Status)
	}
	if _, bytes := b.m.Totals(); bytes > b.cfg.MaxSpool {
		t.Errorf("%d bytes are kept", bytes)
	}
}

// TestChainHasRoom: a postback whose input is the output of another job, which is kept as
// well, ends all the same.
func TestChainHasRoom(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxSpool = 1 << 20 })
	c := b.dial("poster")
	b.offer(b.dial("worker"), "big", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write(make([]byte, 700<<10))
		return exit(0)
	})
	b.offer(b.dial("second"), "small", 1, func(context.Context, *bus.Invocation) bus.Result { return saying("small") })
	id := b.post(c, "big", `{"then":"small"}`, "")
	if e := b.result(c, id); e.res.Status != 0 {
		t.Errorf("%+v", e.res)
	}
	if e := b.result(c, b.job(c, id).Children[0]); e.res.Status != 0 || e.out != "small" {
		t.Errorf("%+v, %q", e.res, e.out)
	}
	if _, bytes := b.m.Totals(); bytes != 700<<10+5 {
		t.Errorf("%d bytes are kept", bytes)
	}
}

// TestSpoolUnwritable: while no file can be written a job waits for that, and its program is not run for
// nothing. It pays no attempt, however long that lasts.
func TestSpoolUnwritable(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	var ran atomic.Int32
	b.offer(b.dial("worker"), "f", 1, sayLarge(&ran))
	spool := filepath.Join(b.cfg.Dir, "spool")
	if err := os.Rename(spool, spool+".away"); err != nil {
		t.Fatal(err)
	}
	id := b.post(c, "f", "", "")
	b.becomes(c, id, jobs.Delayed)
	for range 20 {
		b.clock.pass(time.Hour)
		b.m.AwaitIdle()
	}
	why := "the store of jobs cannot be written: " + spool + ": no such file or directory"
	eventually(t, "its note says so", func() bool {
		b.clock.pass(time.Hour)
		i := b.job(c, id)
		return i.State == jobs.Queued && i.Note == why
	})
	if i := b.job(c, id); i.Used != 0 || ran.Load() > 2 {
		t.Errorf("its program ran %d times; %+v", ran.Load(), i)
	}
	if e := call(c, "fbus.functions", args.JSON([]byte(`["f"]`)), ""); !strings.Contains(e.out, why) {
		t.Errorf("%+v", e)
	}
	if err := os.Rename(spool+".away", spool); err != nil {
		t.Fatal(err)
	}
	if e := b.result(c, id); e.res.Status != 0 || e.out != large {
		t.Errorf("%+v, %d bytes", e.res, len(e.out))
	}
}
