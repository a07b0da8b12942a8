package jobs_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// lose has a new worker take a job, and loses it.
func (b *bed) lose(id string) {
	b.t.Helper()
	g := newGate()
	w := b.dial("lost")
	b.offer(w, "f", 1, g.handle)
	if inv := await(b.t, "it runs", g.started); inv.Job != id {
		b.t.Fatalf("%s runs, not %s", inv.Job, id)
	}
	w.Close()
}

// TestWorkerLost: a lost worker costs no attempt, and the job runs again. Three in a row
// are too many, also if the node was started again in between; another end of an attempt
// begins the count again, and so does a retry.
func TestWorkerLost(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	id := b.post(c, "f", `{"backoff":0.001,"retries":1}`, "")
	count := func(lost, used int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d losses, %d used", lost, used), func() bool {
			i := b.job(c, id)
			return i.Lost == lost && i.Used == used && i.State == jobs.Queued
		})
	}
	b.lose(id)
	count(1, 0)
	b.lose(id)
	count(2, 0)
	w := b.dial("fails")
	b.offer(w, "f", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(1) })
	b.becomes(c, id, jobs.Dead)
	w.Close()
	if i := b.job(c, id); i.Used != 2 || i.Lost != 0 || len(i.History) != 4 {
		t.Errorf("%+v", i)
	}
	id = b.post(c, "f", `{"backoff":0.001,"else":"g"}`, "")
	b.lose(id)
	b.lose(id)
	count(2, 0)
	b.restart()
	c = b.dial("poster")
	count(2, 0)
	b.lose(id)
	i := b.becomes(c, id, jobs.Dead)
	if i.Code != args.CodeWorkerLost || *i.Status != 74 || i.Message != "its worker was lost 3 times" || i.Used != 0 || i.Attempts != 3 || len(i.Children) != 1 {
		t.Errorf("%+v", i)
	}
	if h := i.History[2]; !strings.Contains(h.Message, "worker lost was lost") {
		t.Errorf("%+v", h)
	}
	if e := call(c, "fbus.retry", args.JSON([]byte(`{"ids":["`+id+`"]}`)), ""); e.res.Status != 0 {
		t.Errorf("%+v", e.res)
	}
	b.lose(id)
	count(1, 0)
	b.offer(b.dial("well"), "f", 1, echo)
	b.becomes(c, id, jobs.Done)
}

// TestWorkerGivesUp: a worker that ends a job by itself, as at the end of its drain, counts
// as lost. The job is neither cancelled nor forgotten. A crash of a kept process does not.
func TestWorkerGivesUp(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	for _, code := range []string{args.CodeCancelled, args.CodeDraining, args.CodeNodeLost} {
		b.offer(c, code, 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
			if inv.Attempt > 1 {
				return exit(0)
			}
			inv.Stdout.Write([]byte("a part")) // it has run: it is not offered elsewhere as it is
			return bus.Result{End: bus.End{Source: args.FromBus, Status: args.StatusOf(code), Code: code, Message: "enough"}}
		})
		i := b.becomes(c, b.post(c, code, `{"backoff":0.001}`, ""), jobs.Done)
		if i.Attempts != 2 || i.Used != 0 || i.History[0].Code != args.CodeWorkerLost {
			t.Errorf("%s: %+v", code, i)
		}
	}
	b.offer(c, "keeper", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		if inv.Attempt > 2 {
			return exit(0)
		}
		return bus.Result{End: bus.End{Source: args.FromBus, Status: 74, Code: args.CodeWorkerLost, Message: args.KeeperKilled}}
	})
	if i := b.becomes(c, b.post(c, "keeper", `{"backoff":0.001}`, ""), jobs.Done); i.Attempts != 3 || i.Used != 0 || i.History[0].Message != args.KeeperKilled {
		t.Errorf("%+v", i)
	}
	b.offer(c, "crashes", 1, func(context.Context, *bus.Invocation) bus.Result {
		return bus.Result{End: bus.End{Source: args.FromBus, Status: 74, Code: args.CodeWorkerLost, Message: "ended by SIGSEGV"}}
	})
	if i := b.becomes(c, b.post(c, "crashes", "", ""), jobs.Dead); i.Attempts != 1 || i.Used != 1 || i.Message != "ended by SIGSEGV" {
		t.Errorf("%+v", i)
	}
}

// TestAtMostOnce: such a job is dead as soon as its worker is lost, or its node. A worker
// that was only asked does not count.
func TestAtMostOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	const option = `{"at_most_once":true,"retries":3,"backoff":0.001,"else":"g"}`
	dead := func(id, code string) {
		t.Helper()
		i := b.becomes(c, id, jobs.Dead)
		if i.Code != code || i.Attempts != 1 || i.Used != 0 || !i.AtMostOnce || !strings.HasSuffix(i.Message, "; it is not run again (--at-most-once)") || len(i.Children) != 1 || len(i.History) != 1 {
			t.Errorf("%+v", i)
		}
		if child := b.job(c, i.Children[0]); child.State != jobs.Queued || !child.AtMostOnce {
			t.Errorf("%+v", child)
		}
	}
	id := b.post(c, "f", option, "")
	b.lose(id)
	dead(id, args.CodeWorkerLost)

	id = b.post(c, "f", option, "")
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	await(t, "it runs", g.started)
	b.n.Close() // before its worker
	b.restart()
	c = b.dial("poster")
	dead(id, args.CodeNodeLost)

	w := b.dial("busy")
	asked := make(chan struct{}, 100)
	b.offer(w, "h", 1, func(context.Context, *bus.Invocation) bus.Result {
		asked <- struct{}{}
		return bus.Result{End: bus.End{Source: args.FromBus, Status: 75, Code: args.CodeBusy}}
	})
	id = b.post(c, "h", option, "")
	await(t, "it is asked", asked)
	w.Close()
	b.restart()
	c = b.dial("poster")
	b.offer(c, "h", 1, echo)
	if i := b.becomes(c, id, jobs.Done); i.Attempts != 1 {
		t.Errorf("%+v", i)
	}
}

// TestAtMostOnceWithoutRoom: a job whose output cannot be kept has run.
func TestAtMostOnceWithoutRoom(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxSpool = 1 << 20 })
	c := b.dial("poster")
	b.post(c, "other", "", strings.Repeat("x", 700<<10))
	b.offer(c, "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write(make([]byte, 400<<10))
		return exit(0)
	})
	if i := b.becomes(c, b.post(c, "f", `{"at_most_once":true}`, ""), jobs.Dead); i.Attempts != 1 || !strings.Contains(i.Message, "could not be kept") {
		t.Errorf("%+v", i)
	}
}

// TestAtMostOnceFailing: such a job does not begin while that cannot be noted.
func TestAtMostOnceFailing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	id := b.post(c, "f", `{"at_most_once":true}`, "")
	b.m.FailCommits(syscall.EIO, false)
	ran := make(chan bool, 10)
	b.offer(b.dial("worker"), "f", 2, func(context.Context, *bus.Invocation) bus.Result {
		ran <- b.m.Failing()
		return exit(0)
	})
	eventually(t, "that is noticed", b.m.Failing)
	settles()
	b.m.FailCommits(nil, false)
	b.becomes(c, id, jobs.Done)
	if len(ran) != 1 || <-ran {
		t.Errorf("it has run %d times", len(ran)+1)
	}
}
