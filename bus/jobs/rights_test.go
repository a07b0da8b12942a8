package jobs_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/bus/trust"

	"github.com/oklog/ulid/v2"
)

// withTickets gives the node an authority.
func withTickets(b *bed) {
	a, err := trust.Open(trust.Options{Dir: filepath.Join(b.t.TempDir(), "trust"), Network: "test"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { a.Close() })
	b.auth = a
}

// guest connects with a new ticket that allows these calls.
func (b *bed) guest(name string, calls ...string) (*bus.Client, node.Peer) {
	b.t.Helper()
	rights := trust.Rights{Call: calls, Offer: []string{"*"}}
	ticket, err := b.auth.Issue(trust.LocalUser, trust.Request{Name: name, Rights: rights, Reusable: true, Addresses: []string{"127.0.0.1:1"}})
	if err != nil {
		b.t.Fatal(err)
	}
	p := node.Peer{Caller: "ticket:" + name, Rights: &rights, Serial: ticket.Serial, Expires: ticket.Expires}
	return b.dialAs(name, p), p
}

func (b *bed) revoke(name string) {
	b.t.Helper()
	if _, _, err := b.auth.Revoke(name); err != nil {
		b.t.Fatal(err)
	}
}

// TestGuests: a guest sees, fetches, cancels, retries and purges its own jobs; those
// of others are to it as if they were not there. Who administers the node sees all.
func TestGuests(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	root := b.dial("root")
	ann, _ := b.guest("ann", "f", "g")
	bob, _ := b.guest("bob", "f")
	b.offer(root, "f", 4, func(_ context.Context, inv *bus.Invocation) bus.Result { return saying(inv.Caller) })
	anns := b.post(ann, "f", `{"unique":"key"}`, "")
	waits := b.post(ann, "g", "", "secret")
	bobs := b.post(bob, "f", `{"unique":"key"}`, "")
	if e := b.result(ann, anns); e.out != "ticket:ann" {
		t.Errorf("%+v", e)
	}
	if e := b.result(bob, bobs); e.out != "ticket:bob" {
		t.Errorf("%+v", e)
	}
	const absent = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	for _, ask := range []func(id string) ended{
		func(id string) ended { return b.result(bob, id) },
		func(id string) ended { return call(bob, "fbus.result", args.List(id, `{"wait":false}`), "") },
		func(id string) ended { return call(bob, "fbus.cancel", args.List(id), "") },
		func(id string) ended { return call(bob, "fbus.jobs", args.JSON([]byte(`{"ids":["`+id+`"]}`)), "") },
		func(id string) ended { return call(bob, "fbus.retry", args.JSON([]byte(`{"ids":["`+id+`"]}`)), "") },
		func(id string) ended { return call(bob, "fbus.purge", args.JSON([]byte(`{"ids":["`+id+`"]}`)), "") },
	} {
		nothing := ask(absent)
		for _, id := range []string{anns, waits} {
			e := ask(id)
			if e.res.Status != 65 || e.res.Message != id+": no such job" || e.out != "" || e.err != "" ||
				strings.ReplaceAll(nothing.res.Message, absent, id) != e.res.Message || nothing.res.Code != e.res.Code {
				t.Errorf("another's: %+v, one that is not there: %+v", e.res, nothing.res)
			}
		}
	}
	for _, query := range []string{`{"dead":true}`, `{"state":"queued"}`} {
		call(bob, "fbus.retry", args.JSON([]byte(query)), "")
		call(bob, "fbus.purge", args.JSON([]byte(query)), "")
	}
	for c, want := range map[*bus.Client]int{ann: 2, bob: 1, root: 3} {
		for _, query := range []string{`{}`, `{"limit":1}`, `{"limit":1,"newest":true}`} {
			list, total := b.list(c, query)
			if total != want || c == bob && list[0].ID != bobs {
				t.Errorf("%s: %d jobs: %+v", query, total, list)
			}
		}
	}
	if i := b.job(root, waits); i.State != jobs.Queued || i.Poster != "ticket:ann" {
		t.Errorf("%+v", i)
	}
}

// TestRightsOfPosts: every hop is checked when it is posted.
func TestRightsOfPosts(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	ann, _ := b.guest("ann", "f", "g.*")
	for _, ok := range []string{`{}`, `{"then":"f"}`, `{"then":"g.a","else":"g.b","finally":"f"}`} {
		b.post(ann, "f", ok, "")
	}
	b.refused(ann, "h", `{}`, "", 77, "may not call h")
	b.refused(ann, "f", `{"then":"h"}`, "", 77, "may not call h")
	b.refused(ann, "f", `{"then":"f","else":"h"}`, "", 77, "may not call h")
	b.refused(ann, "f", `{"then":"f","else":"f","finally":"h"}`, "", 77, "may not call h")
	for _, own := range []string{"fbus.calls", "fbus.post", "fbus.revoke"} {
		b.refused(ann, own, `{}`, "", 64, "own functions")
		b.refused(b.dial("root"), "f", `{"then":"`+own+`"}`, "", 64, "own functions")
	}
	b.refused(ann, "no name", `{}`, "", 64, "invalid function name")
	b.refused(ann, "f", `{"thn":"f"}`, "", 64, "thn")
	b.refused(ann, "f", `{"on":"["}`, "", 64, "glob")
	if _, total := b.list(ann, `{}`); total != 3 {
		t.Errorf("%d jobs are there", total)
	}
}

// TestOwners: jobs, batches and unique keys belong to an owner, over restarts too. Another
// of the same name has others, and is not shown the call of a job.
func TestOwners(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	_, p := b.guest("ann", "*")
	one, two := p, p // as if the first ticket of the name had expired
	one.Owner, two.Owner = "ticket:ann@"+strings.Repeat("1", 32), "ticket:ann@"+strings.Repeat("2", 32)
	first, second := b.dialAs("one", one), b.dialAs("two", two)
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	const options = `{"unique":"k","batch":"b","delay":3600}`
	ones, twos := b.post(first, "g", options, ""), b.post(second, "g", options, "")
	if ones == twos || b.post(first, "g", options, "") != ones || b.post(second, "g", options, "") != twos {
		t.Errorf("one key is of %s and %s", ones, twos)
	}
	then := func(c *bus.Client) {
		t.Helper()
		if e := call(c, "fbus.batch", args.JSON([]byte(`{"batch":"b","then":"h"}`)), ""); e.res.Status != 0 {
			t.Errorf("fbus.batch: %+v", e.res)
		}
	}
	then(first)
	then(second)
	runs := b.post(first, "f", "", "")
	inv := await(t, "the job", g.started)
	if inv.Caller != "ticket:ann" {
		t.Errorf("it runs for %s", inv.Caller)
	}
	for c, n := range map[*bus.Client]int{first: 1, second: 0} {
		if e := call(c, "fbus.calls", args.Args{}, ""); strings.Count(e.out, `"function":"f"`) != n {
			t.Errorf("of one call %d is shown: %s", n, e.out)
		}
	}
	if e := call(second, "fbus.cancel", args.List(inv.Call), ""); e.res.Status != 65 {
		t.Errorf("the other cancels it: %+v", e.res)
	}
	g.release <- exit(0)
	b.becomes(first, runs, jobs.Done)
	if e := call(second, "fbus.cancel", args.JSON([]byte(`{"batch":"b"}`)), ""); !strings.Contains(e.out, twos) || strings.Contains(e.out, ones) {
		t.Errorf("cancelled: %+v", e)
	}
	for range 2 {
		for c, want := range map[*bus.Client][]string{first: {ones, runs}, second: {twos}} {
			list, _ := b.list(c, `{}`)
			list = slices.DeleteFunc(list, func(i bus.JobInfo) bool { return i.Function == "h" })
			if len(list) != len(want) || list[0].ID != want[0] || list[0].Poster != "ticket:ann" || list[0].Owner == "" {
				t.Errorf("%+v", list)
			}
		}
		// The end of its batch has posted a job for the other.
		if list, _ := b.list(second, `{"function":"h"}`); len(list) != 1 {
			t.Errorf("its batch has ended: %+v", list)
		}
		if list, _ := b.list(first, `{"function":"h"}`); len(list) != 0 {
			t.Errorf("its batch has not ended: %+v", list)
		}
		b.restart()
		first, second = b.dialAs("one", one), b.dialAs("two", two)
	}
	if b.post(first, "g", options, "") != ones {
		t.Error("its key is not known after a restart")
	}
}

// TestEarlierJobs: a job of an earlier version, without an owner, belongs to the ticket of that name
// if that was there when it was posted.
func TestEarlierJobs(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	_, p := b.guest("ann", "*")
	id := b.post(b.dialAs("then", p), "g", `{"delay":3600}`, "")
	p.Owner = "ticket:ann@" + strings.Repeat("1", 32)
	at := int64(ulid.MustParse(id).Time())
	for since, n := range map[time.Time]int{{}: 0, time.UnixMilli(at): 1, time.UnixMilli(at + 1): 0} {
		p.Since = since
		c := b.dialAs("now", p)
		if list, _ := b.list(c, `{}`); len(list) != n {
			t.Errorf("since %v: %+v", since, list)
		}
		if e := call(c, "fbus.result", args.List(id, `{"wait":false}`), ""); strings.Contains(e.res.Message, "no such job") == (n == 1) {
			t.Errorf("since %v: %+v", since, e.res)
		}
	}
}

// TestRevoked: jobs of somebody who was revoked go dead, wherever they are: behind
// others, delayed, or with a worker.
func TestRevoked(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	root := b.dial("root")
	ann, _ := b.guest("ann", "*")
	bob, _ := b.guest("bob", "*")
	g := newGate()
	b.offer(root, "f", 1, g.handle)
	runs := b.post(ann, "f", `{"retries":5,"then":"g","finally":"f"}`, "")
	await(t, "the first", g.started)
	doomed := []string{
		b.post(ann, "f", "", "ann's"), b.post(ann, "f", `{"priority":-1}`, "ann's"), b.post(ann, "f", `{"delay":3600}`, "ann's"),
		b.post(ann, "g", "", "ann's"), b.post(ann, "g", "", "ann's"),
	}
	bobs := []string{b.post(bob, "f", "", "bob's"), b.post(bob, "g", "", "bob's")}
	b.revoke("ann") // with that the slot is free
	if inv := await(t, "the next", g.started); string(inv.Head()) != "bob's" {
		t.Errorf("%q of %s was run", inv.Head(), inv.Caller)
	}
	g.release <- exit(0)
	b.offer(b.dial("worker"), "g", 1, g.handle)
	if inv := await(t, "the next", g.started); string(inv.Head()) != "bob's" {
		t.Errorf("%q of %s was run", inv.Head(), inv.Caller)
	}
	g.release <- exit(0)
	for _, id := range bobs {
		b.becomes(root, id, jobs.Done)
	}
	b.clock.pass(2 * 3600 * 1e9)
	doomed = append(doomed, runs)
	doomed = append(doomed, b.becomes(root, runs, jobs.Dead).Children...)
	for _, id := range doomed {
		i := b.becomes(root, id, jobs.Dead)
		if i.Code != args.CodeDenied || *i.Status != 77 || !strings.Contains(i.Message, "revoked") || (i.Attempts == 1) != (id == runs) || i.Used != i.Attempts {
			t.Errorf("%+v", i)
		}
	}
	if len(g.started) != 0 {
		t.Errorf("%d more were run", len(g.started))
	}
}

// TestRevokedMany: the queued jobs of a poster who was revoked die in a few commits,
// however many they are.
func TestRevokedMany(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	_, p := b.guest("ann", "*")
	bob, _ := b.guest("bob", "*")
	const n = 1000
	var posts sync.WaitGroup
	for range 10 {
		posts.Go(func() {
			for i := range n / 10 {
				if _, err := b.m.Post(&jobs.Post{Function: "f", Poster: jobs.Poster{Caller: p.Caller, Serial: p.Serial}, Options: jobs.Options{Delay: float64(i % 2 * 3600)}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	posts.Wait()
	bobs := b.post(bob, "f", "", "")
	commits := b.m.CountCommits()
	b.revoke("ann")
	root := b.dial("root")
	eventually(t, "all are dead", func() bool { _, dead := b.list(root, `{"state":"dead","limit":1}`); return dead == n })
	if n := commits.Load(); n > 20 {
		t.Errorf("%d commits", n)
	}
	if i := b.job(bob, bobs); i.State != jobs.Queued {
		t.Errorf("%+v", i)
	}
}

// TestLeftTheGroup: what a user of this machine may do is looked up when the job is run.
// Whoever has left the group since does not run anything any more.
func TestLeftTheGroup(t *testing.T) {
	t.Parallel()
	const gid = 4711
	var member atomic.Bool
	member.Store(true)
	b := newBed(t, func(b *bed) {
		b.node.Groups = func(int) (gids []int, _ error) {
			if member.Load() {
				gids = []int{gid}
			}
			return gids, nil
		}
		b.node.Local = func(uid int, gids []int) (trust.Rights, bool) {
			return trust.Rights{Call: []string{"*"}}, slices.Contains(gids, gid)
		}
	})
	user := b.dialAs("user", node.Peer{Caller: "uid:4242", Rights: &trust.Rights{Call: []string{"*"}}})
	g := newGate()
	b.offer(b.dial("worker"), "f", 1, g.handle)
	first, later := b.post(user, "f", "", "now"), b.post(user, "f", `{"delay":3600}`, "later")
	await(t, "the first", g.started)
	g.release <- exit(0)
	b.becomes(user, first, jobs.Done)
	member.Store(false)
	b.clock.pass(2 * 3600 * 1e9)
	if i := b.becomes(b.dial("root"), later, jobs.Dead); i.Code != args.CodeDenied || i.Attempts != 0 || !strings.Contains(i.Message, "may not use this node any more") {
		t.Errorf("%+v", i)
	}
}

// TestPathsAreForAdministrators: errors of the store tell a guest no path of the node's
// disk; they tell whoever administers the node, and the operator.
func TestPathsAreForAdministrators(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	root := b.dial("root")
	ann, _ := b.guest("ann", "*")
	big := strings.Repeat("x", 100<<10)
	b.offer(b.dial("worker"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		if len(inv.Head()) > 0 {
			os.RemoveAll(filepath.Join(b.cfg.Dir, "spool"))
		}
		return saying(big)
	})
	damaged := b.post(ann, "f", "", "")
	b.becomes(ann, damaged, jobs.Done)
	unkept := b.post(ann, "f", "", "break")
	told := func(c *bus.Client, paths bool) {
		t.Helper()
		for _, e := range []ended{
			call(c, "fbus.post", args.List("g"), big),
			call(c, "fbus.result", args.List(damaged), ""),
		} {
			if e.res.Status == 0 || strings.Contains(e.res.Message, b.cfg.Dir) != paths || len(e.res.Message) < 30 {
				t.Errorf("%+v", e.res)
			}
		}
	}
	b.becomes(ann, unkept, jobs.Delayed)
	told(ann, false)
	told(root, true)
	if i := b.job(ann, unkept); strings.Contains(i.Message, b.cfg.Dir) || !strings.Contains(i.Message, "no such file") {
		t.Errorf("%+v", i)
	}
	if !strings.Contains(b.warnings(), b.cfg.Dir) {
		t.Errorf("the operator was told %q", b.warnings())
	}
	os.Mkdir(filepath.Join(b.cfg.Dir, "spool"), 0o700)
	b.m.FailCommits(&os.PathError{Op: "write", Path: filepath.Join(b.cfg.Dir, "jobs.db"), Err: syscall.EIO}, false)
	for _, c := range []*bus.Client{ann, root} {
		e := call(c, "fbus.post", args.List("g"), "")
		n := call(c, "fbus.nodes", args.List(), "")
		if e.res.Code != args.CodeStoreFailed || strings.Contains(e.res.Message, b.cfg.Dir) != (c == root) || strings.Contains(n.out, b.cfg.Dir) != (c == root) || !strings.Contains(n.out, "input/output error") {
			t.Errorf("%+v, %s", e.res, n.out)
		}
	}
	b.m.FailCommits(nil, false)
}

// TestCheckWhileTaken: rights are checked again at any moment, also while a slot reads the
// job that it has taken.
func TestCheckWhileTaken(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("worker")
	b.offer(c, "f", 4, func(context.Context, *bus.Invocation) bus.Result { return exit(0) })
	over, checked := make(chan struct{}), make(chan struct{})
	go func() { // ends with the test
		defer close(checked)
		for {
			select {
			case <-over:
				return
			default:
				b.m.CheckActive()
			}
		}
	}()
	for range 200 {
		b.post(c, "f", "", "")
	}
	eventually(t, "all are done", func() bool {
		_, n := b.list(c, `{"state":"done"}`)
		return n == 200
	})
	close(over)
	<-checked
}
