package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// playedJobs is what a test's fbus.jobs knows.
type playedJobs struct {
	mu    sync.Mutex // protects the fields below
	lines []string
	asked []bus.JobQuery
	more  int // jobs that are not shown
}

func playStore(t *testing.T, n *storeNode, lines ...string) *playedJobs {
	p := &playedJobs{lines: lines}
	n.offer(t, "jobs", func(_ context.Context, inv *bus.Invocation) bus.Result {
		p.mu.Lock()
		defer p.mu.Unlock()
		var q bus.JobQuery
		if err := json.Unmarshal(inv.Args, &q); err != nil {
			return refusal(64, "usage", err.Error())
		}
		p.asked = append(p.asked, q)
		var out bytes.Buffer
		shown := 0
		for _, line := range p.lines {
			var i bus.JobInfo
			json.Unmarshal([]byte(line), &i)
			if len(q.IDs) > 0 && !slices.Contains(q.IDs, i.ID) {
				continue
			}
			shown++
			out.WriteString(line + "\n")
		}
		if shown < len(q.IDs) {
			return refusal(65, "bad_input", q.IDs[0]+": no such job")
		}
		fmt.Fprintf(&out, "{\"total\":%d}\n", shown+p.more)
		return bus.Result{Output: out.Bytes()}
	})
	return p
}

func (p *playedJobs) set(lines ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = lines
}

func (p *playedJobs) last() bus.JobQuery {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[len(p.asked)-1]
}

func jobsFlags(n *storeNode) *jobsOptions {
	o := &jobsOptions{function: "jobs"}
	o.node = n.socket
	return o
}

var spaces = regexp.MustCompile(` +`)

func TestJobsTable(t *testing.T) {
	n := newStore(t)
	p := playStore(t, n,
		`{"id":"A","function":"resize","state":"running","age":3725,"attempts":2,"retries":5,"poster":"uid:7","worker":"here"}`,
		`{"id":"B","function":"resize","state":"queued","age":1.26,"attempts":0,"retries":0,"poster":"ticket:\u001b[31m","note":"no worker offers it"}`,
		`{"id":"C","function":"resize","state":"delayed","age":1,"attempts":1,"retries":1,"poster":"uid:7","due":"2001-01-01T00:00:00Z","source":"program","status":3,"code":"exit"}`,
		`{"id":"D","function":"resize","state":"dead","age":1,"attempts":1,"retries":0,"poster":"uid:7","source":"fbus","status":77,"code":"denied","message":"uid:7 may not\ncall it"}`,
		`{"id":"E","function":"resize","state":"done","age":1,"attempts":1,"retries":0,"poster":"uid:7","source":"program","status":0,"code":"exit"}`,
		`{"id":"F","function":"resize","state":"dead","age":1,"attempts":1,"retries":0,"poster":"uid:7","source":"signal","status":137,"code":"SIGKILL"}`,
	)
	want := `ID FUNCTION STATE AGE ATTEMPTS POSTER NOTE
A resize running 1h2m5s 2 uid:7 on here
B resize queued 1.3s 0 ticket:?[31m no worker offers it
C resize delayed 1s 1 uid:7 due in 0s, exit 3
D resize dead 1s 1 uid:7 denied: uid:7 may not call it
E resize done 1s 1 uid:7 
F resize dead 1s 1 uid:7 signal KILL
`
	var out, errs bytes.Buffer
	if err := showJobs(jobsFlags(n), nil, &out, &errs); err != nil || errs.Len() > 0 {
		t.Errorf("error %v, said %q", err, &errs)
	}
	if got := spaces.ReplaceAllString(out.String(), " "); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if q := p.last(); q.Limit != defaultJobs || !q.Newest {
		t.Errorf("asked %+v", q)
	}
	// What is left out is said.
	p.mu.Lock()
	p.more = 1
	p.mu.Unlock()
	if err := showJobs(jobsFlags(n), nil, io.Discard, &errs); err != nil || errs.String() != "fbus: 1 more: --limit N shows the newest N, --json all\n" {
		t.Errorf("error %v, said %q", err, &errs)
	}
	o := jobsFlags(n)
	o.state, o.glob, o.limit, o.hasLimit, o.quiet = "dead", "re*", 7, true, true
	errs.Reset()
	if err := showJobs(o, nil, io.Discard, &errs); err != nil || errs.Len() > 0 {
		t.Errorf("error %v, said %q", err, &errs)
	}
	if q := p.last(); q.State != "dead" || q.Function != "re*" || q.Limit != 7 || !q.Newest {
		t.Errorf("asked %+v", q)
	}
}

