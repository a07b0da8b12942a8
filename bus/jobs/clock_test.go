package jobs_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/jobs"
)

const day = 24 * time.Hour

// settles gives the node the time for several looks at the clock, in which nothing
// is to happen: there is no event to wait for.
func settles() { time.Sleep(1200 * time.Millisecond) }

// TestDateSteps: a date that is set a day forward, or back, or both while the node
// is down, neither runs a delayed job early nor keeps it from running.
func TestDateSteps(t *testing.T) {
	t.Parallel()
	for name, step := range map[string]func(b *bed){
		"forward":                  func(b *bed) { b.clock.set(day) },
		"back":                     func(b *bed) { b.clock.set(-day) },
		"forward over a restart":   func(b *bed) { b.close(); b.clock.set(day); b.open() },
		"back over a restart":      func(b *bed) { b.close(); b.clock.set(-day); b.open() },
		"back over a reboot":       func(b *bed) { b.close(); b.clock.reboot(-day); b.cfg.Clock = b.clock.Clock(); b.open() },
		"to 1970 over a reboot":    func(b *bed) { b.close(); b.clock.reboot(-50 * 365 * day); b.cfg.Clock = b.clock.Clock(); b.open() },
		"not at all over a reboot": func(b *bed) { b.close(); b.clock.reboot(0); b.cfg.Clock = b.clock.Clock(); b.open() },
		"forward and back":         func(b *bed) { b.clock.set(day); settles(); b.clock.set(-day) },
		"back, then right by a reboot": func(b *bed) {
			b.close()
			b.clock.reboot(-day)
			b.cfg.Clock = b.clock.Clock()
			b.open()
			settles()
			b.clock.set(day)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			id := b.post(b.dial("poster"), "f", `{"delay":3600}`, "")
			step(b)
			c := b.dial("worker")
			b.offer(c, "f", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(0) })
			b.clock.pass(50 * time.Minute)
			settles()
			if i := b.job(c, id); i.State != jobs.Delayed {
				t.Fatalf("after 50 minutes of 60 it is %s", i.State)
			}
			b.clock.pass(15 * time.Minute)
			b.becomes(c, id, jobs.Done)
		})
	}
}

// TestDateOfPost: a job for a date runs when the date is there, however it came to
// be: by waiting, by being set, while the node was down, or over a reboot.
func TestDateOfPost(t *testing.T) {
	t.Parallel()
	at := func(b *bed, d time.Duration) string {
		return fmt.Sprintf(`{"at":%q}`, b.clock.Clock().Wall().Add(d).Format(time.RFC3339))
	}
	reboot := func(b *bed, d time.Duration) {
		b.close()
		b.clock.reboot(d)
		b.cfg.Clock = b.clock.Clock()
		b.open()
	}
	for name, step := range map[string]struct{ early, late func(b *bed) }{
		"waiting":                {func(b *bed) { b.clock.pass(50 * time.Minute) }, func(b *bed) { b.clock.pass(20 * time.Minute) }},
		"set forward":            {func(b *bed) { b.clock.set(50 * time.Minute) }, func(b *bed) { b.clock.set(20 * time.Minute) }},
		"set back, and a day on": {func(b *bed) { b.clock.set(-day); settles(); b.clock.pass(2 * time.Hour) }, func(b *bed) { b.clock.set(day) }},
		"set forward while down": {func(b *bed) { b.close(); b.clock.set(50 * time.Minute); b.open() }, func(b *bed) { b.close(); b.clock.set(20 * time.Minute); b.open() }},
		"set back while down":    {func(b *bed) { b.close(); b.clock.set(-day); b.open(); b.clock.pass(2 * time.Hour) }, func(b *bed) { b.clock.pass(day) }},
		"down for the time":      {func(b *bed) { b.close(); b.clock.pass(50 * time.Minute); b.open() }, func(b *bed) { b.close(); b.clock.pass(20 * time.Minute); b.open() }},
		"a reboot":               {func(b *bed) { reboot(b, 50*time.Minute) }, func(b *bed) { reboot(b, 20*time.Minute) }},
		"a reboot without a date": {func(b *bed) { reboot(b, -50*365*day); settles(); b.clock.pass(2 * time.Hour) },
			func(b *bed) { b.clock.set(50 * 365 * day) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			id := b.post(b.dial("poster"), "f", at(b, time.Hour), "")
			step.early(b)
			c := b.dial("worker")
			b.offer(c, "f", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(0) })
			settles()
			if i := b.job(c, id); i.State != jobs.Delayed {
				t.Fatalf("before its date it is %s", i.State)
			}
			step.late(b)
			c = b.dial("worker")
			b.offer(c, "f", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(0) })
			b.becomes(c, id, jobs.Done)
		})
	}
}

// TestAbsentFor an hour: jobs for a function that nobody offers wait, visible as
// such, and run when somebody does.
func TestAbsentFunction(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	var ids []string
	for i := range 1200 { // more than a line holds in memory
		ids = append(ids, b.post(c, "absent", `{"keep":1e6}`, fmt.Sprint(i)))
	}
	first := b.job(c, ids[0])
	if first.State != jobs.Queued || first.Note != "no worker offers it" {
		t.Errorf("while nobody offers it: %+v", first)
	}
	b.clock.pass(time.Hour)
	settles()
	b.restart()
	b.clock.pass(time.Hour)
	w := b.dial("worker")
	b.offer(w, "absent", 8, func(_ context.Context, inv *bus.Invocation) bus.Result { return saying("got " + string(inv.Head())) })
	for i, id := range ids {
		if e := b.result(w, id); e.out != fmt.Sprint("got ", i) || e.res.Status != 0 {
			t.Fatalf("job %d: %q %+v", i, e.out, e.res)
		}
	}
	if i := b.job(w, ids[0]); i.Age < 7000 || i.Attempts != 1 {
		t.Errorf("%+v", i)
	}
}

// TestKeep: results go when their time is over, dead jobs do not, and what they took
// is free again.
func TestKeep(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("worker")
	big := string(make([]byte, 100<<10))
	b.offer(c, "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write([]byte(big))
		return exit(int(inv.Args[1] - '0'))
	})
	done := b.post(c, "f", `{"kind":"json","keep":60}`, "", `"0"`)
	long := b.post(c, "f", `{"kind":"json","keep":7200}`, "", `"0"`)
	dead := b.post(c, "f", `{"kind":"json","keep":60}`, "", `"1"`)
	b.becomes(c, dead, jobs.Dead)
	if e := b.result(c, done); e.out != big {
		t.Errorf("%d bytes, %+v", len(e.out), e.res)
	}
	b.clock.pass(59 * time.Second / 2)
	settles()
	if _, total := b.list(c, `{}`); total != 3 {
		t.Errorf("%d jobs are there", total)
	}
	b.clock.pass(time.Minute)
	eventually(t, "one is gone", func() bool { _, total := b.list(c, `{}`); return total == 2 })
	if e := b.result(c, done); e.res.Status != 65 {
		t.Errorf("%+v", e.res)
	}
	b.clock.pass(3 * time.Hour)
	eventually(t, "two are gone", func() bool { _, total := b.list(c, `{}`); return total == 1 })
	if e := b.result(c, long); e.res.Status != 65 {
		t.Errorf("%+v", e.res)
	}
	if e := b.result(c, dead); e.res.Status != 1 || e.out != big {
		t.Errorf("%+v", e.res)
	}
	if n, bytes := b.m.Totals(); n != 1 || len(jobs.Files(b.cfg.Dir)) != 1 || bytes < 100<<10 || bytes > 101<<10 {
		t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
	}
}
