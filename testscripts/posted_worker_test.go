package testscripts

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	fbus "fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
)

// jobProgram notes in runs that it has begun, waits for the file go.WORKER, gives a
// result, and notes that.
const jobProgram = `echo "begun $FBUS_JOB_ID $FBUS_ATTEMPT $W $$" >>"$DIR/runs"
while ! test -e "$DIR/go.$W"; do sleep 0.02; done
echo "result of $W"
echo "ended $FBUS_JOB_ID $FBUS_ATTEMPT $W $$" >>"$DIR/runs"`

// offering is fbus offer in a process of its own.
type offering struct {
	cmd *exec.Cmd

	mu   sync.Mutex // protects the field below
	said bytes.Buffer
}

// Write takes what it says on stderr.
func (o *offering) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.said.Write(p)
}

func (o *offering) stderr() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.said.String()
}

// offer starts a worker with one slot that runs a shell program, and waits until its
// offer stands. It ends with the test.
func (s *store) offer(name, function, program string, flags ...string) *offering {
	s.t.Helper()
	words := append([]string{"offer", function, "-v", "--worker", name, "--slots", "1", "-e", "W=" + name}, flags...)
	o := &offering{cmd: s.command(append(words, "--", "sh", "-c", program)...)}
	o.cmd.Stderr = o
	o.cmd.WaitDelay = patience
	if err := o.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		o.kill()
		if s.t.Failed() {
			s.t.Logf("worker %s said: %.2000s", name, o.stderr())
		}
	})
	eventually(s.t, "the worker "+name+" offers", func() bool { return strings.Contains(o.stderr(), "fbus: offering") })
	return o
}

// kill is kill -9, of one that is stopped too. A second time it does nothing.
func (o *offering) kill() {
	o.cmd.Process.Kill()
	o.cmd.Wait()
}

func (o *offering) signal(sig syscall.Signal) { o.cmd.Process.Signal(sig) }

// allow lets the programs of a worker end.
func (s *store) allow(worker string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "go."+worker), nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// noted is a line of runs.
type noted struct {
	what, job, attempt, worker string
	pid                        int
}

func (s *store) noted() (list []noted) {
	data, _ := os.ReadFile(filepath.Join(s.dir, "runs"))
	for line := range strings.Lines(string(data)) {
		var n noted
		if _, err := fmt.Sscan(line, &n.what, &n.job, &n.attempt, &n.worker, &n.pid); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// awaitNote waits until a program of that worker has noted something of a job.
func (s *store) awaitNote(what, job, worker string) (n noted) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%s %s on %s", job, what, worker), func() bool {
		for _, n = range s.noted() {
			if n.what == what && n.job == job && n.worker == worker {
				return true
			}
		}
		return false
	})
	return n
}

// courses are the attempts at a job as its programs have noted them: ATTEMPT@WORKER.
func (s *store) courses(job string) string {
	var list []string
	for _, n := range s.noted() {
		if n.what == "begun" && n.job == job {
			list = append(list, n.attempt+"@"+n.worker)
		}
	}
	return strings.Join(list, " ")
}

// posted posts to f, which must be taken.
func (s *store) posted(c *fbus.Client, options string) string {
	s.t.Helper()
	id, a := post(c, "f", options, "")
	if id == "" {
		s.t.Fatalf("a post was refused: %+v", a.res)
	}
	return id
}

// job is one job with its history.
func (s *store) job(c *fbus.Client, id string) fbus.JobInfo {
	s.t.Helper()
	return s.list(c, `{"ids":["`+id+`"]}`)[0]
}

// becomes waits until a job is in a state.
func (s *store) becomes(c *fbus.Client, id string, state jobs.State) (i fbus.JobInfo) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("job %s is %s", id, state), func() bool {
		i = s.job(c, id)
		return i.State == state
	})
	return i
}

// history is how a job's attempts ended: WORKER CODE STATUS, each.
func history(i *fbus.JobInfo) string {
	var list []string
	for _, t := range i.History {
		status := "-"
		if t.Status != nil {
			status = fmt.Sprint(*t.Status)
		}
		list = append(list, fmt.Sprintf("%d %s %s %s", t.Attempt, t.Worker, t.Code, status))
	}
	return strings.Join(list, ", ")
}