func TestJobsJSON(t *testing.T) {
	n := newStore(t)
	lines := []string{`{"id":"A","state":"done","new":[1.50]}`, `{"id":"B","state":"dead"}`}
	p := playStore(t, n, lines...)
	o := jobsFlags(n)
	o.json = true
	var out bytes.Buffer
	if err := showJobs(o, nil, &out, io.Discard); err != nil || out.String() != strings.Join(lines, "\n")+"\n" {
		t.Errorf("printed %s, error %v", &out, err)
	}
	if q := p.last(); q.Limit != 0 || q.Newest {
		t.Errorf("asked %+v", q)
	}
	o.function = "nosuch"
	if f := explain(showJobs(o, nil, &out, io.Discard)); f.Code != args.CodeNoFunction || !strings.Contains(f.Message, "keeps no jobs") {
		t.Errorf("status %d, said %q", f.Status(), f.Message)
	}
}

// TestAllButLast: lines come out whole or not, in whatever pieces they come, and the
// last one stays.
func TestAllButLast(t *testing.T) {
	const text = "one\n\ntwo\nthree\n"
	for size := 1; size <= len(text); size++ {
		var out bytes.Buffer
		l := &allButLast{each: func(line []byte) error { out.WriteByte('>'); out.Write(line); return nil }}
		for piece := range slices.Chunk([]byte(text), size) {
			if n, err := l.Write(piece); n != len(piece) || err != nil {
				t.Fatal(n, err)
			}
		}
		if out.String() != ">one\n>\n>two\n" || string(l.last) != "three\n" {
			t.Errorf("in pieces of %d bytes: %q, and the last %q", size, out.String(), l.last)
		}
	}
}

// family is a chain: A has posted B and C, B has posted D; X is not to be had.
var family = []string{
	`{"id":"A","function":"fetch","state":"done","children":["B","C","X"],"source":"program","status":0,"code":"exit"}`,
	`{"id":"B","function":"index","state":"dead","parent":"A","children":["D"],"source":"program","status":65,"code":"exit"}`,
	`{"id":"C","function":"note","state":"queued","parent":"A"}`,
	`{"id":"D","function":"alarm","state":"done","parent":"B","attempts":1,"source":"program","status":0,"code":"exit"}`,
}

