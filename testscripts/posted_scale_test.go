package testscripts

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	fbus "fbus/bus"
	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

// backlog is how many jobs are posted and not run, at most, while many go through.
const backlog = 10_000

// tally is what a worker has run: how often each item.
type tally struct {
	runs []atomic.Int32
	n    atomic.Int64
	bad  atomic.Int64 // were no item
}

func (c *tally) handle(_ context.Context, inv *fbus.Invocation) fbus.Result {
	words, err := inv.Words()
	i := -1
	if err == nil && len(words) == 1 {
		i, err = strconv.Atoi(words[0])
	}
	if err != nil || i < 0 || i >= len(c.runs) {
		c.bad.Add(1)
		return fbus.Exit(65)
	}
	c.runs[i].Add(1)
	c.n.Add(1)
	return fbus.Result{Output: []byte(words[0])}
}

// feed writes the items, and no more of them than may wait.
func (c *tally) feed(w io.WriteCloser) {
	defer w.Close()
	b := bufio.NewWriter(w)
	for i := range c.runs {
		for int64(i)-c.n.Load() >= backlog && c.bad.Load() == 0 {
			b.Flush()
			time.Sleep(time.Millisecond)
		}
		if _, err := fmt.Fprintln(b, i); err != nil {
			return
		}
	}
	b.Flush()
}

// lineCount counts lines.
type lineCount struct{ n atomic.Int64 }

// Write implements io.Writer.
func (l *lineCount) Write(p []byte) (int, error) {
	l.n.Add(int64(bytes.Count(p, []byte("\n"))))
	return len(p), nil
}

// memory is what a process takes: all of it, and without pages of files.
func memory(t testing.TB, pid int) (all, own int64) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var name string
		var kb int64
		fmt.Sscan(line, &name, &kb)
		switch name {
		case "VmRSS:":
			all = kb << 10
		case "RssAnon:":
			own = kb << 10
		}
	}
	return all, own
}

