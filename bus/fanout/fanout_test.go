//go:build linux

package fanout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startNode runs a node and returns its socket, and what ends it.
func startNode(t *testing.T) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "node.sock")
	l, err := node.Listen(path, false)
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.New(node.Config{Network: "test", Address: path})
	if err != nil {
		t.Fatal(err)
	}
	go n.Serve(l) // ends with stop
	stop = sync.OnceFunc(func() {
		l.Close()
		n.Close()
	})
	t.Cleanup(stop)
	return path, stop
}

func dial(t *testing.T, path, name string) *bus.Client {
	t.Helper()
	c, err := bus.Dial(t.Context(), bus.Unix(path), &bus.Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func offer(t *testing.T, c *bus.Client, slots int, h bus.Handler) *bus.Offering {
	t.Helper()
	o, err := c.Offer(t.Context(), bus.Offer{Name: "f", Slots: slots}, h)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// echo answers its first word.
func echo(_ context.Context, inv *bus.Invocation) bus.Result {
	words, _ := inv.Words()
	return bus.Result{Output: []byte(words[0])}
}

// numbers makes a runner that calls f with 1 to n, and collects what it answers.
func numbers(c *bus.Client, n int) (*Runner, *[]string) {
	i, got := 0, []string{}
	return &Runner{Config: Config{
		Client: c, Function: "f",
		Next: func() (Task, error) {
			if i++; i > n {
				return Task{}, io.EOF
			}
			return Task{Seq: i, Words: []string{fmt.Sprint(i)}}, nil
		},
		Request: func(t *Task) (*bus.Request, io.Closer, error) {
			return &bus.Request{Args: args.List(t.Words...)}, nil, nil
		},
		Done: func(o *Outcome) error {
			var b bytes.Buffer
			io.Copy(&b, o.Output.Reader())
			switch {
			case o.Skipped:
				b.WriteString("skipped")
			case o.Err != nil:
				b.WriteString("failed")
			}
			got = append(got, b.String())
			return nil
		},
	}}, &got
}

func wantOrder(t *testing.T, got []string, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d outcomes, want %d", len(got), n)
	}
	for i, s := range got {
		if s != fmt.Sprint(i+1) {
			t.Fatalf("outcome %d is %s", i+1, s)
		}
	}
}

// TestFinishHoldsUpNoCall: calls are made while outcomes are in Finish, up to a limit,
// and Done receives what Finish has made of them.
func TestFinishHoldsUpNoCall(t *testing.T) {
	path, _ := startNode(t)
	offer(t, dial(t, path, "w"), 1, echo)
	r, got := numbers(dial(t, path, "c"), 2*maxFinish)
	var in atomic.Int64
	full := make(chan struct{})
	once := sync.OnceFunc(func() { close(full) })
	r.Jobs = 1
	r.Finish = func(o *Outcome) {
		if n := in.Add(1); n == maxFinish {
			once()
		} else if n > maxFinish {
			t.Errorf("%d outcomes in Finish", n)
		}
		<-full
		if o.Seq == 2 {
			o.Err = errors.New("no room")
		}
		in.Add(-1)
	}
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := 2 * maxFinish; len(*got) != want || (*got)[1] != "2failed" || (*got)[want-1] != fmt.Sprint(want) || r.Progress().Failed != 1 {
		t.Errorf("%v, %+v", *got, r.Progress())
	}
}

func TestOutcomesKeepTheOrder(t *testing.T) {
	path, _ := startNode(t)
	offer(t, dial(t, path, "w"), 8, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		return echo(ctx, inv)
	})
	r, got := numbers(dial(t, path, "c"), 2000)
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOrder(t, *got, 2000)
	if p := r.Progress(); p.Ended != 2000 || p.Failed != 0 || p.Running != 0 {
		t.Errorf("progress %+v", p)
	}
}

func TestLookAheadIsBounded(t *testing.T) {
	path, _ := startNode(t)
	release := make(chan struct{})
	var ran atomic.Int64
	offer(t, dial(t, path, "w"), 4, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		if res := echo(ctx, inv); string(res.Output) != "1" {
			ran.Add(1)
			return res
		}
		<-release
		return echo(ctx, inv)
	})
	const n = 2 * lookAhead
	r, got := numbers(dial(t, path, "c"), n)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	for ran.Load() < lookAhead-4 {
		time.Sleep(time.Millisecond) // polling without it takes a processor
	}
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	wantOrder(t, *got, n)
}

