package jobs_test

import (
	"context"
	"encoding/json"
	"fmt"
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

// TestEnds: what an end means for the job: 0 is done, 65 never, 75 later and no try,
// all else a try.
func TestEnds(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	attempts := make(chan int, 1000)
	b.offer(b.dial("worker"), "f", 1, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		attempts <- inv.Attempt
		inv.Stdout.Write([]byte("out"))
		inv.Stderr.Write([]byte("err"))
		var ends []int
		json.Unmarshal(inv.Args, &ends)
		switch end := ends[min(inv.Attempt, len(ends))-1]; {
		case end == -1:
			<-ctx.Done()
			return bus.Result{End: bus.End{Source: args.FromSignal, Status: 143, Code: "SIGTERM"}}
		case end > 128:
			return bus.Result{End: bus.End{Source: args.FromSignal, Status: end, Code: "SIGKILL"}}
		default:
			return exit(end)
		}
	})
	for _, test := range []struct {
		options, ends string
		state         jobs.State
		attempts      int
		code          string
	}{
		{`{}`, `[0]`, jobs.Done, 1, "exit"},
		{`{}`, `[1]`, jobs.Dead, 1, "exit"},
		{`{"retries":2}`, `[1,2,0]`, jobs.Done, 3, "exit"},
		{`{"retries":2}`, `[1,2,3]`, jobs.Dead, 3, "exit"},
		{`{"retries":5}`, `[1,65]`, jobs.Dead, 2, "exit"},
		{`{}`, `[75,75,75,0]`, jobs.Done, 4, "exit"},
		{`{"retries":1}`, `[75,1,75,75,1]`, jobs.Dead, 5, "exit"},
		{`{"retries":1}`, `[137,137]`, jobs.Dead, 2, "SIGKILL"},
		{`{"retries":1,"timeout":0.5}`, `[-1,0]`, jobs.Done, 2, "exit"},
		{`{"retries":1,"timeout":0.5}`, `[-1,-1]`, jobs.Dead, 2, args.CodeDeadline},
	} {
		options := strings.TrimSuffix(strings.Replace(test.options, "{", `{"kind":"json","backoff":0.001,`, 1), ",}")
		if test.options == `{}` {
			options = `{"kind":"json","backoff":0.001}`
		}
		id := b.post(c, "f", options, "", test.ends)
		e := b.result(c, id)
		i := b.job(c, id)
		if i.State != test.state || i.Attempts != test.attempts || i.Code != test.code || len(i.History) != test.attempts {
			t.Errorf("%s ending with %s: %+v", test.options, test.ends, i)
		}
		if e.out != "out" || e.err != "err" || e.res.Status != *i.Status || e.res.Code != i.Code {
			t.Errorf("%s ending with %s: result %q %q %+v", test.options, test.ends, e.out, e.err, e.res)
		}
		for k := range test.attempts {
			if got := await(t, "an attempt", attempts); got != k+1 {
				t.Errorf("%s ending with %s: attempt %d said %d", test.options, test.ends, k+1, got)
			}
		}
	}
}