// dbSize is how long the store's file is.
func (s *store) dbSize() int64 {
	s.t.Helper()
	st, err := os.Stat(filepath.Join(s.jobs(), "jobs.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	return st.Size()
}

// number is how many jobs a test has: usually, in a soak, and with the race detector.
func number(t *testing.T, usual, soaked, raced int) int {
	t.Helper()
	long(t)
	switch {
	case soak():
		return soaked
	case raceEnabled:
		return raced
	}
	return usual
}

// TestPostedMany: many jobs go through one node, each is run once, their results go
// when their time is over, and neither the node nor its file grows with their number.
// FBUS_SOAK=1 does it with a million.
func TestPostedMany(t *testing.T) {
	n := number(t, 20_000, 1_000_000, 4_000)
	t.Parallel()
	s := newStore(t)
	c := &tally{runs: make([]atomic.Int32, n)}
	s.worker("w", "f", 64, c.handle)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var ids lineCount
	var said bytes.Buffer
	cmd := s.command("post", "--each", "arg", "--keep", "1s", "f")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, &ids, &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	go c.feed(w) // ends with fbus post
	var most, firstAll, firstOwn int64
	posted := make(chan struct{})
	go func() { // ends with fbus post
		err = cmd.Wait()
		close(posted)
	}()
	for before, at := int64(-1), began; c.n.Load() < int64(n); time.Sleep(5 * time.Millisecond) {
		most = max(most, s.dbSize())
		if firstAll == 0 && c.n.Load() >= int64(n/5) {
			firstAll, firstOwn = memory(t, s.node.Process.Pid)
		}
		if now := c.n.Load(); now != before {
			before, at = now, time.Now()
		}
		if c.bad.Load() > 0 || time.Since(at) > patience {
			cmd.Process.Kill()
			break
		}
	}
	took := time.Since(began)
	<-posted
	if err != nil {
		t.Fatalf("fbus post, when %d jobs had been run: %v: %s", c.n.Load(), err, said.Bytes())
	}
	all, own := memory(t, s.node.Process.Pid)
	client := s.client("test")
	eventually(t, "all results have gone", func() bool {
		a := askWith(client, "fbus.jobs", args.JSON([]byte(`{"limit":1}`)), "")
		return strings.HasPrefix(a.out, `{"total":0}`)
	})
	lost, twice := 0, 0
	for i := range c.runs {
		switch c.runs[i].Load() {
		case 0:
			lost++
		case 1:
		default:
			twice++
		}
	}
	t.Logf("%d jobs in %v, %.0f/s; the file had at most %d MiB", n, took.Round(time.Millisecond), float64(n)/took.Seconds(), most>>20)
	t.Logf("memory after %d: %d MiB, %d without files; after %d: %d MiB, %d without files", n/5, firstAll>>20, firstOwn>>20, n, all>>20, own>>20)
	if lost > 0 || twice > 0 || c.bad.Load() > 0 || ids.n.Load() != int64(n) {
		t.Errorf("%d ids of %d jobs; %d were lost, %d run twice or more, %d were something else", ids.n.Load(), n, lost, twice, c.bad.Load())
	}
	slack := int64(32 << 20) // how much waits at once depends on the machine's load
	if soak() {
		slack = 16 << 20
	}
	if own > firstOwn+firstOwn/4+slack && !raceEnabled {
		t.Errorf("the node took %d bytes after %d jobs, and takes %d after %d", firstOwn, n/5, own, n)
	}
	if most > 128<<20 {
		t.Errorf("the file of %d jobs at a time had %d bytes", backlog, most)
	}
	// It is small again, and all is well with it, after the next start.
	s.end(syscall.SIGTERM)
	s.start()
	if size := s.dbSize(); size > 16<<20 {
		t.Errorf("the file has %d bytes, and nothing in it", size)
	}
	if strings.Contains(s.stderr(), "damaged") {
		t.Error(s.stderr())
	}
}

// TestJobsOfMany: fbus jobs answers at once, however many are queued: what it takes is
// counted as CPU time of node and command, since others use the machine as well.
// FBUS_SOAK=1 does it with 100,000.
func TestJobsOfMany(t *testing.T) {
	n := number(t, 20_000, 100_000, 2_000)
	const limit = 100 * time.Millisecond
	s := newStore(t)
	var items bytes.Buffer
	for i := range n {
		fmt.Fprintln(&items, i)
	}
	cmd := s.command("post", "--each", "arg", "nobody")
	cmd.Stdin = &items
	if out, err := cmd.Output(); err != nil || bytes.Count(out, []byte("\n")) != n {
		t.Fatalf("%d ids of %d: %v", bytes.Count(out, []byte("\n")), n, err)
	}
	for _, look := range []struct {
		words []string
		lines int
	}{
		{nil, 101},
		{[]string{"--state", "queued"}, 101},
		{[]string{"--state", "dead"}, 0},
		{[]string{"--function", "no*"}, 101},
		{[]string{"--json", "--limit", "100"}, 100},
		{[]string{"--json"}, n},
		{[]string{"--json", "--state", "queued"}, n},
	} {
		best := time.Hour
		for range 5 {
			took, count := s.look(look.words, look.lines == n)
			if best = min(best, took); count != look.lines && look.lines < n {
				t.Fatalf("fbus jobs %q: %d lines, not %d", look.words, count, look.lines)
			}
		}
		t.Logf("fbus jobs %q of %d took %v", look.words, n, best.Round(100*time.Microsecond))
		if best > limit && !raceEnabled {
			t.Errorf("fbus jobs %q took %v, of %v", look.words, best, limit)
		}
		if look.lines == n { // only the first line was awaited
			if _, count := s.look(look.words, false); count != n {
				t.Errorf("fbus jobs %q: %d lines, not %d", look.words, count, n)
			}
		}
	}
}

// look runs fbus jobs, until its first line or its end, and counts its lines and the CPU
// time that it and the node took.
func (s *store) look(words []string, first bool) (took time.Duration, count int) {
	s.t.Helper()
	cmd := s.command(append([]string{"jobs", "-q"}, words...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	before := s.cpuTime()
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for r := bufio.NewReader(out); ; count++ {
		if _, err := r.ReadSlice('\n'); err != nil {
			break
		}
		if first {
			cmd.Process.Kill()
		}
	}
	took = s.cpuTime() - before
	if err := cmd.Wait(); err != nil && !first {
		s.t.Fatalf("fbus jobs %q: %v", words, err)
	}
	return took + cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), count
}

// cpuTime returns the CPU time that the node has used.
func (s *store) cpuTime() time.Duration {
	s.t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^s.node.Process.Pid<<3|2), &ts); err != nil { // see clock_getcpuclockid(3)
		s.t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