func TestUnorderedDoesNotWait(t *testing.T) {
	path, _ := startNode(t)
	first := make(chan struct{})
	offer(t, dial(t, path, "w"), 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		if res := echo(ctx, inv); string(res.Output) != "1" {
			return res
		}
		<-first // which is closed when another one was told
		return echo(ctx, inv)
	})
	r, got := numbers(dial(t, path, "c"), 3)
	r.Unordered = true
	done, once := r.Done, sync.OnceFunc(func() { close(first) })
	r.Done = func(o *Outcome) error { once(); return done(o) }
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(*got) != 3 || (*got)[2] == "2" {
		t.Errorf("order %v", *got)
	}
}

func TestFailuresAreTriedAgain(t *testing.T) {
	path, _ := startNode(t)
	var mu sync.Mutex
	tries := map[string]int{}
	offer(t, dial(t, path, "w"), 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		res := echo(ctx, inv)
		mu.Lock()
		defer mu.Unlock()
		if tries[string(res.Output)]++; tries[string(res.Output)] < 3 {
			return bus.Result{End: bus.End{Status: 3}, Output: []byte("half")}
		}
		return res
	})
	r, got := numbers(dial(t, path, "c"), 4)
	r.Retries = 2
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOrder(t, *got, 4)
	r, got = numbers(dial(t, path, "c"), 1)
	mu.Lock()
	clear(tries)
	mu.Unlock()
	r.Retries = 1
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if (*got)[0] != "halffailed" || r.Progress().Failed != 1 {
		t.Errorf("%v, %+v", *got, r.Progress())
	}
}

func TestHalt(t *testing.T) {
	path, _ := startNode(t)
	offer(t, dial(t, path, "w"), 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		if res := echo(ctx, inv); string(res.Output) != "1" {
			return bus.Exit(1)
		}
		<-ctx.Done()
		return bus.Exit(1)
	})
	r, got := numbers(dial(t, path, "c"), 1000)
	r.HaltAfter, r.HaltNow = 3, true
	var said []string
	r.Notice = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"f: halted after 3 failures: no further call is made"}; !slices.Equal(said, want) {
		t.Errorf("said %q", said)
	}
	if len(*got) < 4 || len(*got) > 5 {
		t.Errorf("%d outcomes: %v", len(*got), *got)
	}
}

func TestLimitFollowsSlots(t *testing.T) {
	path, _ := startNode(t)
	var running, most atomic.Int64
	release := make(chan struct{})
	h := func(ctx context.Context, inv *bus.Invocation) bus.Result {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer running.Add(-1)
		<-release
		return echo(ctx, inv)
	}
	offer(t, dial(t, path, "w1"), 2, h)
	r, got := numbers(dial(t, path, "c"), 30)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	until(t, func() bool { return running.Load() == 2 })
	offer(t, dial(t, path, "w2"), 3, h)
	until(t, func() bool { return running.Load() == 5 })
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	wantOrder(t, *got, 30)
	if most.Load() != 5 {
		t.Errorf("%d at once", most.Load())
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAFunctionWithoutWorkersIsWaitedFor(t *testing.T) {
	path, _ := startNode(t)
	w1 := dial(t, path, "w1")
	offer(t, w1, 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		res := echo(ctx, inv)
		if string(res.Output) == "10" {
			go w1.Close()
			<-ctx.Done()
		}
		return res
	})
	r, got := numbers(dial(t, path, "c"), 100)
	r.Retries = 1
	said := make(chan string, 10)
	r.Notice = func(format string, args ...any) { said <- fmt.Sprintf(format, args...) }
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	if s := <-said; !strings.Contains(s, "waiting") {
		t.Errorf("said %q", s)
	}
	offer(t, dial(t, path, "w2"), 2, echo)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	wantOrder(t, *got, 100)
}

// A call's time begins when there is a worker again.
func TestAPauseIsNoCallsTime(t *testing.T) {
	path, _ := startNode(t)
	w1 := dial(t, path, "w1")
	offer(t, w1, 1, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		go w1.Close()
		<-ctx.Done()
		return bus.Result{}
	})
	r, got := numbers(dial(t, path, "c"), 1)
	r.Retries = 1
	var began time.Time
	done := r.Done
	r.Done = func(o *Outcome) error {
		began = o.Began
		return done(o)
	}
	said := make(chan string, 10)
	r.Notice = func(format string, args ...any) { said <- format }
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	<-said
	paused := time.Now()
	offer(t, dial(t, path, "w2"), 1, echo)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	wantOrder(t, *got, 1)
	if began.Before(paused) {
		t.Errorf("it began %v before it could", paused.Sub(began))
	}
}

