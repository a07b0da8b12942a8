package commands

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

const jobID = "01JC7XKQ4N8T2V5W9Y0Z3A6B7C"

// playJobs answers for one job what it is.
func playJobs(t *testing.T, n *storeNode, line string) {
	n.offer(t, "jobs", func(context.Context, *bus.Invocation) bus.Result {
		return exited(line + "\n" + `{"total":1}` + "\n")
	})
}

func resultFlags(t *testing.T, n *storeNode) *resultOptions {
	o := &resultOptions{function: "result", jobs: "jobs", nodeOptions: nodeOptions{node: n.socket}, id: strings.ToLower(jobID)}
	o.output = filepath.Join(t.TempDir(), "out")
	return o
}

// TestResultEnds: a result ends as the call would have ended.
func TestResultEnds(t *testing.T) {
	n := newStore(t)
	var end atomic.Pointer[bus.Result]
	n.offer(t, "result", func(_ context.Context, inv *bus.Invocation) bus.Result {
		io.WriteString(inv.Stderr, "from the program\n")
		return *end.Load()
	})
	playJobs(t, n, `{"id":"`+jobID+`","function":"resize","state":"dead","timeout":90}`)
	for _, c := range []struct {
		end    bus.Result
		status int
		said   string
		code   string
	}{
		{exited("bytes"), 0, "", `{"source":"program","status":0,"code":"exit"`},
		{bus.Exit(7), 7, "", `{"source":"program","status":7,"code":"exit"`},
		{bus.Result{End: bus.End{Source: args.FromSignal, Status: 137, Code: "SIGKILL"}}, 137, "fbus: resize: program was ended by SIGKILL\n", `{"source":"signal","status":137,"code":"SIGKILL"`},
		{refusal(124, "deadline", "deadline exceeded"), 124, "fbus: resize: deadline of 1m30s exceeded\n", `{"source":"fbus","status":124,"code":"deadline"`},
		{refusal(127, "not_found", "convert: not found"), 127, "fbus: resize: convert: not found\n", `{"source":"fbus","status":127,"code":"not_found"`},
		{refusal(255, "node_lost", "the node has shut down"), 255, "fbus: the node has shut down\n", `{"source":"fbus","status":255,"code":"node_lost"`}, // the job's own end
		{refusal(75, "unfinished", jobID+": it is running"), 75, "fbus: " + jobID + ": it is running\n", `{"source":"fbus","status":75,"code":"unfinished"`},
		{refusal(65, "bad_input", jobID+": no such job"), 65, "fbus: " + jobID + ": no such job\n", `{"source":"fbus","status":65,"code":"bad_input"`},
	} {
		end.Store(&c.end)
		o := resultFlags(t, n)
		o.statusTo = filepath.Join(t.TempDir(), "status")
		var errs bytes.Buffer
		status := report(&errs, result(o, &errs))
		said, hint, _ := strings.Cut(strings.TrimPrefix(errs.String(), "from the program\n"), "fbus: hint: ")
		if strings.Contains(hint, "where it was") || c.end.Code == "node_lost" && hint != "fbus retry "+o.id+" runs it again\n" {
			t.Errorf("%+v: hint %q", c.end, hint)
		}
		if status != c.status || said != c.said {
			t.Errorf("%+v: status %d, said %q", c.end, status, said)
		}
		told, _ := os.ReadFile(o.statusTo)
		if want := c.code + `,"call":"","job":"` + o.id + "\"}\n"; string(told) != want {
			t.Errorf("told %s, want %s", told, want)
		}
		if out, _ := os.ReadFile(o.output); string(out) != string(c.end.Output) {
			t.Errorf("wrote %q", out)
		}
	}
}

// TestResultAsks: what is asked of the node.
func TestResultAsks(t *testing.T) {
	n := newStore(t)
	asked := make(chan []string, 1)
	n.offer(t, "result", func(_ context.Context, inv *bus.Invocation) bus.Result {
		words, _ := inv.Words()
		asked <- words
		return exited("")
	})
	for want, set := range map[string]func(o *resultOptions){
		`{}`:             func(*resultOptions) {},
		`{"wait":false}`: func(o *resultOptions) { o.noWait = true },
		`{"timeout":`:    func(o *resultOptions) { o.timeout.Set("1h") },
	} {
		o := resultFlags(t, n)
		set(o)
		if err := result(o, io.Discard); err != nil {
			t.Fatal(err)
		}
		if got := <-asked; len(got) != 2 || got[0] != o.id || !strings.HasPrefix(got[1], want) {
			t.Errorf("asked %q, want %s", got, want)
		}
	}
}

// TestResultOverRestart: the waiting outlives the node, and says so once.
func TestResultOverRestart(t *testing.T) {
	n := startStore(t, filepath.Join(t.TempDir(), "bus.sock"))
	waiting := make(chan struct{})
	n.offer(t, "result", func(ctx context.Context, _ *bus.Invocation) bus.Result {
		close(waiting)
		<-ctx.Done()
		return exited("")
	})
	o := resultFlags(t, n)
	var errs bytes.Buffer
	ended := make(chan error, 1)
	go func() { ended <- result(o, &errs) }()
	<-waiting
	n.stop()
	m := startStore(t, n.socket)
	defer m.stop()
	m.offer(t, "result", func(context.Context, *bus.Invocation) bus.Result { return exited("bytes") })
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if out, _ := os.ReadFile(o.output); string(out) != "bytes" {
		t.Errorf("wrote %q", out)
	}
	if said := errs.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "waiting for it to come back") {
		t.Errorf("said %q", said)
	}
}

// TestResultLostMidway: what was printed is not printed again.
func TestResultLostMidway(t *testing.T) {
	n := startStore(t, filepath.Join(t.TempDir(), "bus.sock"))
	n.offer(t, "result", func(ctx context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write([]byte("half"))
		<-ctx.Done()
		return exited("")
	})
	o := resultFlags(t, n)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd, err := syscall.Dup(int(w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	o.output = "/dev/fd/" + strconv.Itoa(fd) // closed with its file
	ended := make(chan error, 1)
	go func() { ended <- result(o, io.Discard) }()
	if _, err := io.ReadFull(r, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	n.stop()
	f := explain(<-ended)
	if f.Status() != args.StatusOf(args.CodeNoNode) || !strings.HasPrefix(f.Hint, "the result is where it was: fbus result "+o.id+"; ") {
		t.Errorf("status %d, said %q, hint %q", f.Status(), f.Message, f.Hint)
	}
}

// TestResultTimeout: the time to wait counts while the node is away.
func TestResultTimeout(t *testing.T) {
	n := startStore(t, filepath.Join(t.TempDir(), "bus.sock"))
	waiting := make(chan struct{})
	n.offer(t, "result", func(ctx context.Context, _ *bus.Invocation) bus.Result {
		close(waiting)
		<-ctx.Done()
		return exited("")
	})
	o := resultFlags(t, n)
	o.timeout.Set("300ms")
	ended := make(chan error, 1)
	go func() { ended <- result(o, io.Discard) }()
	<-waiting
	n.stop()
	select {
	case err := <-ended:
		if f := explain(err); f.Status() != args.StatusOf(args.CodeNoNode) {
			t.Errorf("status %d, said %q", f.Status(), f.Message)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits for ever")
	}
}

func TestResultNeedsAStore(t *testing.T) {
	n := newStore(t)
	if f := explain(result(resultFlags(t, n), io.Discard)); f.Code != args.CodeNoFunction || !strings.Contains(f.Message, "keeps no jobs") {
		t.Errorf("status %d, said %q", f.Status(), f.Message)
	}
}
