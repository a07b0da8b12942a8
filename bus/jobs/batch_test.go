package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"

	bolt "go.etcd.io/bbolt"
)

// waited asks fbus.wait, and returns the last line of its answer.
func (b *bed) waited(c *bus.Client, query string) (last bus.WaitInfo) {
	b.t.Helper()
	e := call(c, "fbus.wait", args.JSON([]byte(query)), "")
	if e.res.Status != 0 {
		b.t.Fatalf("fbus.wait %s: %+v", query, e.res)
	}
	lines := strings.Split(strings.TrimSpace(e.out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		b.t.Fatal(err)
	}
	return last
}

// asked calls one of the node's own functions with an object.
func (b *bed) asked(c *bus.Client, function, query string) string {
	b.t.Helper()
	e := call(c, function, args.JSON([]byte(query)), "")
	if e.res.Status != 0 {
		b.t.Fatalf("%s %s: %+v", function, query, e.res)
	}
	return e.out
}

// TestBatch: the jobs of a batch are listed, waited for, cancelled, retried and purged as
// one; a batch of the same name of another poster is another batch.
func TestBatch(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	c := b.dial("c")
	other, _ := b.guest("ann", "*")
	b.offer(c, "f", 2, func(_ context.Context, inv *bus.Invocation) bus.Result {
		if string(inv.Head()) == "bad" {
			return exit(3)
		}
		return exit(0)
	})
	var ids []string
	for _, word := range []string{"a", "bad", "b"} {
		ids = append(ids, b.post(c, "f", `{"batch":"x","item":"`+word+`"}`, word))
	}
	b.post(c, "f", `{"batch":"y"}`, "a")
	b.post(c, "f", ``, "a")
	others := b.post(other, "f", `{"batch":"x"}`, "a")
	if got, want := b.waited(c, `{"batch":"x"}`), (bus.WaitInfo{Jobs: 3, Done: 2, Dead: 1}); got != want {
		t.Errorf("waited for %+v, want %+v", got, want)
	}
	if got, want := b.waited(other, `{"batch":"x"}`), (bus.WaitInfo{Jobs: 1, Done: 1}); got != want {
		t.Errorf("waited for %+v, want %+v", got, want)
	}
	if got, want := b.waited(c, fmt.Sprintf(`{"ids":[%q,%q]}`, ids[0], ids[1])), (bus.WaitInfo{Jobs: 2, Done: 1, Dead: 1}); got != want {
		t.Errorf("waited for %+v, want %+v", got, want)
	}
	list, total := b.list(c, `{"batch":"x"}`)
	if total != 3 || list[0].ID != ids[0] || list[1].ID != ids[1] || list[2].ID != ids[2] || list[1].Item != "bad" || list[0].Batch != "x" {
		t.Errorf("%d: %+v", total, list)
	}
	for query, want := range map[string][]string{
		`{"batch":"x","limit":1}`:                        ids[:1],
		`{"batch":"x","limit":2,"newest":true}`:          ids[1:],
		`{"batch":"x","after":"` + ids[0] + `"}`:         ids[1:],
		`{"batch":"x","state":"dead"}`:                   ids[1:2],
		`{"batch":"x","state":"queued"}`:                 nil,
		`{"batch":"ticket:ann/x"}`:                       {others},
		`{"batch":"x","after":"` + ids[2] + `"}`:         nil,
		`{"batch":"x","state":"dead","function":"none"}`: nil,
	} {
		list, _ := b.list(c, query)
		var got []string
		for _, i := range list {
			got = append(got, i.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for _, function := range []string{"fbus.jobs", "fbus.wait", "fbus.cancel", "fbus.retry", "fbus.purge"} {
		for _, batch := range []string{"y", "uid:0/x", "none"} {
			if e := call(other, function, args.JSON([]byte(`{"batch":"`+batch+`"}`)), ""); e.res.Code != args.CodeBadInput || e.out != "" {
				t.Errorf("%s of %s: %q, %+v", function, batch, e.out, e.res)
			}
		}
	}
	if e := call(c, "fbus.post", args.List("f", `{"batch":"a/b"}`), ""); e.res.Code != args.CodeUsage {
		t.Errorf("%+v", e.res)
	}

	if out := b.asked(c, "fbus.retry", `{"batch":"x"}`); out != fmt.Sprintf("{\"id\":%q}\n", ids[1]) {
		t.Errorf("retried %s", out)
	}
	b.waited(c, `{"batch":"x"}`)
	if i := b.job(c, ids[1]); i.Attempts != 2 {
		t.Errorf("%+v", i)
	}
	b.post(c, "nobody", `{"batch":"x"}`, "")
	b.post(c, "nobody", `{"batch":"x","delay":60}`, "")
	if out := b.asked(c, "fbus.cancel", `{"batch":"x"}`); strings.Count(out, "\n") != 2 || !strings.Contains(out, `"state":"delayed"`) {
		t.Errorf("cancelled %s", out)
	}
	if got, want := b.waited(c, `{"batch":"x"}`), (bus.WaitInfo{Jobs: 5, Done: 2, Dead: 1, Cancelled: 2}); got != want {
		t.Errorf("waited for %+v, want %+v", got, want)
	}
	b.restart()
	c = b.dial("c")
	if got, want := b.waited(c, `{"batch":"x"}`), (bus.WaitInfo{Jobs: 5, Done: 2, Dead: 1, Cancelled: 2}); got != want {
		t.Errorf("after a restart %+v, want %+v", got, want)
	}
	if out := b.asked(c, "fbus.purge", `{"batch":"x"}`); out != "{\"purged\":5}\n" {
		t.Errorf("purged %s", out)
	}
	if _, total := b.list(c, `{}`); total != 3 {
		t.Errorf("%d jobs are left", total)
	}
}

// TestBatchCancelled: running jobs of a batch end too, at the same time.
func TestBatchCancelled(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c, g := b.dial("c"), newGate()
	b.offer(c, "f", 3, g.handle)
	for range 5 {
		b.post(c, "f", `{"batch":"x"}`, "")
	}
	for range 3 {
		await(t, "it runs", g.started)
	}
	if out := b.asked(c, "fbus.cancel", `{"batch":"x"}`); strings.Count(out, "\n") != 5 {
		t.Errorf("cancelled %s", out)
	}
	if got, want := b.waited(c, `{"batch":"x"}`), (bus.WaitInfo{Jobs: 5, Cancelled: 5}); got != want {
		t.Errorf("waited for %+v, want %+v", got, want)
	}
}

// TestWaitShows: what is waited for is reported as it changes.
func TestWaitShows(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c, g := b.dial("c"), newGate()
	b.offer(c, "f", 1, g.handle)
	for range 2 {
		b.post(c, "f", `{"batch":"x"}`, "")
	}
	await(t, "it runs", g.started)
	lines, ended := make(chan bus.WaitInfo, 100), make(chan error, 1)
	ctx, stop := context.WithCancel(bg())
	defer stop()
	go func() { // ends with the wait
		ended <- b.m.WaitBatch(ctx, jobs.BatchKey("uid:0", "x"), func(i bus.WaitInfo) error { lines <- i; return nil })
	}()
	if got, want := await(t, "the first line", lines), (bus.WaitInfo{Jobs: 2, Running: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	g.release <- exit(0)
	await(t, "it runs", g.started)
	for got := range lines {
		if got == (bus.WaitInfo{Jobs: 2, Running: 1, Done: 1}) {
			break
		}
	}
	g.release <- exit(1)
	if err := await(t, "the end", ended); err != nil {
		t.Error(err)
	}
	close(lines)
	var last bus.WaitInfo
	for i := range lines {
		last = i
	}
	if want := (bus.WaitInfo{Jobs: 2, Done: 1, Dead: 1}); last != want {
		t.Errorf("%+v, want %+v", last, want)
	}
}

// TestWaitCountsOnce: jobs that end while the wait begins count once.
func TestWaitCountsOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c, g := b.dial("c"), newGate()
	const many = 300
	b.offer(c, "f", many, g.handle)
	var ids []jobs.ID
	for range many {
		id, _ := jobs.ParseID(b.post(c, "f", "", ""))
		ids = append(ids, id)
	}
	for range many {
		await(t, "it runs", g.started)
	}
	go func() { // ends soon
		for range many {
			g.release <- exit(0)
		}
	}()
	eventually(t, "the first has ended", func() bool { return b.job(c, ids[0].String()).State == jobs.Done })
	var last bus.WaitInfo
	if err := b.m.WaitJobs(t.Context(), ids, func(i bus.WaitInfo) error { last = i; return nil }); err != nil || last != (bus.WaitInfo{Jobs: many, Done: many}) {
		t.Errorf("waited for %+v, error %v", last, err)
	}
}

// TestWaitShowsProgressOfQueued: a job that is queued when the wait begins shows its progress when it runs.
func TestWaitShowsProgressOfQueued(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("c")
	id, _ := jobs.ParseID(b.post(c, "f", "", ""))
	lines, ended := make(chan bus.WaitInfo, 100), make(chan error, 1)
	go func() { // ends with the job
		ended <- b.m.WaitJobs(t.Context(), []jobs.ID{id}, func(i bus.WaitInfo) error { lines <- i; return nil })
	}()
	if i := await(t, "the first line", lines); i.Running != 0 {
		t.Errorf("before there is a worker: %+v", i)
	}
	release := make(chan struct{})
	b.offer(c, "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Progress(bus.Progress{Done: 1, Total: 2})
		<-release
		return bus.Exit(0)
	})
	for i := await(t, "a line while it runs", lines); i.Running != 1 || i.Progress == nil || i.Progress.Total != 2; {
		i = await(t, "its progress", lines)
	}
	close(release)
	if err := await(t, "the end", ended); err != nil {
		t.Error(err)
	}
}

// thens returns the documents that jobs of a function were posted with.
func thens(b *bed, c *bus.Client, function string) (docs []string) {
	b.t.Helper()
	list, _ := b.list(c, `{"function":"`+function+`"}`)
	for _, i := range list {
		b.becomes(c, i.ID, jobs.Done)
		docs = append(docs, b.result(c, i.ID).out)
	}
	return docs
}

// TestBatchThen: the end of a batch posts a job, once, whenever that was asked for, and
// whatever node sees the end.
func TestBatchThen(t *testing.T) {
	t.Parallel()
	const doc = `{"batch":"x","poster":"uid:0","jobs":3,"done":2,"dead":1,"cancelled":0}`
	bad := func(b *bed, c *bus.Client) {
		b.offer(c, "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
			if string(inv.Head()) == "bad" {
				return exit(3)
			}
			return exit(0)
		})
		b.offer(c, "after", 1, func(_ context.Context, inv *bus.Invocation) bus.Result { return saying(string(inv.Args)) })
	}
	three := func(b *bed, c *bus.Client) {
		for _, word := range []string{"a", "bad", "b"} {
			b.post(c, "f", `{"batch":"x"}`, word)
		}
	}
	arm := func(b *bed, c *bus.Client) { b.asked(c, "fbus.batch", `{"batch":"x","then":"after","keep":99}`) }
	for name, play := range map[string]func(t *testing.T, b *bed, c *bus.Client) *bus.Client{
		"asked for before": func(t *testing.T, b *bed, c *bus.Client) *bus.Client {
			three(b, c)
			arm(b, c)
			arm(b, c) // again is no more
			bad(b, c)
			b.waited(c, `{"batch":"x"}`)
			return c
		},
		"asked for after": func(t *testing.T, b *bed, c *bus.Client) *bus.Client {
			three(b, c)
			bad(b, c)
			b.waited(c, `{"batch":"x"}`)
			arm(b, c)
			return c
		},
		"another node": func(t *testing.T, b *bed, c *bus.Client) *bus.Client {
			three(b, c)
			arm(b, c)
			b.restart()
			c = b.dial("c")
			bad(b, c)
			b.waited(c, `{"batch":"x"}`)
			return c
		},
		"results that are gone": func(t *testing.T, b *bed, c *bus.Client) *bus.Client {
			three(b, c)
			id := b.post(c, "nobody", `{"batch":"x"}`, "")
			arm(b, c)
			bad(b, c)
			list, _ := b.list(c, `{"batch":"x"}`)
			for _, i := range list[:3] {
				b.result(c, i.ID)
			}
			b.asked(c, "fbus.purge", `{"batch":"x"}`)
			b.asked(c, "fbus.purge", `{"ids":["`+id+`"],"state":"queued"}`)
			return c
		},
		"a disk that fails": func(t *testing.T, b *bed, c *bus.Client) *bus.Client {
			three(b, c)
			arm(b, c)
			for _, torn := range []bool{true, false} {
				b.m.FailCommits(errors.New("injected"), torn)
				if torn {
					bad(b, c)
				}
				call(c, "fbus.post", args.List("nobody"), "") // if nothing else is written
				eventually(t, "the store fails", b.m.Failing)
				b.m.FailCommits(nil, false)
				eventually(t, "the store works", func() bool { return !b.m.Failing() })
			}
			b.waited(c, `{"batch":"x"}`)
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			c := play(t, b, b.dial("c"))
			eventually(t, "it is posted", func() bool { return len(thens(b, c, "after")) > 0 })
			want := doc
			if name == "results that are gone" {
				want = strings.Replace(strings.Replace(want, `:3`, `:4`, 1), `:0}`, `:1}`, 1)
			}
			b.m.AwaitIdle()
			if got := thens(b, c, "after"); len(got) != 1 || got[0] != want {
				t.Errorf("posted %q, want %s", got, want)
			}
			if list, _ := b.list(c, `{"function":"after"}`); list[0].Keep != 99 {
				t.Errorf("%+v", list[0])
			}
			b.restart()
			c = b.dial("c")
			bad(b, c)
			if got := thens(b, c, "after"); len(got) != 1 {
				t.Errorf("posted %q after a restart", got)
			}
			if held := b.m.Held("uid:0"); held.Owed != 0 {
				t.Errorf("held %+v", held)
			}
		})
	}
}

// TestBatchThenOfNothing: a batch without jobs has ended.
func TestBatchThenOfNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("c")
	b.offer(c, "after", 1, func(_ context.Context, inv *bus.Invocation) bus.Result { return saying(string(inv.Args)) })
	b.asked(c, "fbus.batch", `{"batch":"x","then":"after"}`)
	eventually(t, "it is posted", func() bool { return len(thens(b, c, "after")) > 0 })
	if got := thens(b, c, "after"); got[0] != `{"batch":"x","poster":"uid:0","jobs":0,"done":0,"dead":0,"cancelled":0}` {
		t.Errorf("posted %q", got)
	}
	for query, code := range map[string]string{
		`{"batch":"/","then":"f"}`:              args.CodeUsage,
		`{"batch":"x","then":""}`:               args.CodeUsage,
		`{"batch":"x","then":"fbus.jobs"}`:      args.CodeUsage,
		`{"batch":"x","then":"f","retries":-1}`: args.CodeUsage,
	} {
		if e := call(c, "fbus.batch", args.JSON([]byte(query)), ""); e.res.Code != code {
			t.Errorf("%s: %+v", query, e.res)
		}
	}
}

// TestStoreWithoutBatches: a store that an earlier version made has no buckets of batches.
func TestStoreWithoutBatches(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	id := b.post(b.dial("c"), "f", "", "input")
	b.close()
	db, err := bolt.Open(filepath.Join(b.cfg.Dir, "jobs.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{"batch", "unended", "then"} {
			if err := tx.DeleteBucket([]byte(name)); err != nil && err.Error() != "bucket not found" {
				return err
			}
		}
		return nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	b.open()
	c := b.dial("c")
	if i := b.job(c, id); i.State != jobs.Queued {
		t.Errorf("%+v", i)
	}
	if e := call(c, "fbus.jobs", args.JSON([]byte(`{"batch":"x"}`)), ""); e.res.Code != args.CodeBadInput {
		t.Errorf("%+v", e.res)
	}
	b.post(c, "f", `{"batch":"x"}`, "")
	if list, _ := b.list(c, `{"batch":"x"}`); len(list) != 1 {
		t.Errorf("%+v", list)
	}
	if b.warnings() != "" {
		t.Error(b.warnings())
	}
}

// TestBatchesAreListedAgain: lists of batches that differ from the jobs, as an earlier version
// may leave them, are made again, and nothing is taken for damaged.
func TestBatchesAreListedAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("c")
	b.offer(c, "f", 1, func(context.Context, *bus.Invocation) bus.Result { return exit(0) })
	b.result(c, b.post(c, "f", `{"batch":"x"}`, ""))
	b.post(c, "nobody", `{"batch":"x"}`, "")
	for _, gone := range [][]string{{"unended"}, {"batch"}, {"batch", "unended"}} {
		b.close()
		db, err := bolt.Open(filepath.Join(b.cfg.Dir, "jobs.db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bolt.Tx) error {
			for _, name := range gone {
				if err := tx.DeleteBucket([]byte(name)); err != nil {
					return err
				}
			}
			return nil
		})
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		b.open()
		c = b.dial("c")
		if list, _ := b.list(c, `{"batch":"x"}`); len(list) != 2 {
			t.Errorf("without %q: %+v", gone, list)
		}
	}
	if out := b.asked(c, "fbus.cancel", `{"batch":"x"}`); strings.Count(out, "\n") != 1 {
		t.Errorf("cancelled %s", out)
	}
	if said := b.warnings(); strings.Contains(said, "damaged") || strings.Count(said, "made again") != 3 {
		t.Error(said)
	}
}
