package jobs_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/jobs/store"
)

// fillUp posts until that is refused, and returns how many were kept and why no more.
func (b *bed) fillUp(c *bus.Client, options, input string) (kept int, why string) {
	b.t.Helper()
	for {
		switch e := call(c, "fbus.post", args.List("f", options), input); {
		case e.res.Status == 0:
			kept++
		case e.res.Status == 75 && e.res.Code == args.CodeStoreFull:
			return kept, e.res.Message
		default:
			b.t.Fatalf("%+v", e.res)
		}
	}
}

// TestShareOfJobs: a poster fills half of an empty store, and a quarter of one with jobs
// of others, postbacks included. No number of posters leaves nothing for the next. The
// node's own user may have the rest.
func TestShareOfJobs(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets, func(b *bed) { b.cfg.MaxJobs = 100 })
	var peers []func() *bus.Client
	for _, name := range []string{"ann", "bob", "carl", "dora"} {
		_, p := b.guest(name, "*")
		peers = append(peers, func() *bus.Client { return b.dialAs(name, p) })
	}
	ann, bob := peers[0](), peers[1]()
	if n, why := b.fillUp(ann, "", ""); n != 50 || !strings.Contains(why, "too many jobs of ticket:ann") || !strings.Contains(why, "(limit 50, its share of --max-jobs)") {
		t.Errorf("alone: %d jobs, then %s", n, why)
	}
	call(ann, "fbus.purge", args.JSON([]byte(`{"state":"queued"}`)), "")
	b.post(bob, "f", "", "")
	if n, why := b.fillUp(ann, `{"then":"f","else":"f","finally":"f"}`, ""); n != 8 || !strings.Contains(why, "(limit 25, ") {
		t.Errorf("with postbacks, beside others: %d jobs, then %s", n, why)
	}
	b.restart() // that forgets nothing
	for i, most := range []int{25, 25, 25, 12} {
		c := peers[i]()
		b.fillUp(c, "", "")
		held := b.m.Held([]string{"ticket:ann", "ticket:bob", "ticket:carl", "ticket:dora"}[i])
		if n := int(held.Jobs + held.Owed); n != most {
			t.Errorf("%d: %d jobs", i, n)
		}
	}
	if n, why := b.fillUp(b.dial("root"), "", ""); n != 100-(8+1)-25-25-12 || !strings.Contains(why, "limit 100, --max-jobs") {
		t.Errorf("root: %d jobs, then %s", n, why)
	}
}

// TestShareOfBytes: the same holds for arguments, input, output and error output, where
// what a postback gets counts as well.
func TestShareOfBytes(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets, func(b *bed) { b.cfg.MaxSpool = 800 << 10 })
	ann, _ := b.guest("ann", "*")
	bob, _ := b.guest("bob", "*")
	b.post(bob, "waits", "", "")
	if n, why := b.fillUp(ann, "", strings.Repeat("x", 60<<10)); n != 3 || !strings.Contains(why, "too much input and output of ticket:ann (limit 204800 bytes, its share of --max-spool)") {
		t.Errorf("%d jobs, then %s", n, why)
	}
	call(ann, "fbus.purge", args.JSON([]byte(`{"state":"queued"}`)), "")
	b.offer(b.dial("worker"), "g", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		out := inv.Stdout
		if inv.HasInput {
			out = inv.Stderr
		}
		for range 15 { // more than its share, and less than it could ever have
			if _, err := out.Write(make([]byte, 16<<10)); err != nil {
				break
			}
		}
		return exit(0)
	})
	for _, options := range []string{`{"backoff":600}`, `{"backoff":600,"input":true}`} {
		id := b.post(ann, "g", options, "")
		if i := b.becomes(ann, id, jobs.Delayed); !strings.Contains(i.Message, "its share of --max-spool") {
			t.Errorf("%+v", i)
		}
		if n := b.m.Held("ticket:ann").Bytes; n != 0 {
			t.Errorf("%d bytes of an output that had no room are kept", n)
		}
		call(ann, "fbus.purge", args.JSON([]byte(`{"state":"delayed"}`)), "")
	}
	b.offer(b.dial("another"), "h", 1, func(context.Context, *bus.Invocation) bus.Result { return saying(strings.Repeat("x", 60<<10)) })
	for range 2 { // 60 KiB for itself and as much for each of two postbacks; then there is no room
		b.becomes(ann, b.post(ann, "h", `{"then":"f","finally":"f"}`, ""), jobs.Done)
		if n := b.m.Held("ticket:ann").Bytes; n != 180<<10 {
			t.Errorf("%d bytes", n)
		}
		id := b.post(ann, "h", `{"then":"f","finally":"f","backoff":600}`, "") // not tried again before it is purged
		if i := b.becomes(ann, id, jobs.Delayed); !strings.Contains(i.Message, "share of --max-spool") {
			t.Errorf("%+v", i)
		}
		call(ann, "fbus.purge", args.JSON([]byte(`{"older":1e-9,"state":"done"}`)), "")
		call(ann, "fbus.purge", args.JSON([]byte(`{"state":"queued"}`)), "")
		call(ann, "fbus.purge", args.JSON([]byte(`{"state":"delayed"}`)), "")
	}
	if n := b.m.Held("ticket:ann"); n != (store.Held{}) {
		t.Errorf("%+v is counted of nothing", n)
	}
}

