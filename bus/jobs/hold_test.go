package jobs_test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// TestHold: jobs of a held function wait, whatever their state was, and calls do not; after a
// restart too. Released, they run without further ado.
func TestHold(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	c := b.dial("admin")
	ann, _ := b.guest("ann", "*")
	hold := func(c *bus.Client, function, doc string) ended {
		return call(c, function, args.JSON([]byte(doc)), "")
	}
	g := newGate()
	b.offer(b.dial("worker"), "f", 2, g.handle)
	runs := b.post(c, "f", "", "")
	await(t, "it runs", g.started)
	if e := hold(c, "fbus.hold", `{"functions":["f","later"]}`); e.out != `{"function":"f","workers":1}`+"\n"+`{"function":"later","workers":0}`+"\n" {
		t.Errorf("%q, %+v", e.out, e.res)
	}
	ids := []string{b.post(c, "f", "", ""), b.post(c, "f", `{"delay":60}`, "")}
	g.release <- exit(0)
	b.becomes(c, runs, jobs.Done)
	b.clock.pass(time.Hour)
	b.becomes(c, ids[1], jobs.Queued)
	g.release <- exit(0)
	if e := call(c, "f", args.Args{}, ""); e.res.Status != 0 {
		t.Errorf("a call of a held function: %+v", e.res)
	}
	if inv := await(t, "the call", g.started); inv.Job != "" {
		t.Errorf("job %s runs", inv.Job)
	}
	for _, function := range []string{"fbus.hold", "fbus.release"} {
		if e := hold(ann, function, `{"functions":["f"]}`); e.res.Status != 77 {
			t.Errorf("%s by a guest: %+v", function, e.res)
		}
		for doc, status := range map[string]int{`{"functions":["a b"]}`: 64, `{"functions":["fbus.post"]}`: 64, `{"on":"["}`: 64, `{"on":"#x-1"}`: 64, `{"of":"x"}`: 64} {
			if e := hold(c, function, doc); e.res.Status != status {
				t.Errorf("%s %s: %+v", function, doc, e.res)
			}
		}
	}
	if e := hold(c, "fbus.release", `{"functions":["f","nosuch"]}`); e.res.Status != 65 || !strings.Contains(e.res.Message, "nosuch: not held") {
		t.Errorf("%+v", e.res)
	}
	b.restart()
	c = b.dial("admin")
	ran := make(chan string, 10)
	b.offer(b.dial("worker"), "f", 2, func(_ context.Context, inv *bus.Invocation) bus.Result {
		ran <- inv.Job
		return exit(0)
	})
	if i := b.job(c, ids[0]); i.State != jobs.Queued || i.Note != "its jobs are held: fbus release f" {
		t.Errorf("%+v", i)
	}
	call(c, "f", args.Args{}, "")
	if id := await(t, "the call", ran); id != "" {
		t.Errorf("job %s has run", id)
	}
	if e := hold(c, "fbus.release", `{"functions":["f"]}`); e.out != `{"function":"later","workers":0}`+"\n" {
		t.Errorf("%q, %+v", e.out, e.res)
	}
	for _, id := range ids {
		b.becomes(c, id, jobs.Done)
	}
}

// TestHoldWorkers: held workers get neither calls nor jobs, also if they connect later, and go
// on as soon as they are released.
func TestHoldWorkers(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("admin")
	hold := func(function, on string) {
		t.Helper()
		if e := call(c, function, args.JSON([]byte(`{"on":"`+on+`"}`)), ""); e.res.Status != 0 {
			t.Errorf("%+v", e.res)
		}
	}
	ran := make(chan string, 100)
	offer := func(name string) {
		b.offer(b.dial(name), "f", 1, func(context.Context, *bus.Invocation) bus.Result {
			ran <- name
			return exit(0)
		})
	}
	offer("gpu1")
	offer("cpu1")
	hold("fbus.hold", "gpu*")
	b.restart()
	c = b.dial("admin")
	offer("gpu1")
	job := b.post(c, "f", "", "")
	if i := b.job(c, job); i.Note != "all its workers are held: fbus release --on 'gpu*'" {
		t.Errorf("%+v", i)
	}
	waits := make(chan ended, 1)
	go func() { waits <- call(c, "f", args.Args{}, "") }() // ends with the call
	eventually(t, "the call waits", func() bool { return b.n.Functions("f")[0].Queued == 1 })
	if f := b.n.Functions("f")[0]; f.Waits != "all its workers are held: fbus release --on 'gpu*'" || !f.Workers[0].Held || f.Held {
		t.Errorf("%+v", f)
	}
	offer("cpu1")
	for range 2 {
		if name := await(t, "one runs", ran); name != "cpu1" {
			t.Errorf("%s is held", name)
		}
	}
	await(t, "the end", waits)
	only := b.post(c, "f", `{"on":"gpu1"}`, "")
	settles()
	if i := b.job(c, only); i.State != jobs.Queued {
		t.Errorf("%+v", i)
	}
	hold("fbus.release", "gpu*")
	b.becomes(c, only, jobs.Done)
	if why := b.n.Functions("f")[0].Waits; why != "" {
		t.Error(why)
	}
}

// TestWhyItWaits: a job says why it does not run.
func TestWhyItWaits(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	b.offer(c, "fails", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(1) })
	b.post(c, "f", "", "")
	await(t, "it runs", g.started)
	for _, test := range []struct{ function, options, note string }{
		{"f", ``, "no free slot"},
		{"f", `{"on":"else*"}`, "no worker that offers it matches else*"},
		{"nobody", ``, "no worker offers it"},
		{"f", `{"delay":3600}`, "delayed until 20"},
		{"f", `{"at":"2100-01-01T00:00:00Z"}`, "delayed until 2"},
		{"fails", `{"retries":1,"backoff":3600}`, "next try at 20"},
	} {
		id := b.post(c, test.function, test.options, "")
		eventually(t, test.note, func() bool { return strings.HasPrefix(b.job(c, id).Note, test.note) })
		list, _ := b.list(c, `{"newest":true,"limit":1}`)
		if !strings.HasPrefix(list[0].Note, test.note) {
			t.Errorf("in a list: %q", list[0].Note)
		}
	}
	id, late := b.post(c, "nobody", "", ""), b.post(c, "f", `{"delay":100}`, "")
	b.m.FailCommits(syscall.ENOSPC, false)
	b.refused(c, "f", `{}`, "", 75, "the disk is full")
	eventually(t, "it says that the disk is full", func() bool { // the store cannot be read while it is opened again
		e := call(c, "fbus.jobs", args.JSON([]byte(`{"ids":["`+id+`"]}`)), "")
		return strings.Contains(e.out, `"note":"the store of jobs is full: the disk is full"`)
	})
	b.clock.pass(time.Minute * 2)
	eventually(t, "so does one whose time has passed", func() bool {
		e := call(c, "fbus.jobs", args.JSON([]byte(`{"ids":["`+late+`"]}`)), "")
		return strings.Contains(e.out, `"note":"the store of jobs is full: the disk is full"`)
	})
	if f := b.n.Functions("f")[0]; f.Waits != "no free slot; the store of jobs is full: the disk is full" {
		t.Errorf("%+v", f)
	}
	if f := b.n.Functions("fails")[0]; f.Waits != "the store of jobs is full: the disk is full" {
		t.Errorf("%+v", f)
	}
	b.m.FailCommits(nil, false)
	eventually(t, "it works again", func() bool { return !b.m.Failing() })
}