// TestUnique: while a job with a key is not finished, posting it again gives its id, and
// queues nothing; with other arguments or input that is refused; however often the node is started meanwhile, and after
// the job was queued again.
func TestUnique(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	const key = `{"unique":"k"}`
	id := b.post(c, "f", key, "first")
	if again := b.post(c, "f", key, "first"); again != id {
		t.Errorf("posted again: %s and %s", id, again)
	}
	for _, other := range []string{strings.Repeat("second", 10000), "firsT", ""} {
		b.refused(c, "f", key, other, 65, "job "+id+" has this key, with other arguments or input")
	}
	if e := call(c, "fbus.post", args.List("f", key, "word"), "first"); e.res.Status != 65 {
		t.Errorf("with other arguments: %+v", e.res)
	}
	fields := func(f ...args.Field) string {
		return call(c, "fbus.post", args.List("f", `{"kind":"map","unique":"m"}`, string(args.Fields(f...).Data())), "").out
	}
	one, two := args.Field{Name: "a", Value: "1"}, args.Field{Name: "b", Value: "2", JSON: true}
	if m := fields(two, one); m == "" || fields(one, two) != m || fields(two, args.Field{Name: "a", Value: "2"}) != "" {
		t.Error("the order of fields must make no difference, and their values must")
	}
	if e := call(c, "fbus.cancel", args.List(strings.TrimSpace(fields(one, two))), ""); e.res.Status != 0 {
		t.Errorf("%+v", e.res)
	}
	for _, more := range []string{`,"then":"g"`, `,"priority":1,"retries":2`} {
		if again := b.post(c, "f", `{"unique":"k"`+more+`}`, "first"); again != id {
			t.Errorf("posted again with %s: %s and %s", more, id, again)
		}
	}
	b.restart()
	c = b.dial("poster")
	if again := b.post(c, "f", key, "first"); again != id {
		t.Errorf("posted again after a restart: %s and %s", id, again)
	}
	other := b.post(c, "g", key, "another function's")
	if other == id || len(jobs.Files(b.cfg.Dir)) != 0 {
		t.Errorf("%s and %s; files %q", id, other, jobs.Files(b.cfg.Dir))
	}
	g := newGate()
	b.offer(c, "f", 1, g.handle)
	if inv := await(t, "it", g.started); string(inv.Head()) != "first" {
		t.Errorf("%q was run", inv.Head())
	}
	if again := b.post(c, "f", key, "first"); again != id {
		t.Errorf("posted again while it ran: %s and %s", id, again)
	}
	g.release <- exit(1)
	b.becomes(c, id, jobs.Dead)
	second := b.post(c, "f", key, "fifth")
	if second == id {
		t.Error("the key of a dead job is not free")
	}
	if e := call(c, "fbus.retry", args.JSON([]byte(`{"ids":["`+id+`"]}`)), ""); e.res.Status != 65 || !strings.Contains(e.res.Message, second) {
		t.Errorf("a second job with that key was queued: %+v", e)
	}
	await(t, "the second", g.started)
	g.release <- exit(0)
	b.becomes(c, second, jobs.Done)
	if e := call(c, "fbus.retry", args.JSON([]byte(`{"ids":["`+id+`"]}`)), ""); e.res.Status != 0 {
		t.Errorf("%+v", e)
	}
	if again := b.post(c, "f", key, "first"); again != id {
		t.Errorf("posted again after a retry: %s and %s", id, again)
	}
	await(t, "the first again", g.started)
	g.release <- exit(0)
	b.becomes(c, id, jobs.Done)
}

