package jobs_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// TestAbsentFunctions: jobs of many functions that nobody offers hold up no others, and
// run when a worker offers them. So they do after a restart.
func TestAbsentFunctions(t *testing.T) {
	t.Parallel()
	functions := 10_500
	if raceEnabled {
		functions = 2_000
	}
	b := newBed(t)
	c := b.dial("poster")
	posts := make(chan string)
	for range 64 {
		go func() { // ends with posts
			for name := range posts {
				if _, err := b.m.Post(&jobs.Post{Function: name, Poster: jobs.Poster{Caller: "uid:0"}}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	for i := range functions {
		posts <- fmt.Sprint("absent.", i)
	}
	close(posts)
	eventually(t, "all are posted", func() bool { n, _ := b.m.Totals(); return n == int64(functions) })
	for _, round := range []string{"posted", "restarted"} {
		eventually(t, "each has a line", func() bool { return len(b.m.Lines()) == functions })
		worker := b.dial("worker " + round)
		b.offer(worker, "present", 1, func(context.Context, *bus.Invocation) bus.Result { return saying("done") })
		if e := b.result(c, b.post(c, "present", "", "")); e.out != "done" {
			t.Fatalf("%+v", e)
		}
		if round == "posted" {
			b.restart()
			c = b.dial("poster")
		}
	}
	var ran atomic.Int64
	worker := b.dial("worker")
	for i := 0; i < functions; i += 1000 {
		b.offer(worker, fmt.Sprint("absent.", i), 1, func(context.Context, *bus.Invocation) bus.Result {
			ran.Add(1)
			return exit(0)
		})
	}
	want := int64((functions + 999) / 1000)
	eventually(t, "those that are offered have run", func() bool {
		_, total := b.list(c, `{"state":"done","function":"absent.*","limit":1}`)
		return total == int(want)
	})
	if ran.Load() != want {
		t.Errorf("%d were run, of %d", ran.Load(), want)
	}
	// What is left of a line that nobody serves goes with its last job.
	e := call(c, "fbus.purge", args.JSON([]byte(`{"state":"queued"}`)), "")
	if want := fmt.Sprintf("{\"purged\":%d}\n", functions-int(want)); e.out != want {
		t.Errorf("%q, %+v", e.out, e.res)
	}
	eventually(t, "no line is left that could be", func() bool { return b.m.Window() == 0 })
}

// TestAbsentAgain: a job whose last worker leaves waits, and runs when one comes again.
func TestAbsentAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	g := newGate()
	near, far := b.dial("near"), b.dial("far")
	b.offer(near, "f", 1, g.handle)
	b.offer(far, "f", 1, g.handle)
	held := b.post(c, "f", `{"on":"near","at_most_once":true}`, "held")
	await(t, "the first", g.started)
	waits := b.post(c, "f", `{"on":"near"}`, "waits")
	near.Close()
	b.becomes(c, held, jobs.Dead)
	if i := b.job(c, waits); i.State != jobs.Queued || i.Attempts != 0 || i.Note != "no worker that offers it matches near" {
		t.Errorf("%+v", i)
	}
	b.offer(b.dial("near"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result { return saying(string(inv.Head())) })
	if e := b.result(c, waits); e.out != "waits" {
		t.Errorf("%+v", e)
	}
	if i := b.job(c, waits); i.Attempts != 1 {
		t.Errorf("%+v", i)
	}
}

// TestUnservedCancelled: jobs that nobody serves can be cancelled, purged and retried, and
// a line without jobs is forgotten.
func TestUnservedCancelled(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	first, second := b.post(c, "nobody", "", "1"), b.post(c, "nobody", "", "2")
	if e := call(c, "fbus.cancel", args.List(first), ""); e.res.Status != 0 {
		t.Errorf("%+v", e)
	}
	b.becomes(c, first, jobs.Cancelled)
	call(c, "fbus.purge", args.JSON([]byte(`{"ids":["`+second+`"],"state":"queued"}`)), "")
	eventually(t, "the line is forgotten", func() bool { return len(b.m.Lines()) == 0 })
	call(c, "fbus.retry", args.JSON([]byte(`{"ids":["`+first+`"]}`)), "")
	b.becomes(c, first, jobs.Queued)
	b.offer(b.dial("worker"), "nobody", 1, func(_ context.Context, inv *bus.Invocation) bus.Result { return saying(string(inv.Head())) })
	if e := b.result(c, first); e.out != "1" {
		t.Errorf("%+v", e)
	}
}

// TestWaitingIsBounded: jobs of a busy function for many globs of workers, with large
// arguments, leave the node's buffers to calls, and another function its turn.
func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	g := newGate()
	b.offer(b.dial("worker"), "busy", 1, g.handle)
	holder := b.post(c, "busy", "", "")
	await(t, "the slot is taken", g.started)
	const lines, size = 60, 900 << 10
	large := strings.Repeat("x", size)
	var ids []string
	for i := range lines {
		ids = append(ids, b.post(c, "busy", fmt.Sprintf(`{"on":"w*%s"}`, strings.Repeat("*", i)), "", large))
	}
	worker := b.dial("other")
	b.offer(worker, "free", 1, func(_ context.Context, inv *bus.Invocation) bus.Result { return saying("free") })
	if e := call(c, "free", args.List(), ""); e.out != "free" {
		t.Errorf("a call: %+v", e.res)
	}
	if e := b.result(c, b.post(c, "free", "", "", large)); e.out != "free" {
		t.Errorf("a job: %+v", e.res)
	}
	for range lines + 1 {
		g.release <- exit(0)
	}
	for _, id := range append(ids, holder) {
		if e := b.result(c, id); e.res.Code != "exit" || e.res.Status != 0 {
			t.Errorf("%+v", e.res)
		}
	}
}

// TestLinesOfManyWorkers: a worker that looks for a job is compared with the globs of
// workers, of which there is a bound, and with nothing else, however many lines there are.
func TestLinesOfManyWorkers(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	post := func(on string) error {
		_, err := b.m.Post(&jobs.Post{Function: "f", Poster: jobs.Poster{Caller: "uid:0"}, Options: jobs.Options{On: on}})
		return err
	}
	var posts sync.WaitGroup
	for k := range 20 {
		posts.Go(func() {
			for i := range 50 {
				if err := post(fmt.Sprintf("w%d", 50*k+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	posts.Wait()
	n := 0
	var err error
	for ; err == nil && n < 1000; n++ {
		err = post(fmt.Sprintf("*x%d", n))
	}
	if n--; n != 256 || !strings.Contains(fmt.Sprint(err), "too many different globs of workers in jobs of uid:0 (limit 256)") {
		t.Errorf("%d globs, then %v", n, err)
	}
	if err := post("*x0"); err != nil {
		t.Errorf("a glob that is there: %v", err)
	}
	c := b.dial("poster")
	b.refused(c, "f", `{"on":"`+strings.Repeat("*", 257)+`"}`, "", 64, "257 bytes exceed the limit of 256")
	for range 2 {
		if lines, compared := len(b.m.Lines()), b.m.Compared("f", "w7"); lines != 1000+256 || compared != 256+1 {
			t.Errorf("%d lines, %d compared", lines, compared)
		}
		b.restart()
	}
	if err := post("*y"); err == nil {
		t.Error("the globs were forgotten")
	}
	ran := make(chan string, 10)
	for _, name := range []string{"w7", "ax3"} {
		b.offer(b.dial(name), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
			ran <- name
			return exit(0)
		})
		if got := await(t, "a job of the worker's", ran); got != name {
			t.Errorf("%s ran", got)
		}
	}
	eventually(t, "there is room for another glob", func() bool { return post("*y") == nil })
}