func TestJobsChain(t *testing.T) {
	n := newStore(t)
	playStore(t, n, family...)
	for _, id := range []string{"A", "B", "D"} {
		o := jobsFlags(n)
		o.json = true
		var out bytes.Buffer
		if err := showJobs(o, []string{id}, &out, io.Discard); err != nil {
			t.Fatal(err)
		}
		var got struct {
			ID    string
			Chain []bus.JobInfo
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || strings.Count(out.String(), "\n") != 1 {
			t.Fatalf("%s: %v", &out, err)
		}
		chain := ""
		for _, i := range got.Chain {
			chain += i.ID
		}
		if got.ID != id || chain != "ABDC" {
			t.Errorf("%s: chain %s", got.ID, chain)
		}
	}
	var out bytes.Buffer
	if err := showJobs(jobsFlags(n), []string{"D"}, &out, io.Discard); err != nil || !strings.Contains(out.String(), `
CHAIN  FUNCTION  STATE   ATTEMPTS  END
A      fetch     done    0         exit 0
  B    index     dead    0         exit 65
    D  alarm     done    1         exit 0
  C    note      queued  0         -
`) {
		t.Errorf("error %v, printed\n%s", err, &out)
	}
	// A circle, which no node makes, ends too.
	playStore(t, n, `{"id":"A","parent":"B","children":["B"]}`, `{"id":"B","parent":"A","children":["A"]}`)
	if err := showJobs(jobsFlags(n), []string{"A"}, io.Discard, io.Discard); err != nil {
		t.Error(err)
	}
	f := explain(showJobs(jobsFlags(n), []string{"Z"}, io.Discard, io.Discard))
	if f.Code != args.CodeBadInput || f.Message != "Z: no such job" {
		t.Errorf("status %d, said %q", f.Status(), f.Message)
	}
}

func TestJobsShow(t *testing.T) {
	m := newStore(t)
	playStore(t, m, strings.ReplaceAll(`{"id":"A","function":"resize","state":"delayed","poster":"uid:7","posted":"2026-03-01T12:00:00Z","age":90,"attempts":2,"retries":5,
"priority":-3,"unique":"k","on":"gpu*","timeout":90,"keep":86400,"then":"notify","else":"alarm","in":3,"out":4,"err":5,"history":[
{"attempt":1,"started":"2026-03-01T12:00:00Z","ended":"2026-03-01T12:00:01.5Z","worker":"w1","call":"c-1","source":"program","status":3,"code":"exit"},
{"attempt":2,"started":"2026-03-01T12:00:02Z","ended":"2026-03-01T12:00:02Z","worker":"w2","call":"c-2","source":"fbus","status":74,"code":"worker_lost","message":"worker w2 was lost"},
{"attempt":3,"started":"2026-03-01T12:00:03Z","worker":"w3","call":"c-3"}]}`, "\n", ""))
	var out bytes.Buffer
	if err := showJobs(jobsFlags(m), []string{"A"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	got := spaces.ReplaceAllString(out.String(), " ")
	for _, want := range []string{
		"function resize\n", "state delayed\n", "poster uid:7\n", ", 1m30s ago\n", "attempts 2; 0 of 6 used\n", "priority -3\n", "unique k\n", "on gpu*\n", "timeout 1m30s\n",
		"keep 1d\n", "then notify\n", "else alarm\n", "bytes 3 in, 4 out, 5 stderr\n", " 1.500 w1 c-1 exit 3\n", " 0.000 w2 c-2 worker_lost: worker w2 was lost\n", " - w3 c-3 -\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "CHAIN") {
		t.Errorf("a chain of one job is shown:\n%s", got)
	}
}

// TestJobsWatch: what changes is printed, and nothing else; a restart of the node is
// waited for.
func TestJobsWatch(t *testing.T) {
	n := startStore(t, filepath.Join(t.TempDir(), "bus.sock"))
	job := func(id, state string, age int) string {
		return fmt.Sprintf(`{"id":%q,"state":%q,"age":%d}`, id, state, age)
	}
	p := playStore(t, n, job("A", "queued", 1), job("B", "queued", 1))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	o := jobsFlags(n)
	o.json, o.watch, o.every = true, true, 10*time.Millisecond
	var errs bytes.Buffer
	pr, pw := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- watchJobs(ctx, o, nil, pw, &errs) }()
	dec := json.NewDecoder(pr)
	expect := func(id, state string) {
		t.Helper()
		var i bus.JobInfo
		if err := dec.Decode(&i); err != nil || i.ID != id || string(i.State) != state {
			t.Fatalf("printed %s %s, error %v; want %s %s", i.ID, i.State, err, id, state)
		}
	}
	expect("A", "queued")
	expect("B", "queued")
	p.set(job("A", "queued", 2), job("B", "running", 2))
	expect("B", "running")
	n.stop()
	m := startStore(t, n.socket)
	defer m.stop()
	playStore(t, m, job("A", "done", 3), job("B", "running", 3))
	expect("A", "done")
	cancel()
	go io.Copy(io.Discard, pr) // ends with the writer
	if err := <-ended; err != context.Canceled {
		t.Error(err)
	}
	if said := errs.String(); strings.Count(said, "waiting for it to come back") != 1 {
		t.Errorf("said %q", said)
	}
}

// TestJobsWatchPages: elsewhere than on a terminal a page is printed again when it
// says something else.
func TestJobsWatchPages(t *testing.T) {
	var out bytes.Buffer
	w := &pager{stdout: &out}
	w.draw([]byte("page 1\n"), "a", 0, 0)
	w.draw([]byte("page 1, older\n"), "a", 0, 0)
	w.draw([]byte("page 2\n"), "b", 0, 0)
	if out.String() != "page 1\n\npage 2\n" {
		t.Errorf("printed %q", &out)
	}
	out.Reset()
	w.draw([]byte("äöü456789\nx\n"), "a", 8, 0)
	if out.String() != "\x1b[Häöü4567\x1b[K\nx\x1b[K\n\x1b[J" {
		t.Errorf("drew %q", &out)
	}
	out.Reset()
	w.draw([]byte("a\nb\nc\nd\ne\n"), "a", 80, 4) // the cursor is in the fourth row
	if out.String() != "\x1b[Ha\x1b[K\nb\x1b[K\n… and 3 more\x1b[K\n\x1b[J" {
		t.Errorf("drew %q", &out)
	}
}

func TestRetryAndPurge(t *testing.T) {
	n := newStore(t)
	asked := make(chan string, 1)
	n.offer(t, "retry", func(_ context.Context, inv *bus.Invocation) bus.Result {
		asked <- string(inv.Args)
		if strings.Contains(string(inv.Args), `"ids"`) {
			res := refusal(65, "bad_input", "B: it is running")
			res.Output = []byte("{\"id\":\"A\"}\n")
			return res
		}
		return exited("{\"id\":\"A\"}\n{\"id\":\"B\"}\n")
	})
	n.offer(t, "purge", func(_ context.Context, inv *bus.Invocation) bus.Result {
		asked <- string(inv.Args)
		return exited("{\"purged\":3}\n")
	})
	for _, c := range []struct {
		do              func(stdout, stderr io.Writer, json bool) error
		asked, out, err string
	}{
		{func(stdout, stderr io.Writer, json bool) error {
			o := &retryOptions{function: "retry", dead: true, glob: "re*"}
			o.node, o.json = n.socket, json
			return retry(o, nil, stdout, stderr)
		}, `{"function":"re*","dead":true}`, "{\"id\":\"A\"}\n{\"id\":\"B\"}\n", "fbus: 2 jobs queued again\n"},
		{func(stdout, stderr io.Writer, json bool) error {
			o := &retryOptions{function: "retry"}
			o.node, o.json = n.socket, json
			return retry(o, []string{"A", "B"}, stdout, stderr)
		}, `{"ids":["A","B"]}`, "{\"id\":\"A\"}\n", "fbus: 1 job queued again\nfbus: B: it is running\n"},
		{func(stdout, stderr io.Writer, json bool) error {
			o := &purgeOptions{function: "purge", state: "done", glob: "re*"}
			o.node, o.json = n.socket, json
			o.older.Set("90s")
			return purge(o, nil, stdout, stderr)
		}, `{"state":"done","function":"re*","older":90}`, "{\"purged\":3}\n", "fbus: 3 jobs purged\n"},
	} {
		for _, json := range []bool{false, true} {
			var out, errs bytes.Buffer
			report(&errs, c.do(&out, &errs, json))
			if got := <-asked; got != c.asked {
				t.Errorf("asked %s, want %s", got, c.asked)
			}
			if errs.String() != c.err || json && out.String() != c.out || !json && out.Len() > 0 {
				t.Errorf("json %v: printed %q, said %q", json, &out, &errs)
			}
		}
	}
}

func TestRetryAndPurgeUsage(t *testing.T) {
	older := durationValue{set: true}
	for want, err := range map[string]error{
		"fbus retry needs":                          (&retryOptions{}).check(nil),
		"ids exclude --dead":                        (&retryOptions{dead: true}).check([]string{"A"}),
		"--function goes with --dead":               (&retryOptions{glob: "x"}).check([]string{"A"}),
		"fbus purge needs":                          (&purgeOptions{glob: "x"}).check(nil),
		"running jobs are not purged":               (&purgeOptions{state: "running"}).check(nil),
		"--state must be done, dead":                (&purgeOptions{state: "x"}).check(nil),
		"--older must be positive, not 0s":          (&purgeOptions{older: older}).check(nil),
		"cannot be used with ids":                   (&purgeOptions{state: "dead"}).check([]string{"A"}),
		"--state x: must be one of queued, delayed": (&jobsOptions{state: "x"}).check(nil),
		"--limit must be at least 1":                (&jobsOptions{hasLimit: true}).check(nil),
		"select from all jobs: they do not":         (&jobsOptions{state: "dead"}).check([]string{"A"}),
		"a job's id must not be empty":              (&jobsOptions{}).check([]string{""}),
	} {
		if err == nil || explain(err).Code != args.CodeUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	if err := (&purgeOptions{}).check([]string{"A"}); err != nil {
		t.Error(err)
	}
}

// TestAge: a long time is shown in days.
func TestAge(t *testing.T) {
	for seconds, want := range map[float64]string{1.25: "1.3s", 47*3600 + 59: "47h0m59s", 8074*3600 + 39*60: "336d10h"} {
		if got := age(seconds); got != want {
			t.Errorf("%v seconds: %s, want %s", seconds, got, want)
		}
	}
}

// TestPurgeUnended: a job that has not ended is not purged by its id, and the hint is true of
// waiting jobs too.
func TestPurgeUnended(t *testing.T) {
	n := newStore(t)
	n.offer(t, "purge", func(context.Context, *bus.Invocation) bus.Result { return exited("{\"purged\":0}\n") })
	var out, errs bytes.Buffer
	err := purge(&purgeOptions{lookOptions: lookOptions{nodeOptions: nodeOptions{node: n.socket}}, function: "purge"}, []string{"A"}, &out, &errs)
	var e *args.Error
	if !errors.As(err, &e) || e.Message != "1 of 1 job not purged: not ended" || !strings.Contains(e.Hint, "--state queued") {
		t.Errorf("%+v", err)
	}
}

// TestManyIDs: more ids than the arguments of one call can have are sent with several calls.
func TestManyIDs(t *testing.T) {
	n := newStore(t)
	answer := func(line func(d bus.JobQuery) string) bus.Handler {
		return func(_ context.Context, inv *bus.Invocation) bus.Result {
			var d bus.JobQuery
			if err := json.Unmarshal(inv.Args, &d); err != nil {
				t.Error(err)
			}
			return exited(line(d))
		}
	}
	n.offer(t, "purge", answer(func(d bus.JobQuery) string { return fmt.Sprintf("{\"purged\":%d}\n", len(d.IDs)) }))
	n.offer(t, "retry", answer(func(d bus.JobQuery) string { return strings.Repeat("{\"id\":\"x\"}\n", len(d.IDs)) }))
	ids := []string{"id-0"}
	for i := range 45_000 {
		ids = append(ids, fmt.Sprintf("id-%023d", i), fmt.Sprintf("ID-%023d", i))
	}
	look := lookOptions{nodeOptions: nodeOptions{node: n.socket}, json: true}
	var out, errs bytes.Buffer
	if err := purge(&purgeOptions{lookOptions: look, function: "purge"}, ids, &out, &errs); err != nil {
		t.Error(err)
	}
	if out.String() != "{\"purged\":45001}\n" || errs.String() != "fbus: 45001 jobs purged\n" {
		t.Errorf("printed %q, said %q", out.String(), errs.String())
	}
	out.Reset()
	errs.Reset()
	if err := retry(&retryOptions{lookOptions: look, function: "retry"}, ids, &out, &errs); err != nil {
		t.Error(err)
	}
	if strings.Count(out.String(), "\n") != 45001 || errs.String() != "fbus: 45001 jobs queued again\n" {
		t.Errorf("printed %d bytes, said %q", out.Len(), errs.String())
	}
}

// TestNoteOnce: a reason that the note of a job has is not repeated.
func TestNoteOnce(t *testing.T) {
	status := 70
	j := jobLine{JobInfo: bus.JobInfo{State: "delayed", Note: "the store of jobs is full: x; next try at T"}}
	j.JobEnd = bus.JobEnd{Source: "fbus", Status: &status, Code: "internal", Message: "its output could not be kept: the store of jobs is full: x"}
	if got := j.note(); got != j.Note {
		t.Errorf("%q", got)
	}
}