// TestRetry: what is dead or cancelled is queued again with all its tries; nothing
// else is.
func TestRetry(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	status := atomic.Int32{}
	status.Store(1)
	b.offer(b.dial("worker"), "f", 4, func(_ context.Context, inv *bus.Invocation) bus.Result {
		return saying2(fmt.Sprint("attempt ", inv.Attempt), int(status.Load()))
	})
	retry := func(query string) ended { return call(c, "fbus.retry", args.JSON([]byte(query)), "") }
	var ids []string
	for range 3 {
		ids = append(ids, b.post(c, "f", `{"retries":1,"backoff":0.001}`, ""))
	}
	waits := b.post(c, "absent", "", "")
	for _, id := range ids {
		b.becomes(c, id, jobs.Dead)
	}
	for _, id := range []string{waits, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "nothing"} {
		if e := retry(`{"ids":["` + id + `"]}`); e.res.Status != 65 || e.out != "" {
			t.Errorf("retry of %s: %+v", id, e)
		}
	}
	if e := retry(`{}`); e.res.Status != 64 {
		t.Errorf("retry of nothing: %+v", e)
	}
	if e := retry(`{"dead":true,"function":"g*"}`); e.res.Status != 0 || e.out != "" {
		t.Errorf("retry of other functions' jobs: %+v", e)
	}
	status.Store(0)
	if e := retry(`{"dead":true,"function":"f"}`); e.res.Status != 0 || strings.Count(e.out, "\n") != 3 {
		t.Errorf("%+v", e)
	}
	for _, id := range ids {
		if e := b.result(c, id); e.out != "attempt 3" || e.res.Status != 0 {
			t.Errorf("%+v", e)
		}
		if i := b.job(c, id); i.Attempts != 3 || len(i.History) != 3 {
			t.Errorf("%+v", i)
		}
		if e := retry(`{"ids":["` + id + `"]}`); e.res.Status != 65 || !strings.Contains(e.res.Message, "done") {
			t.Errorf("retry of one that is done: %+v", e)
		}
	}
	if e := call(c, "fbus.cancel", args.List(waits), ""); e.res.Status != 0 {
		t.Errorf("%+v", e)
	}
	if i := b.job(c, waits); i.State != jobs.Cancelled {
		t.Errorf("%+v", i)
	}
	if e := retry(`{"ids":["` + strings.ToLower(waits) + `"]}`); e.res.Status != 0 {
		t.Errorf("%+v", e)
	}
	b.offer(c, "absent", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(0) })
	b.becomes(c, waits, jobs.Done)
}

func saying2(out string, status int) bus.Result {
	return bus.Result{End: bus.End{Status: status}, Output: []byte(out)}
}

// TestPurge: what is purged is gone, with its files, and does not run; what runs is
// never purged.
func TestPurge(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	purge := func(query string) ended { return call(c, "fbus.purge", args.JSON([]byte(query)), "") }
	for _, bare := range []string{`{}`, `{"function":"f"}`, `{"state":"running"}`, `{"state":"nothing"}`, `{"older":-1}`, `{"stat":"dead"}`} {
		if e := purge(bare); e.res.Status != 64 {
			t.Errorf("purge %s: %+v", bare, e)
		}
	}
	big := strings.Repeat("x", 100_000)
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	runs := b.post(c, "f", "", big)
	await(t, "the first", g.started)
	waits := b.post(c, "f", "", big)
	behind := b.post(c, "f", "", big)
	later := b.post(c, "f", `{"delay":1000}`, big)
	eventually(t, "one runs", func() bool { return b.job(c, runs).State == jobs.Running })
	if e := purge(`{"older":0.0001}`); e.out != "{\"purged\":0}\n" {
		t.Errorf("of those that are not finished: %+v", e)
	}
	if e := purge(`{"state":"queued"}`); e.out != "{\"purged\":2}\n" {
		t.Errorf("of those that wait: %+v", e)
	}
	if e := purge(`{"state":"delayed"}`); e.out != "{\"purged\":1}\n" {
		t.Errorf("of those that are delayed: %+v", e)
	}
	if e := purge(`{"ids":["` + runs + `"]}`); e.out != "{\"purged\":0}\n" {
		t.Errorf("of one that runs: %+v", e)
	}
	for _, id := range []string{waits, behind, later} {
		if e := b.result(c, id); e.res.Status != 65 {
			t.Errorf("%+v", e)
		}
	}
	last := b.post(c, "f", `{"priority":-100}`, "last")
	g.release <- saying(big)
	if inv := await(t, "the next", g.started); string(inv.Head()) != "last" {
		t.Error("a job was run that was purged")
	}
	g.release <- exit(1)
	b.becomes(c, last, jobs.Dead)
	b.becomes(c, runs, jobs.Done)
	b.clock.pass(time.Hour)
	if e := purge(`{"older":3000,"state":"dead"}`); e.out != "{\"purged\":1}\n" {
		t.Errorf("%+v", e)
	}
	if e := purge(`{"older":4000}`); e.out != "{\"purged\":0}\n" {
		t.Errorf("%+v", e)
	}
	if e := purge(`{"older":3000,"function":"[ef]"}`); e.out != "{\"purged\":1}\n" {
		t.Errorf("%+v", e)
	}
	if n, bytes := b.m.Totals(); n != 0 || bytes != 0 || len(jobs.Files(b.cfg.Dir)) != 0 {
		t.Errorf("%d jobs, %d bytes, files %q", n, bytes, jobs.Files(b.cfg.Dir))
	}
}