func TestALostNodeEndsIt(t *testing.T) {
	path, stop := startNode(t)
	begun := make(chan struct{}, 100)
	offer(t, dial(t, path, "w"), 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		if res := echo(ctx, inv); string(res.Output) != "2" && string(res.Output) != "4" {
			return res
		}
		begun <- struct{}{}
		<-ctx.Done()
		return bus.Exit(1)
	})
	r, got := numbers(dial(t, path, "c"), 1000)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	<-begun
	<-begun
	stop()
	if err := <-ended; !errors.Is(err, bus.ErrNodeLost) {
		t.Errorf("error %v", err)
	}
	// What was done before is told, also behind what was lost.
	if s := strings.Join(*got, " "); s != "1 failed 3 failed" {
		t.Errorf("outcomes %s", s)
	}
}

func TestACancelledContextEndsIt(t *testing.T) {
	path, _ := startNode(t)
	running := make(chan bool, 10)
	offer(t, dial(t, path, "w"), 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		running <- true
		<-ctx.Done()
		return bus.Exit(1)
	})
	why := errors.New("no more")
	ctx, cancel := context.WithCancelCause(t.Context())
	r, got := numbers(dial(t, path, "c"), 10)
	done := r.Done
	r.Done = func(o *Outcome) error {
		if o.Result.Worker != "w" && !o.Skipped {
			t.Errorf("%s was cancelled with worker %q", o.Words, o.Result.Worker)
		}
		return done(o)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	<-running
	<-running
	if tasks := r.Running(); len(tasks) != 2 || tasks[0].Words[0] != "1" || tasks[1].Words[0] != "2" {
		t.Errorf("running: %v", tasks)
	}
	cancel(why)
	if err := <-ended; err != why {
		t.Errorf("error %v", err)
	}
	if n := strings.Count(strings.Join(*got, " "), "failed"); n != 2 {
		t.Errorf("outcomes %v", *got)
	}
}

func TestADoneThatFailsEndsIt(t *testing.T) {
	path, _ := startNode(t)
	offer(t, dial(t, path, "w"), 2, echo)
	r, _ := numbers(dial(t, path, "c"), 10000)
	why := errors.New("nobody reads")
	r.Done = func(*Outcome) error { return why }
	if err := r.Run(t.Context()); err != why {
		t.Errorf("error %v", err)
	}
}

func TestLongOutputGoesToAFile(t *testing.T) {
	r := &Runner{}
	o := r.output()
	var want bytes.Buffer
	for i := range 300 {
		p := bytes.Repeat([]byte{byte(i)}, 10<<10)
		want.Write(p)
		if _, err := o.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if r.held.Load() > spillAt {
		t.Errorf("%d bytes in memory", r.held.Load())
	}
	for range 2 { // it can be read again
		var got bytes.Buffer
		if _, err := io.Copy(&got, o.Reader()); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("%d bytes, error %v", got.Len(), err)
		}
	}
	o.reset()
	if r.held.Load() != 0 || o.Size() != 0 {
		t.Errorf("%d bytes held, size %d", r.held.Load(), o.Size())
	}
}

func TestSharedInput(t *testing.T) {
	var want bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintln(&want, i)
	}
	s, err := NewSharedInput(io.MultiReader(bytes.NewReader(want.Bytes()))) // no Len
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for range 4 {
		r := s.Reader()
		readers.Go(func() {
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want.Bytes()) {
				t.Errorf("%d bytes, error %v", len(got), err)
			}
		})
	}
	readers.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestTasksAreBounded: the bytes of tasks under way are limited, and a task that is
