package jobs_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// running notes the inputs of what runs, in order.
type running struct {
	mu    sync.Mutex
	order []string
}

func (r *running) note(inv *bus.Invocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = append(r.order, string(inv.Head()))
}

func (r *running) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.order)
}

// TestOrder: with one slot, jobs run by priority and then by age, whenever they came:
// before there was a worker, while one ran, before a restart, or retried.
func TestOrder(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	post := func(word string, priority int) { b.post(c, "f", fmt.Sprintf(`{"priority":%d}`, priority), word) }
	post("c1", 0)
	post("e1", -100)
	post("c2", 0)
	post("a1", 100)
	post("b1", 1)
	b.restart()
	c = b.dial("poster")
	post("c3", 0)
	post("a2", 100)
	post("d1", -1)
	var ran running
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		ran.note(inv)
		return g.handle(ctx, inv)
	})
	await(t, "the first", g.started)
	// The next one stands at the node already: a more urgent one takes its turn.
	post("b2", 1)
	post("a3", 100)
	post("c4", 0)
	for range 11 {
		g.release <- exit(0)
	}
	eventually(t, "all have run", func() bool { return len(ran.list()) == 11 })
	if got, want := strings.Join(ran.list(), " "), "a1 a2 a3 b1 b2 c1 c2 c3 c4 d1 e1"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

// TestOrderOfMany: the order holds for more jobs than a line has in memory, and each
// runs once.
func TestOrderOfMany(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	const n = 2500
	var posters sync.WaitGroup
	for k := range 10 {
		posters.Go(func() {
			for i := k; i < n; i += 10 {
				b.post(c, "f", fmt.Sprintf(`{"priority":%d}`, i%3), fmt.Sprint(i%3))
			}
		})
	}
	posters.Wait()
	var ran running
	b.offer(b.dial("worker"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		ran.note(inv)
		return exit(0)
	})
	eventually(t, "all have run", func() bool { return len(ran.list()) >= n })
	list := ran.list()
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	slices.Reverse(sorted)
	if !slices.Equal(list, sorted) {
		t.Error("not in the order of their priorities")
	}
	settles()
	if len(ran.list()) != n {
		t.Errorf("%d of %d have run", len(ran.list()), n)
	}
}

// TestPoison: a job that kills whoever runs it does not hold up the others, and is dead
// after three.
func TestPoison(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	poison := b.post(c, "f", `{"retries":9,"backoff":0.05,"priority":100}`, "poison")
	var ids []string
	for i := range 50 {
		ids = append(ids, b.post(c, "f", "", fmt.Sprint(i)))
	}
	var killed atomic.Int32
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for k := range 2 {
		workers.Go(func() { // ends when stop is closed
			for {
				w := b.dial(fmt.Sprint("worker", k))
				die := make(chan struct{}, 1)
				w.Offer(bg(), bus.Offer{Name: "f", Slots: 1}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
					if string(inv.Head()) != "poison" {
						return saying("ate " + string(inv.Head()))
					}
					killed.Add(1)
					die <- struct{}{}
					<-ctx.Done()
					return exit(0)
				})
				select {
				case <-die:
					w.Close()
				case <-stop:
					return
				}
			}
		})
	}
	for i, id := range ids {
		if e := b.result(c, id); e.out != fmt.Sprint("ate ", i) {
			t.Errorf("%q %+v", e.out, e.res)
		}
	}
	i := b.becomes(c, poison, jobs.Dead)
	close(stop)
	workers.Wait()
	if killed.Load() != 3 || i.Attempts != 3 || i.Used != 0 || i.Code != args.CodeWorkerLost || i.Message != "its worker was lost 3 times" || len(i.History) != 3 {
		t.Errorf("%d workers were killed; %+v", killed.Load(), i)
	}
}

// TestPoisonElsewhere: nor does one that fails at once, or one whose worker says busy.
func TestPoisonElsewhere(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	var bad []string
	for i := range 20 {
		bad = append(bad, b.post(c, "f", `{"retries":1000000,"priority":50,"backoff":0.001}`, []string{"fail", "busy"}[i%2]))
	}
	var ids []string
	for i := range 200 {
		ids = append(ids, b.post(c, "f", "", fmt.Sprint(i)))
	}
	b.offer(b.dial("worker"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		switch string(inv.Head()) {
		case "fail":
			return exit(1)
		case "busy":
			return exit(75)
		}
		return exit(0)
	})
	for _, id := range ids {
		if e := b.result(c, id); e.res.Status != 0 {
			t.Errorf("%+v", e.res)
		}
	}
	for _, id := range bad {
		if i := b.job(c, id); i.State.Finished() {
			t.Errorf("%+v", i)
		}
	}
}

// TestNobodyWaits: a list, a purge and the reading of a result end with their caller.
func TestNobodyWaits(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("poster")
	b.offer(b.dial("worker"), "f", 1, func(context.Context, *bus.Invocation) bus.Result { return saying(strings.Repeat("x", 100<<10)) })
	id, _ := jobs.ParseID(b.post(c, "f", "", ""))
	b.becomes(c, id.String(), jobs.Done)
	for range 300 {
		b.post(c, "g", "", "")
	}
	gone, leave := context.WithCancel(bg())
	shown := 0
	_, err := b.m.List(gone, &jobs.Query{}, func(*jobs.Job, *bus.JobInfo) error {
		shown++
		leave()
		return nil
	})
	if shown != 1 || err != context.Canceled {
		t.Errorf("%d jobs were shown after the first: %v", shown-1, err)
	}
	for _, q := range []jobs.Query{{Filter: jobs.Filter{Function: "absent"}}, {Limit: 1, Newest: true, Filter: jobs.Filter{Function: "?"}}} {
		if _, err := b.m.List(gone, &q, func(*jobs.Job, *bus.JobInfo) error { t.Error("a job was shown"); return nil }); err != context.Canceled {
			t.Errorf("%+v: %v", q, err)
		}
	}
	if n, err := b.m.Purge(gone, &jobs.Filter{State: jobs.Queued}, 0); n != 0 || err != context.Canceled {
		t.Errorf("%d jobs were purged: %v", n, err)
	}
	j, err := b.m.Get(id)
	if err == nil {
		_, _, err = b.m.Result(gone, j)
	}
	if err != context.Canceled {
		t.Errorf("the output was read: %v", err)
	}
	list, total := b.list(c, `{"newest":true,"limit":250}`)
	if all, _ := b.list(c, `{}`); total != 301 || len(list) != 250 || list[0].ID != all[51].ID || list[249].ID != all[300].ID {
		t.Errorf("the newest of %d: %d", total, len(list))
	}
}

// TestPostersGone: the posts of callers that have gone hold up no job.
func TestPostersGone(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	for i := range 20 {
		c, _ := b.guest(fmt.Sprint("ann", i), "f")
		for range 20 {
			go call(c, "fbus.post", args.List("f"), "") // ends with the connection
		}
		if i%2 == 0 {
			b.revoke(fmt.Sprint("ann", i))
		}
		c.Close()
	}
	b.offer(b.dial("worker"), "f", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(0) })
	root := b.dial("root")
	b.result(root, b.post(root, "f", "", ""))
	eventually(t, "no post is under way", func() bool { return b.m.Arriving() == 0 })
}