// TestCancel: a job that waits, is delayed, stands at the node, or runs is ended, and
// is not run any more.
func TestCancel(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	runs := b.post(c, "f", `{"retries":5,"finally":"g","else":"g"}`, "")
	await(t, "the first", g.started)
	ids := []string{runs, b.post(c, "f", "", ""), b.post(c, "f", "", ""), b.post(c, "f", `{"delay":100}`, "")}
	last := b.post(c, "f", "", "last")
	for _, id := range slices.Backward(ids) {
		if e := call(c, "fbus.cancel", args.List(id), ""); e.res.Status != 0 {
			t.Errorf("%+v", e)
		}
		if e := b.result(c, id); e.res.Status != 143 || e.res.Code != args.CodeCancelled {
			t.Errorf("%+v", e)
		}
		if e := call(c, "fbus.cancel", args.List(id), ""); e.res.Status != 65 || !strings.Contains(e.res.Message, "cancelled") {
			t.Errorf("cancelled twice: %+v", e)
		}
	}
	if inv := await(t, "the next", g.started); string(inv.Head()) != "last" {
		t.Errorf("%s was run, which was cancelled", inv.Job)
	}
	g.release <- exit(0)
	b.becomes(c, last, jobs.Done)
	if list, _ := b.list(c, `{"function":"g"}`); len(list) != 0 {
		t.Errorf("a cancelled job has posted %+v", list)
	}
}

// TestCancelAtTheEnd: a job is cancelled too while the end of an attempt is written
// after which it would be tried again; and while nothing can be written, that is said.
func TestCancelAtTheEnd(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	id := b.post(c, "f", `{"retries":5,"backoff":0.001}`, "")
	waits := b.post(c, "g", "", "")
	await(t, "it runs", g.started)
	eventually(t, "it is known to run", func() bool { return b.job(c, id).State == jobs.Running })
	b.m.FailCommits(syscall.EIO, false)
	b.refused(c, "f", "", "", 75, "cannot be written")
	g.release <- exit(1)
	b.m.AwaitKept(1)
	if e := call(c, "fbus.cancel", args.List(waits), ""); e.res.Status != 75 {
		t.Errorf("%+v", e)
	}
	cancelled := make(chan ended, 1)
	go func() { // ends with the call
		e := call(c, "fbus.cancel", args.List(id), "")
		for e.res.Status == 75 { // the store was being opened anew, and could not be read either
			e = call(c, "fbus.cancel", args.List(id), "")
		}
		cancelled <- e
	}()
	eventually(t, "it is asked for", func() bool { return b.m.Awaited(id) })
	b.m.FailCommits(nil, false)
	if e := await(t, "its end", cancelled); e.res.Status != 0 {
		t.Errorf("%+v", e)
	}
	if i := b.job(c, id); i.State != jobs.Cancelled {
		t.Errorf("%+v", i)
	}
	b.becomes(c, waits, jobs.Queued)
	settles()
	if len(g.started) > 0 {
		t.Error("it was run after it was cancelled")
	}
}