// checkCourse compares what is known of a job with what should be, from the programs
// and from the node.
func (s *store) checkCourse(i fbus.JobInfo, courses, ends string) {
	s.t.Helper()
	if got := s.courses(i.ID); got != courses {
		s.t.Errorf("it was run as %q, not as %q", got, courses)
	}
	if got := history(&i); got != ends {
		s.t.Errorf("its history is %q, not %q", got, ends)
	}
}

// TestPostedWorkerKilled: a job whose worker is killed runs again on another one, with the
// same id and the next attempt, without --retries. After three it is dead and says why; so
// does fbus result.
func TestPostedWorkerKilled(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := s.client("test")
	w := s.offer("w1", "f", jobProgram)
	again := s.posted(c, `{"backoff":0.01}`)
	program := s.awaitNote("begun", again, "w1")
	w.kill()
	eventually(t, "the program is killed with its worker", func() bool { return !running(program.pid) })
	s.becomes(c, again, jobs.Queued)
	s.allow("w2")
	w = s.offer("w2", "f", jobProgram)
	if a := ask(c, "fbus.result", again); a.out != "result of w2\n" || !a.ok() {
		t.Errorf("%+v", a)
	}
	s.checkCourse(s.job(c, again), "1@w1 2@w2", "1 w1 worker_lost 74, 2 w2 exit 0")
	w.kill()

	last := s.posted(c, `{"backoff":0.01}`)
	for _, name := range []string{"w3", "w4", "w5"} {
		w = s.offer(name, "f", jobProgram)
		s.awaitNote("begun", last, name)
		w.kill()
	}
	i := s.becomes(c, last, jobs.Dead)
	if i.Code != args.CodeWorkerLost || *i.Status != 74 || i.Message != "its worker was lost 3 times" || i.Attempts != 3 || i.Used != 0 {
		t.Errorf("%+v", i)
	}
	s.checkCourse(i, "1@w3 2@w4 3@w5", "1 w3 worker_lost 74, 2 w4 worker_lost 74, 3 w5 worker_lost 74")
	cmd := s.command("result", last)
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 74 || !strings.Contains(string(text), "its worker was lost 3 times") {
		t.Errorf("fbus result: %v: %s", err, text)
	}
	text, err = s.command("jobs", last).CombinedOutput()
	if err != nil || !strings.Contains(string(text), "its worker was lost 3 times") {
		t.Errorf("fbus jobs: %v: %s", err, text)
	}
	if text, err := s.command("retry", last).CombinedOutput(); err != nil {
		t.Errorf("fbus retry: %v: %s", err, text)
	}
	s.allow("w6")
	s.offer("w6", "f", jobProgram)
	s.becomes(c, last, jobs.Done)

	// The opposite was asked for.
	once, err := s.command("post", "-n", "--at-most-once", "g").Output()
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(once))
	w = s.offer("w7", "g", jobProgram)
	s.awaitNote("begun", id, "w7")
	w.kill()
	if i := s.becomes(c, id, jobs.Dead); i.Attempts != 1 || !strings.Contains(i.Message, "worker w7 was lost") || !strings.Contains(i.Message, "--at-most-once") {
		t.Errorf("%+v", i)
	}
}

// TestPostedResultUnsent: a program has ended with success, and its worker is killed
// before it could say so: the job is run again, and is done once.
func TestPostedResultUnsent(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := s.client("test")
	w := s.offer("w1", "f", jobProgram)
	id := s.posted(c, `{"retries":1,"backoff":0.01,"then":"next"}`)
	s.awaitNote("begun", id, "w1")
	stopProcess(t, w.cmd.Process)
	s.allow("w1")
	program := s.awaitNote("ended", id, "w1")
	eventually(t, "the program is gone", func() bool { return !running(program.pid) })
	if i := s.job(c, id); i.State != jobs.Running {
		t.Errorf("%+v", i)
	}
	w.kill()
	s.allow("w2")
	s.offer("w2", "f", jobProgram)
	s.endsWell(c, id, "result of w2\n", "1@w1 2@w2", "1 w1 worker_lost 74, 2 w2 exit 0")
}