// TestSharesAreExact: the counts agree with the store, whatever happens to jobs.
func TestSharesAreExact(t *testing.T) {
	t.Parallel()
	b := newBed(t, withTickets)
	root := b.dial("root")
	ann, p := b.guest("ann", "*")
	offer := func() {
		b.offer(b.dial("worker"), "f", 3, func(_ context.Context, inv *bus.Invocation) bus.Result {
			if rand.N(3) == 0 {
				return exit(1)
			}
			return saying(strings.Repeat("x", rand.N(60<<10)))
		})
	}
	offer()
	var ids []string
	for i := range 300 {
		c := []*bus.Client{ann, ann, root}[rand.N(3)]
		switch k := rand.N(10); {
		case k < 5:
			options := []string{``, `{"then":"f"}`, `{"else":"g","finally":"f","retries":1,"backoff":0.001}`, `{"on":"nosuch*"}`, `{"on":"<*>","unique":"key"}`}[rand.N(5)]
			if e := call(c, "fbus.post", args.List("f", options), strings.Repeat("y", rand.N(40<<10))); e.res.Status == 0 {
				ids = append(ids, strings.TrimSpace(e.out))
			}
		case k < 7 && len(ids) > 0:
			call(c, "fbus.cancel", args.List(ids[rand.N(len(ids))]), "")
		case k < 8 && len(ids) > 0:
			call(c, "fbus.retry", args.JSON([]byte(`{"ids":["`+ids[rand.N(len(ids))]+`"]}`)), "")
		case k < 9:
			call(c, "fbus.purge", args.JSON([]byte(`{"state":"`+[]string{"queued", "done", "dead"}[rand.N(3)]+`"}`)), "")
		case i > 280:
			b.m.FailCommits(syscall.EIO, false)
			call(c, "fbus.post", args.List("f"), "")
			b.m.FailCommits(nil, false)
			eventually(t, "it works again", func() bool { return !b.m.Failing() })
		}
	}
	eventually(t, "it is idle", func() bool {
		_, queued := b.list(root, `{"state":"queued","function":"f"}`)
		_, any := b.list(root, `{"state":"queued"}`)
		_, on := b.list(root, `{"state":"delayed"}`)
		_, runs := b.list(root, `{"state":"running"}`)
		stuck := 0
		list, _ := b.list(root, `{"state":"queued"}`)
		for _, i := range list {
			if i.On != "" || i.Function == "g" {
				stuck++
			}
		}
		return queued <= any && any == stuck && on == 0 && runs == 0
	})
	b.m.AwaitIdle()
	state := func() string {
		return fmt.Sprintf("%+v %+v", b.m.Held("ticket:ann"), b.m.Held("uid:0"))
	}
	before := state()
	b.n.Close() // nothing runs any more
	b.restart()
	if after := state(); before != after {
		t.Errorf("%s was counted, the store has %s", before, after)
	}
	for _, c := range []*bus.Client{b.dialAs("ann", p), b.dial("root")} {
		for _, state := range []string{"queued", "done", "dead", "cancelled", "delayed"} {
			call(c, "fbus.purge", args.JSON([]byte(`{"state":"`+state+`"}`)), "")
		}
	}
	if n := state(); n != fmt.Sprintf("%+v %+v", store.Held{}, store.Held{}) {
		t.Errorf("%s is counted of nothing", n)
	}
}