// TestPostbacks: the end of a job posts its output to what was named, as a job of its
// own that tells where it comes from.
func TestPostbacks(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	for _, size := range []int{0, 5, 32 << 10, 32<<10 + 1, 300_000} {
		out := strings.Repeat("o", size)
		for _, end := range []int{0, 1} {
			f := fmt.Sprintf("f-%d-%d", size, end)
			b.offer(c, f, 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
				inv.Stdout.Write([]byte(out))
				return exit(end)
			})
			id := b.post(c, f, `{"then":"then","else":"else","finally":"finally","priority":7,"keep":1000}`, "")
			state := map[int]jobs.State{0: jobs.Done, 1: jobs.Dead}[end]
			i := b.becomes(c, id, state)
			if len(i.Children) != 2 {
				t.Fatalf("%+v", i)
			}
			for k, name := range []string{map[int]string{0: "then", 1: "else"}[end], "finally"} {
				child := b.job(c, i.Children[k])
				if child.Function != name || child.Parent != id || child.Poster != "uid:0" || child.In != int64(size) || child.Priority != 7 || child.Keep != 1000 {
					t.Errorf("%+v", child)
				}
				g := newGate()
				w := b.dial("worker")
				b.offer(w, name, 1, g.handle)
				inv := await(t, "the postback", g.started)
				input := string(inv.Head())
				if inv.Rest() != nil {
					input += readAll(inv)
				}
				want := fmt.Sprintf(`{"id":%q,"function":%q,"status":%d,"attempts":1}`, id, f, end)
				if input != out || inv.Origin != want || inv.Job != child.ID {
					t.Errorf("%d bytes; %s; %s", len(input), inv.Origin, inv.Job)
				}
				g.release <- exit(0)
				b.becomes(c, child.ID, jobs.Done)
				w.Close()
			}
			if e := b.result(c, id); e.out != out || e.res.Status != end {
				t.Errorf("%d bytes, %+v", len(e.out), e.res)
			}
		}
	}
}

func readAll(inv *bus.Invocation) string {
	var sb strings.Builder
	buf := make([]byte, 32<<10)
	for {
		n, err := inv.Rest().Read(buf)
		sb.Write(buf[:n])
		if err != nil {
			return sb.String()
		}
	}
}

// TestUniqueFor: the key is kept for a time after the end, whatever that was, over a restart
// of the node, and as long as the job can be found; then it is free.
func TestUniqueFor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	const options = `{"unique":"k","unique_for":600,"keep":1}`
	offer := func() {
		b.offer(b.dial("worker"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
			return exit(len(inv.Head()) % 2)
		})
	}
	offer()
	for input, state := range map[string]jobs.State{"done": jobs.Done, "fails": jobs.Dead} {
		id := b.post(c, "f", options, input)
		b.becomes(c, id, state)
		if e := call(c, "fbus.purge", args.JSON([]byte(`{"state":"`+string(state)+`"}`)), ""); e.res.Status != 0 {
			t.Errorf("%+v", e.res)
		}
		b.clock.pass(9 * time.Minute)
		settles()
		b.restart()
		c = b.dial("poster")
		if again := b.post(c, "f", `{"unique":"k"}`, input); again != id {
			t.Errorf("%s: %s and %s", input, id, again)
		}
		b.refused(c, "f", options, "other", 65, id)
		b.clock.pass(2 * time.Minute)
		offer()
		next := b.post(c, "f", `{"unique":"k"}`, "other")
		if next == id {
			t.Error("the key is kept for longer than that")
		}
		if b.becomes(c, next, jobs.Dead); state == jobs.Dead {
			continue
		}
		eventually(t, "it has expired", func() bool { _, total := b.list(c, `{"state":"done"}`); return total == 0 })
	}
	// A retry holds the key like the first run, and again after that.
	id := b.post(c, "f", options, "fails")
	for range 2 {
		b.becomes(c, id, jobs.Dead)
		if e := call(c, "fbus.retry", args.JSON([]byte(`{"ids":["`+id+`"]}`)), ""); e.res.Status != 0 {
			t.Errorf("%+v", e.res)
		}
	}
	for _, wrong := range []string{`{"unique_for":5}`, `{"unique":"k","unique_for":-1}`} {
		b.refused(c, "f", wrong, "", 64, "unique_for")
	}
}