// TestPostedResultLost: the result is on its way when the node is killed: the next
// node runs the job again, at the cost of no retry, and it is done once.
func TestPostedResultLost(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := s.client("test")
	w := s.offer("w1", "f", jobProgram)
	id := s.posted(c, `{"then":"next"}`)
	s.awaitNote("begun", id, "w1")
	s.posted(c, `{"delay":3600}`) // with this the attempt is on disk as well
	stopProcess(t, s.node.Process)
	s.allow("w1")
	eventually(t, "the worker has the result", func() bool { return strings.Contains(w.stderr(), ": program 0 exit\n") })
	s.kill()
	s.start()
	c = s.client("test")
	s.endsWell(c, id, "result of w1\n", "1@w1 2@w1", "1 w1 node_lost 255, 2 w1 exit 0")
}

// endsWell waits for a job's result, and checks what became of it: the attempts that its
// programs have noted and that its history has, and that it has posted one job.
func (s *store) endsWell(c *fbus.Client, id, out, course, history string) {
	s.t.Helper()
	if a := ask(c, "fbus.result", id); a.out != out || !a.ok() {
		s.t.Errorf("%+v", a)
	}
	i := s.job(c, id)
	s.checkCourse(i, course, history)
	if len(i.Children) != 1 {
		s.t.Errorf("it has posted %d jobs at its end", len(i.Children))
	}
}

// TestPostedWorkerStopped: the attempt of a worker that is stopped ends at the job's
// deadline and is made again elsewhere; the stopped worker's slot stays taken until it
// goes on, and its late result is dropped.
func TestPostedWorkerStopped(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := s.client("test")
	w1 := s.offer("w1", "f", jobProgram)
	id := s.posted(c, `{"timeout":1,"retries":5,"backoff":0.01}`)
	s.awaitNote("begun", id, "w1")
	stopProcess(t, w1.cmd.Process)
	eventually(t, "the attempt has ended", func() bool { return s.job(c, id).State == jobs.Queued }) // w1 has no slot
	s.allow("w2")
	s.offer("w2", "f", jobProgram)
	if a := ask(c, "fbus.result", id); a.out != "result of w2\n" || !a.ok() {
		t.Errorf("%+v", a)
	}
	only := s.posted(c, `{"on":"w1"}`)
	i := s.job(c, id)
	first, rest, _ := strings.Cut(history(&i), ", ")
	if first != "1 w1 deadline 124" || !strings.HasSuffix(rest, " w2 exit 0") || strings.Contains(rest, "w1") {
		t.Errorf("its history is %q, %q", first, rest)
	}
	courses := s.courses(id)
	if state := s.job(c, only).State; state != jobs.Queued {
		t.Errorf("a job for the worker that is stopped is %s", state)
	}

	s.allow("w1")
	s.awaitNote("ended", id, "w1")
	w1.signal(syscall.SIGCONT)
	s.becomes(c, only, jobs.Done) // with that its late result was taken
	if a := ask(c, "fbus.result", id); a.out != "result of w2\n" || !a.ok() {
		t.Errorf("after the late result: %+v", a)
	}
	if now := s.courses(id); now != courses || s.courses(only) != "1@w1" {
		t.Errorf("it was run as %q, then as %q, the other one as %q", courses, now, s.courses(only))
	}
	if again := s.job(c, id); history(&again) != history(&i) {
		t.Errorf("its history was %q, and is %q", history(&i), history(&again))
	}
}

