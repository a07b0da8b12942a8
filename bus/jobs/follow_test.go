package jobs_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// following follows a job, and keeps what it is sent.
type following struct {
	out, err sink
	ended    chan bus.Result
}

// sink keeps what was written until it is read.
type sink struct {
	mu   sync.Mutex // protects text
	text []byte
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	return len(p), nil
}

// take returns the first n bytes, or nil while there are fewer.
func (s *sink) take(n int) (text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.text) < n {
		return nil
	}
	text, s.text = s.text[:n:n], s.text[n:]
	return text
}

func (b *bed) follow(c *bus.Client, id, options string) *following {
	f := &following{ended: make(chan bus.Result, 1)}
	go func() { // ends with the job
		res, _ := c.Call(bg(), &bus.Request{Function: "fbus.result", Args: args.List(id, options), Stdout: &f.out, Stderr: &f.err})
		f.ended <- res
	}()
	return f
}

// reads waits for exactly that.
func reads(t *testing.T, s *sink, want string) {
	t.Helper()
	var got []byte
	eventually(t, want[:min(len(want), 60)], func() bool { got = s.take(len(want)); return got != nil })
	if string(got) != want {
		t.Fatalf("read %.60q; want %.60q", got, want)
	}
}

// ends waits for the end, and checks what has come since it was read.
func (f *following) ends(t *testing.T, out, err string) bus.Result {
	t.Helper()
	res := await(t, "the end", f.ended)
	if got := string(f.out.text); got != out {
		t.Errorf("stdout %.100q, want %.100q", got, out)
	}
	if got := string(f.err.text); got != err {
		t.Errorf("stderr %.100q, want %.100q", got, err)
	}
	return res
}

// TestFollow: what a job writes comes as it writes it, from the beginning of its attempt,
// however much it is; the next attempt follows the one that fails.
func TestFollow(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.dial("c")
	id := b.post(c, "f", `{"retries":1,"backoff":0.001}`, "")
	early := b.follow(c, id, `{"follow":true}`) // nobody offers it yet
	eventually(t, "it is looked at", func() bool { return b.m.Followed(id) == 1 })
	write, end := make(chan string), make(chan bus.Result)
	b.offer(c, "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		for {
			select {
			case text := <-write:
				io.WriteString(inv.Stdout, text)
				io.WriteString(inv.Stderr, "e")
			case r := <-end:
				return r
			}
		}
	})
	large := strings.Repeat("large", 100_000) // beyond what is kept in memory
	write <- "one"
	reads(t, &early.out, "one")
	reads(t, &early.err, "e")
	late := b.follow(c, id, `{"follow":true}`)
	reads(t, &late.out, "one")
	write <- large
	write <- "two"
	for _, f := range []*following{early, late} {
		reads(t, &f.out, large+"two")
	}
	end <- exit(3)
	again := fmt.Sprintf("\nfbus: %s: attempt 1 has ended with status 3: the job runs again\n", id)
	reads(t, &early.err, "ee"+again)
	reads(t, &late.err, "eee"+again)
	write <- "three"
	reads(t, &early.out, "three")
	end <- bus.Result{End: bus.End{Source: args.FromProgram, Status: 4, Code: "exit"}, Output: []byte("four")}
	if res := early.ends(t, "four", "e"); res.Source != args.FromProgram || res.Status != 4 {
		t.Errorf("%+v", res)
	}
	late.ends(t, "threefour", "e")
	if e := b.result(c, id); e.out != "threefour" || e.err != "e" {
		t.Errorf("%+v", e)
	}
	done := b.follow(c, id, `{"follow":true}`) // it has ended
	done.ends(t, "threefour", "e")
	if n := b.m.Followed(id); n != 0 {
		t.Errorf("%d are still looking", n)
	}
}

// TestFollowEnds: who follows is let go when it is tired of that, and when the job is
// cancelled; the output that a failed attempt has left is no attempt's that was missed.
func TestFollowEnds(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c, g := b.dial("c"), newGate()
	b.offer(c, "f", 1, g.handle)
	id := b.post(c, "f", `{"retries":1,"backoff":100}`, "")
	inv := await(t, "it runs", g.started)
	io.WriteString(inv.Stdout, "some")
	tired := b.follow(c, id, `{"follow":true,"timeout":0.05}`)
	if res := tired.ends(t, "some", ""); res.Code != args.CodeUnfinished {
		t.Errorf("%+v", res)
	}
	f := b.follow(c, id, `{"follow":true}`)
	reads(t, &f.out, "some")
	g.release <- exit(1)
	reads(t, &f.err, fmt.Sprintf("\nfbus: %s: attempt 1 has ended with status 1: the job runs again\n", id))
	b.becomes(c, id, jobs.Delayed)
	missed := b.follow(c, id, `{"follow":true}`)
	eventually(t, "it is looked at", func() bool { return b.m.Followed(id) == 2 })
	call(c, "fbus.cancel", args.List(id), "")
	for f, want := range map[*following]string{f: "", missed: "some"} { // the latter as without follow
		if res := f.ends(t, want, ""); res.Code != args.CodeCancelled {
			t.Errorf("%+v", res)
		}
	}
}