// larger than the limit runs alone.
func TestTasksAreBounded(t *testing.T) {
	path, _ := startNode(t)
	release := make(chan struct{})
	var ran atomic.Int32
	offer(t, dial(t, path, "w"), 8, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		ran.Add(1)
		<-release
		return echo(ctx, inv)
	})
	r, got := numbers(dial(t, path, "c"), 8)
	next := r.Next
	read := make(chan int, 10)
	r.Next = func() (Task, error) {
		task, err := next()
		if task.Size = maxTasks / 2; task.Seq > 4 {
			task.Size = 2 * maxTasks
		}
		read <- task.Seq
		return task, err
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	for range 3 { // the third has to wait
		<-read
	}
	until(t, func() bool { return ran.Load() == 2 })
	if n := len(r.Running()); n != 2 {
		t.Errorf("%d calls run", n)
	}
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	wantOrder(t, *got, 8)
	if r.size != 0 {
		t.Errorf("%d bytes are left", r.size)
	}
}

// TestQueueFull: a function has room for 5 calls and refuses the others, which are made
// again. All are served, unless their own context ends.
func TestQueueFull(t *testing.T) {
	path, _ := startNode(t)
	const room, calls = 5, 400
	places := make(chan struct{}, room)
	offer(t, dial(t, path, "w"), calls, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		select {
		case places <- struct{}{}:
			time.Sleep(50 * time.Microsecond)
			<-places
			return echo(ctx, inv)
		default:
			return bus.Result{End: args.Errorf(args.CodeBusy, "full").End()}
		}
	})
	r, got := numbers(dial(t, path, "c"), calls)
	r.Jobs, r.Unordered, r.Queueing = 100, true, time.Hour
	next := r.Next
	cancelled := errors.New("cancelled")
	r.Next = func() (Task, error) {
		task, err := next()
		if task.Seq%7 == 0 {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Duration(task.Seq)*10*time.Microsecond, func() { cancel(cancelled) })
			task.Context = ctx
		}
		return task, err
	}
	done := r.Done
	r.Done = func(o *Outcome) error {
		if o.Err != nil && !errors.Is(o.Err, cancelled) {
			t.Errorf("%s: %v", o.Words, o.Err)
		}
		return done(o)
	}
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := r.Progress(); len(*got) != calls || p.Ended+p.Skipped != calls || p.Ended-p.Failed < calls*6/7 {
		t.Errorf("%d outcomes, %+v", len(*got), p)
	}
}

// TestMixed: each task calls its own function, and what goes wrong with one is no
// matter of the others.
func TestMixed(t *testing.T) {
	path, _ := startNode(t)
	offer(t, dial(t, path, "w"), 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		if res := echo(ctx, inv); string(res.Output) != "3" {
			return res
		}
		return bus.Result{Output: make([]byte, 100)}
	})
	r, _ := numbers(dial(t, path, "c"), 3)
	r.Mode, r.Jobs, r.Function, r.MaxOutput = Mixed, 2, "", 10
	request := r.Request
	r.Request = func(task *Task) (*bus.Request, io.Closer, error) {
		req, closer, err := request(task)
		if req.Function = "f"; task.Seq == 2 {
			req.Function = "nosuch"
		}
		return req, closer, err
	}
	want := map[int]string{1: "", 2: args.CodeNoFunction, 3: args.CodeOutputLimit}
	r.Done = func(o *Outcome) error {
		code := ""
		if o.Err != nil {
			code = args.AsError(o.Err, args.CodeInternal).Code
		}
		if code != want[o.Seq] {
			t.Errorf("task %d: %v", o.Seq, o.Err)
		}
		return nil
	}
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRefusedByOthers: a call that finds the queue full of calls of other clients has
// failed, unless an end of our own will make room.
func TestRefusedByOthers(t *testing.T) {
	r := &Runner{Config: Config{Mode: Mixed}, calls: map[string]int{}}
	o := &Outcome{function: "f"}
	if r.mayQueue(o, 0) {
		t.Error("made again: nothing will ever make room")
	}
	r.count("f", 1)
	if !r.mayQueue(o, 0) {
		t.Error("not made again, although a call of ours will end")
	}
	r.count("f", -1)
	if r.mayQueue(o, 0) {
		t.Error("made again after our last call has ended")
	}
}