// TestPosterKilled kills fbus post with -9 at many points of its way: an id that was
// printed is that of a job which runs, with all of its input. Of the others some are
// there, whole, and some are not; nothing of them is left behind.
func TestPosterKilled(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := s.client("test")
	input := bytes.Repeat([]byte("0123456789abcde\n"), 6<<10) // it goes through the spool
	file := filepath.Join(s.dir, "input")
	if err := os.WriteFile(file, input, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(after time.Duration) (id string) {
		var out bytes.Buffer
		cmd := s.command("post", "-i", file, "f")
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if after >= 0 {
			time.Sleep(after) // another point each time is what is meant
			cmd.Process.Kill()
		}
		cmd.Wait()
		id, _, whole := strings.Cut(out.String(), "\n")
		if out.Len() > 0 && (!whole || len(id) != 26) {
			t.Errorf("it has printed %q", out.String())
		}
		return id
	}
	began := time.Now()
	printed := map[string]bool{run(-1): true}
	whole := time.Since(began)
	kills := 30
	if raceEnabled {
		kills = 10
	}
	for k := range kills {
		if id := run(whole * time.Duration(k) / time.Duration(kills*3/4)); id != "" {
			printed[id] = true
		}
	}
	interruptedInput(t, s, len(input))
	spooled := func(per int) func() bool {
		return func() bool {
			files, err := os.ReadDir(filepath.Join(s.jobs(), "spool"))
			return err == nil && len(files) == per*len(s.list(c, `{}`))
		}
	}
	eventually(t, "the spool has a file for each job", spooled(1))
	s.offer("w", "f", "wc -c")
	all := 0
	eventually(t, "all jobs are done", func() bool {
		list := s.list(c, `{}`)
		for _, i := range list {
			if i.State != jobs.Done {
				return false
			}
		}
		all = len(list)
		return true
	})
	for _, i := range s.list(c, `{}`) {
		if a := ask(c, "fbus.result", i.ID); strings.TrimSpace(a.out) != fmt.Sprint(len(input)) || !a.ok() {
			t.Errorf("job %s: %+v", i.ID, a)
		}
		delete(printed, i.ID)
	}
	for id := range printed {
		t.Errorf("the id %s was printed, and is of no job", id)
	}
	eventually(t, "the spool has none of what is done", spooled(0))
	t.Logf("%d of %d posts that were killed are jobs", all-1, kills)
}

// interruptedInput kills fbus post in the middle of a job's input: there is no job.
func interruptedInput(t *testing.T, s *store, size int) {
	t.Helper()
	c := s.client("input")
	drafts := func() int {
		list, err := filepath.Glob(filepath.Join(s.jobs(), "spool", "tmp-*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	eventually(t, "earlier posts are over", func() bool { return drafts() == 0 })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := s.command("post", "-i", "-", "interrupted")
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a part of the input is at the node", func() bool { return drafts() == 1 })
	cmd.Process.Kill()
	cmd.Wait()
	eventually(t, "it is removed", func() bool { return drafts() == 0 })
	if list := s.list(c, `{"function":"interrupted"}`); len(list) != 0 { // posts that were killed before may still become jobs
		t.Errorf("jobs are there: %+v", list)
	}
}

// TestSecondStore: a second node of a network on the same store is refused, and is
// told what to do; the first goes on.
func TestSecondStore(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := s.client("test")
	cmd := s.command("serve", "--no-tcp", "--network", "jobs", "--socket", filepath.Join(s.dir, "second.sock"))
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 70 || !strings.Contains(string(text), "fbus: hint: ") || !strings.Contains(string(text), "--network ID") {
		t.Errorf("%v: %s", err, text)
	}
	s.allow("w")
	s.offer("w", "f", jobProgram)
	if a := ask(c, "fbus.result", s.posted(c, `{}`)); a.out != "result of w\n" {
		t.Errorf("%+v", a)
	}
}

// TestPostedDrain: a node that is told to end lets the jobs that run come to their
// end, and begins no other; the next one goes on with what is queued.
func TestPostedDrain(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := s.client("test")
	s.offer("w", "f", jobProgram)
	first := s.posted(c, `{}`)
	s.awaitNote("begun", first, "w")
	queued := []string{s.posted(c, `{}`), s.posted(c, `{}`)}
	node := s.node
	node.Process.Signal(syscall.SIGTERM)
	eventually(t, "the node drains", func() bool {
		c, err := s.dial("late")
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	queued = append(queued, s.posted(c, `{}`)) // over a connection that stands: it is kept
	s.allow("w")
	s.end() // it is waited for
	if node.ProcessState.ExitCode() != 0 {
		t.Errorf("it has ended with %s", node.ProcessState)
	}
	if n := s.noted(); len(n) != 2 || n[1].what != "ended" {
		t.Errorf("while it drained: %+v", n)
	}
	s.start()
	c = s.client("test")
	for _, id := range append(queued, first) {
		if a := ask(c, "fbus.result", id); a.out != "result of w\n" || !a.ok() {
			t.Errorf("%+v", a)
		}
		s.checkCourse(s.job(c, id), "1@w", "1 w exit 0")
	}
}
