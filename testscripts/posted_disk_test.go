package testscripts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	fbus "fbus/bus"

	"golang.org/x/sys/unix"
)

// disk is a filesystem of the test's own, with the state of a node on it.
type disk struct {
	*mountspace
	dir string // where it is mounted
	img string // of an ext4
	// broken says that its filesystem loses what it has synced: while an ext4 turns
	// read-only after an error, a sync may succeed that has written nothing. What is
	// damaged then has to be found and mended, without a job lost.
	broken bool
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may mount filesystems")
	}
	dir := t.TempDir()
	d := &disk{mountspace: newMountspace(t), dir: filepath.Join(dir, "disk"), img: filepath.Join(dir, "disk.img")}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the disk: %s", d.usage())
		}
	})
	return d
}

// usage lists what takes room on it, for a message.
func (d *disk) usage() string {
	var list strings.Builder
	err := d.do(func() error {
		left, err := d.left()
		if err != nil {
			return err
		}
		fmt.Fprintf(&list, "%d bytes are left", left)
		return filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			if err == nil && st.Blocks > 0 {
				fmt.Fprintf(&list, "; %s has %d", strings.TrimPrefix(path, d.dir+"/"), st.Blocks*512)
			}
			return nil // a node may run
		})
	})
	if err != nil {
		return err.Error()
	}
	return list.String()
}

// tmpfs mounts one.
func (d *disk) tmpfs(options string) {
	d.t.Helper()
	d.must(d.run("mount", "-t", "tmpfs", "-o", "mode=700,"+options, "tmpfs", d.dir))
}

// node starts a node on it.
func (d *disk) node(t *testing.T) *store {
	t.Helper()
	return newStore(t, func(s *store) { s.state, s.launch = d.dir, d.start })
}

// left is how many bytes it has room for; to be called in do.
func (d *disk) left() (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(d.dir, &st)
	return int64(st.Bavail) * st.Bsize, err
}

// fill leaves no room on it; what it returns makes room again.
func (d *disk) fill() (empty func()) {
	d.t.Helper()
	path := filepath.Join(d.dir, "filler")
	d.must(d.do(func() error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for size := 1 << 20; size > 0; {
			if _, err = f.Write(make([]byte, size)); err != nil {
				size /= 2
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("the disk is not full: %w", err)
		}
		return nil
	}))
	return func() { d.must(d.do(func() error { return os.Remove(path) })) }
}

// spool lists the files of large parts.
func (d *disk) spool(s *store) (names []string) {
	d.t.Helper()
	d.must(d.do(func() error {
		list, err := os.ReadDir(filepath.Join(s.jobs(), "spool"))
		for _, e := range list {
			names = append(names, e.Name())
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}))
	return names
}

// noStrays checks that each file of the spool belongs to a job that is listed.
func (d *disk) noStrays(s *store, c *fbus.Client) {
	d.t.Helper()
	var strays []string
	s.eventually("no file is left that no job has", func() bool {
		known := map[string]bool{}
		for _, i := range s.list(c, `{}`) {
			known[i.ID] = true
		}
		strays = slices.DeleteFunc(d.spool(s), func(name string) bool {
			id, _, _ := strings.Cut(name, ".")
			return known[id]
		})
		return len(strays) == 0
	})
}

// fbus runs a command to its end.
func (s *store) fbus(args ...string) (status int, stdout, stderr string) {
	s.t.Helper()
	cmd := s.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var ee *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &ee) {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// refuses checks how fbus post is refused: nothing on stdout, 75, and the reason.
func (s *store) refuses(reason string) {
	s.t.Helper()
	status, out, errs := s.fbus("post", "-n", "f", "refused")
	if status != 75 || out != "" || !strings.HasPrefix(errs, "fbus: ") || !strings.Contains(errs, reason) {
		s.t.Errorf("fbus post: status %d, %q, %q; want 75 and %q", status, out, errs, reason)
	}
}

// takes waits until posts are taken, and notes them.
func (l *ledger) takes(s *store, c *fbus.Client) {
	s.t.Helper()
	s.eventually("posts are taken", func() bool {
		id, a := l.post(c, "f", `{}`, "again")
		if id == "" && a.res.Status != 75 {
			s.t.Fatalf("%+v", a.res)
		}
		return id != ""
	})
}

// post posts, and notes what was acknowledged.
func (l *ledger) post(c *fbus.Client, function, options, input string) (id string, a answer) {
	if id, a = post(c, function, options, input); id != "" {
		l.mu.Lock()
		l.acked[id] = crc32.ChecksumIEEE([]byte(input))
		l.order = append(l.order, id)
		l.mu.Unlock()
	}
	return id, a
}

// forget is for jobs that were purged.
func (l *ledger) forget(ids ...string) {
	for _, id := range ids {
		delete(l.acked, id)
	}
	l.order = slices.DeleteFunc(l.order, func(id string) bool { _, ok := l.acked[id]; return !ok })
}

// counts are how many posts were taken, and refused, so far.
type counts struct{ taken, refused atomic.Int64 }

// press posts inputs, every so many-th of them a large one, until stop is closed; a
// refusal has to be one of the store.
func (l *ledger) press(s *store, number, large int, stop <-chan struct{}, n *counts) {
	c, err := s.dial(fmt.Sprint("client ", number))
	if err != nil {
		s.t.Error(err)
		return
	}
	defer c.Close()
	for k := 0; ; k++ {
		input := fmt.Sprintf("job %d of client %d", k, number)
		if k%large == large-1 {
			input = strings.Repeat(input, 3000)
		}
		id, a := l.post(c, "f", `{"retries":100,"backoff":0.01}`, input)
		switch {
		case id != "":
			n.taken.Add(1)
		case a.res.Status == 75 && (a.res.Code == "store_failed" || a.res.Code == "store_full"), a.res.Code == "uncertain":
			n.refused.Add(1)
		default:
			l.mu.Lock()
			l.breach("a post was refused: %+v", a.res)
			l.mu.Unlock()
		}
		select {
		case <-stop:
			return
		case <-time.After(rand.N(4 * time.Millisecond)):
		}
	}
}

// under lets clients press while f makes the disk fail and work again, and checks that
// all that was acknowledged, and nothing else, has ended well.
func (l *ledger) under(t *testing.T, d *disk, s *store, f func(n *counts)) {
	t.Helper()
	for i := range 2 {
		s.worker(fmt.Sprint("w", i), "f", 4, l.work(s))
	}
	var n counts
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() { l.press(s, i, 10, stop, &n) })
	}
	s.eventually("posts are taken", func() bool { return n.taken.Load() > 30 })
	defer func() { // a test that fails in f
		select {
		case <-stop:
		default:
			close(stop)
		}
		clients.Wait()
	}()
	f(&n)
	before := n.taken.Load()
	s.eventually("posts are taken again", func() bool { return n.taken.Load() > before+30 })
	close(stop)
	clients.Wait()
	l.settle(t, s)
	c := s.client("look")
	if total := len(s.list(c, `{}`)); total != len(l.acked) {
		t.Errorf("%d jobs were acknowledged, and %d are there", len(l.acked), total)
	}
	d.noStrays(s, c)
	t.Logf("%d posts were taken, %d refused", n.taken.Load(), n.refused.Load())
	if !strings.Contains(s.stderr(), "can be written again") || !d.broken && strings.Contains(s.stderr(), "is damaged") {
		t.Errorf("the node said: %s", s.stderr())
	}
}

// TestDiskFull: posts are acknowledged until the disk is full, then refused with the
// reason, and nothing is left of those. What runs can end and jobs can be purged
// while it is full; when there is room posts are taken again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=1m")
	s, l := d.node(t), newLedger()
	c := s.client("poster")
	release := make(chan struct{})
	started := make(chan string, 1)
	s.worker("held", "held", 1, func(_ context.Context, inv *fbus.Invocation) fbus.Result {
		started <- inv.Job
		<-release
		inv.Stdout.Write(inv.Head())
		return fbus.Result{}
	})
	held, _ := l.post(c, "held", `{}`, "it was running")
	<-started

	const later = `{"delay":100000}` // most, so that there is room for the output of the others
	var delayed []string
	var refused answer
	for i := 0; refused.res.Status == 0; i++ {
		switch id, a := l.post(c, "f", []string{`{}`, later, later, later}[i%4], fmt.Sprint(i, strings.Repeat(" x", i%10*500))); {
		case id == "":
			refused = a
		case i%4 != 0:
			delayed = append(delayed, id)
		}
	}
	for a := (answer{}); a.res.Status == 0; { // a smaller one has room
		_, a = l.post(c, "f", `{}`, "")
	}
	if refused.res.Status != 75 || refused.res.Code != "store_full" || refused.out != "" {
		t.Errorf("%+v", refused)
	}
	t.Logf("%d jobs were acknowledged before the disk was full", len(l.acked))
	s.refuses("the disk is nearly full")
	if id, a := post(c, "f", `{}`, strings.Repeat("large", 100000)); id != "" || a.res.Status != 75 {
		t.Errorf("%q, %+v", id, a.res)
	}
	s.eventually("the reason is said", func() bool { return strings.Contains(s.stderr(), "the disk is nearly full") })
	d.noStrays(s, c)
	close(release)
	if a := ask(c, "fbus.result", held); !a.ok() || a.out != "it was running" {
		t.Errorf("what was running: %+v", a)
	}

	empty := d.fill() // what room the purge makes is not the disk's any more
	if status, _, errs := s.fbus("purge", "--state", "delayed"); status != 0 || errs != fmt.Sprintf("fbus: %d jobs purged\n", len(delayed)) {
		t.Errorf("fbus purge: %d, %q; there were %d", status, errs, len(delayed))
	}
	l.forget(delayed...)
	empty()
	l.takes(s, c)
	empty = d.fill()
	for a := (answer{}); a.res.Status == 0; { // the file has pages of its own that are free
		_, a = l.post(c, "f", `{}`, "more")
	}
	s.refuses("the disk is ")
	empty()
	l.takes(s, c)

	if total := len(s.list(c, `{}`)); total != len(l.acked) {
		t.Errorf("%d jobs were acknowledged, and %d are there", len(l.acked), total)
	}
	s.worker("w", "f", 4, echo)
	l.settle(t, s)
	d.noStrays(s, c)
	if strings.Contains(s.stderr(), "is damaged") {
		t.Errorf("the node said: %s", s.stderr())
	}
}

// TestDiskDrains: posts are refused while there is room to hold, release, cancel, start and end
// all accepted jobs, also after a crash.
func TestDiskDrains(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=2m")
	s, l := d.node(t), newLedger()
	must := func(args ...string) {
		t.Helper()
		if status, _, errs := s.fbus(args...); status != 0 {
			t.Errorf("fbus %q: %d, %q", args, status, errs)
		}
	}
	must("hold", "f")
	c := s.client("poster")
	var last string
	for a := (answer{}); a.res.Status == 0; {
		var id string
		if id, a = l.post(c, "f", `{}`, ""); id != "" {
			last = id
		}
	}
	s.refuses("the disk is nearly full")
	must("cancel", last)
	must("purge", last)
	l.forget(last)
	must("hold", "g")
	s.kill()
	s.start()
	must("release", "f")
	s.worker("w", "f", 4, echo)
	l.settle(t, s)
	if len(l.acked) < 100 || strings.Contains(s.stderr(), "the disk is full") {
		t.Errorf("%d jobs; the node said: %s", len(l.acked), s.stderr())
	}
}

// echo gives its input back.
func echo(_ context.Context, inv *fbus.Invocation) fbus.Result {
	if _, err := inv.Stdout.Write(inv.Head()); err != nil {
		return fbus.Exit(74)
	}
	return fbus.Result{}
}

// TestDiskReadOnly: a filesystem that has found an error of its own can only be read
// any more. Nothing is acknowledged that is not on it, node and callers say so, and
// when it was repaired and is mounted again all goes on.
func TestDiskReadOnly(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	state := d.dir
	d.dir = filepath.Join(state, "jobs", "jobs") // the journal would keep the filesystem in use
	d.image(d.img, 32<<20)
	d.loop(d.img, d.dir, ",errors=remount-ro")
	var st unix.Stat_t
	d.must(d.do(func() error { return unix.Stat(d.dir, &st) }))
	name, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		t.Skip(err)
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(name), "trigger_fs_error")
	if _, err := os.Stat(trigger); err != nil {
		t.Skipf("an ext4 can not be made to fail here: %v", err)
	}
	s, l := newStore(t, func(s *store) { s.state, s.launch = state, d.start }), newLedger()
	d.broken = true
	l.under(t, d, s, func(n *counts) {
		if err := os.WriteFile(trigger, []byte("a test"), 0o200); err != nil {
			t.Fatal(err)
		}
		before := n.refused.Load()
		s.eventually("posts are refused", func() bool { return n.refused.Load() > before+10 })
		// A commit that is under way may be told of an error first.
		s.eventually("the reason is said", func() bool { return strings.Contains(s.stderr(), "read-only file system") })
		s.refuses("")
		s.eventually("the node says so", func() bool { return strings.Contains(s.stderr(), "the store of jobs cannot be written: ") })
		taken := n.taken.Load()
		d.must(d.run("umount", "-l", d.dir))
		s.eventually("the empty directory is noticed", func() bool { return strings.Contains(s.stderr(), "it has gone: ") })
		s.eventually("nothing of it is in use", func() bool {
			image, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(name), "loop", "backing_file"))
			return err != nil || strings.TrimSpace(string(image)) != d.img
		})
		d.repair()
		if list, err := os.ReadDir(d.dir); err != nil || len(list) > 0 {
			t.Errorf("in the empty mount point is made %v, %v", list, err)
		}
		if got := n.taken.Load(); got != taken {
			t.Errorf("%d posts were taken meanwhile", got-taken)
		}
		d.loop(d.img, d.dir, "")
	})
}

// repair replays the journal of the image, as fsck does at boot.
func (d *disk) repair() {
	d.t.Helper()
	var ee *exec.ExitError
	if err := d.run("e2fsck", "-p", d.img); err != nil && !(errors.As(err, &ee) && ee.ExitCode() <= 2) { // 1, 2: it has repaired something
		d.t.Fatal(err)
	}
}

// TestDiskReadOnlyAtStart: a node that can not write its store when it starts begins
// without, and has it when that can be written. A second node is refused all the
// same.
func TestDiskReadOnlyAtStart(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=16m,ro")
	s, l := d.node(t), newLedger()
	c := s.client("poster")
	s.refuses("read-only file system")
	if status, _, errs := s.fbus("jobs"); status != 75 || !strings.Contains(errs, "read-only file system") {
		t.Errorf("fbus jobs: %d, %q", status, errs)
	}
	s.eventually("the reason is said", func() bool { return strings.Contains(s.stderr(), "the store of jobs cannot be written: ") })
	d.must(d.run("mount", "-o", "remount,rw", d.dir))
	l.takes(s, c)
	s.worker("w", "f", 1, echo)
	l.settle(t, s)

	cmd := s.command("serve", "--no-tcp", "--network", "jobs", "--socket", s.socket()+"2")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	d.must(d.start(cmd))
	defer time.AfterFunc(patience, func() { cmd.Process.Kill() }).Stop()
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 70 || !strings.Contains(errs.String(), "another node uses this store of jobs") {
		t.Errorf("a second node: %v, %s", cmd.ProcessState, &errs)
	}
}

// TestDiskFullAtStart: the same of a disk that is full, with jobs on it.
func TestDiskFullAtStart(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=4m")
	empty := d.fill()
	s, l := d.node(t), newLedger()
	s.refuses("the disk is full")
	empty()
	c := s.client("poster")
	l.takes(s, c)
	started := make(chan struct{}, 10)
	hold := make(chan struct{})
	s.worker("w", "f", 1, func(ctx context.Context, inv *fbus.Invocation) fbus.Result {
		started <- struct{}{}
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return echo(ctx, inv)
	})
	<-started
	l.post(c, "f", `{}`, "it waits")
	s.kill()
	s.start()
	<-started // as one that was interrupted
	s.kill()
	d.must(d.do(func() error { return os.Truncate(filepath.Join(s.jobs(), "reserve"), 0) }))
	empty = d.fill()
	s.start()
	s.refuses("the disk is full")
	c = s.client("poster again")
	if list := s.list(c, `{}`); len(list) != len(l.acked) {
		t.Errorf("%+v", list)
	}
	empty()
	close(hold)
	l.settle(t, s)
	if strings.Contains(s.stderr(), "is damaged") {
		t.Errorf("the nodes said: %s", s.stderr())
	}
}

// TestDiskSyncFails: while the disk fails to sync nothing is acknowledged, node and
// callers say so, and when it works all goes on. FBUS_SOAK=1 does it 20 times.
func TestDiskSyncFails(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip(err)
	}
	times := 2
	if soak() {
		times = 20
	}
	d := newDisk(t)
	d.image(d.img, 64<<20)
	d.loop(d.img, d.dir, "")
	s, l := d.node(t), newLedger()
	l.under(t, d, s, func(n *counts) {
		for i := range times {
			before := n.refused.Load()
			// strace counts for each thread: more of the first syncs would succeed in the test.
			stop := s.inject(t, fmt.Sprintf("fsync,fdatasync:error=EIO:when=%d+", 1+i%2))
			s.eventually("posts are refused", func() bool { return n.refused.Load() > before+10 })
			s.eventually("the node says so", func() bool {
				return strings.Count(s.stderr(), "cannot be written: input/output error: no job is taken") > i ||
					strings.Count(s.stderr(), "cannot be written: ") > i
			})
			s.refuses("input/output error")
			taken := n.taken.Load()
			refused := n.refused.Load()
			s.eventually("more are refused", func() bool { return n.refused.Load() > refused+100 })
			if got := n.taken.Load(); got != taken {
				t.Errorf("%d posts were taken that could not be synced", got-taken)
			}
			stop()
			s.eventually("posts are taken again", func() bool { return n.taken.Load() > taken })
		}
	})
}

// inject has system calls of the node fail, until what it returns is called.
func (s *store) inject(t *testing.T, what string) (stop func()) {
	t.Helper()
	s.mu.Lock()
	pid := s.node.Process.Pid
	s.mu.Unlock()
	calls, _, _ := strings.Cut(what, ":")
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+calls, "-e", "inject="+what, "-p", fmt.Sprint(pid))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with strace
		cmd.Wait()
		close(done)
	}()
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM) // it lets go of the node, and ends
		<-done
	})
	t.Cleanup(stop)
	eventually(t, "strace has the node", func() bool {
		select {
		case <-done:
			t.Skipf("strace can not be used here: %s", &errs)
		default:
		}
		return traced(pid)
	})
	return stop
}

// traced reports whether all threads of a process are traced.
func traced(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err == nil && strings.Contains(string(text), "TracerPid:\t0\n") {
			return false
		}
	}
	return len(tasks) > 0
}

// TestDiskFullOfEnds: where the ends of jobs and their postbacks would fill the disk, jobs wait,
// and say so. When results are purged all go on.
func TestDiskFullOfEnds(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=3m")
	s := d.node(t)
	c := s.client("poster")
	posted := 0
	for range 80 {
		if id, _ := post(c, "large", `{"then":"never","finally":"never","backoff":0.01}`, ""); id != "" {
			posted++
		}
	}
	s.worker("large", "large", 4, func(_ context.Context, inv *fbus.Invocation) fbus.Result {
		inv.Stdout.Write(bytes.Repeat([]byte("x"), 20000))
		return fbus.Result{}
	})
	s.worker("never", "never", 4, func(context.Context, *fbus.Invocation) fbus.Result {
		return fbus.Exit(65)
	})
	s.eventually("jobs wait for room", func() bool {
		return slices.ContainsFunc(s.list(c, `{"function":"large"}`), waitsForRoom)
	})
	for _, command := range []string{"describe", "doctor"} {
		s.eventually(command+" says so", func() bool {
			status, out, _ := s.fbus(command, "large")
			return status == 0 && strings.Contains(out, "the store of jobs is full: the disk is nearly full")
		})
	}
	t.Logf("%d jobs were posted", posted)
	if status, _, errs := s.fbus("hold", "never"); status != 0 {
		t.Errorf("fbus hold: %d, %q", status, errs)
	}
	s.fbus("release", "never")
	s.eventually("all is purged", func() bool {
		for _, state := range []string{"dead", "done"} {
			if status, _, errs := s.fbus("purge", "--state", state); status != 0 {
				t.Fatalf("fbus purge --state %s: %d, %q", state, status, errs)
			}
		}
		if slices.ContainsFunc(s.list(c, `{"function":"large"}`), func(i fbus.JobInfo) bool { return i.State == "dead" }) {
			t.Error("a job died for lack of room")
		}
		return len(s.list(c, `{}`)) == 0
	})
	s.eventually("posts are taken", func() bool { id, _ := post(c, "large", `{}`, ""); return id != "" })
	if strings.Contains(s.stderr(), "is damaged") {
		t.Errorf("the node said: %s", s.stderr())
	}
}

// TestDiskFullOfOutput: long output, and the tries of a program that is busy, leave the room that
// accepted jobs need.
func TestDiskFullOfOutput(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=4m")
	s := d.node(t)
	c := s.client("poster")
	for range 12 {
		post(c, "file", `{"backoff":0.01}`, "")
		post(c, "busy", `{"backoff":0.01}`, "")
	}
	s.worker("file", "file", 2, output(300<<10))
	var tries atomic.Int32
	s.worker("busy", "busy", 4, func(_ context.Context, inv *fbus.Invocation) fbus.Result {
		inv.Stdout.Write(make([]byte, 30<<10))
		inv.Stderr.Write(make([]byte, 30<<10))
		if tries.Add(1) < 60 {
			return fbus.Exit(75)
		}
		return fbus.Result{}
	})
	s.eventually("jobs wait for room", func() bool {
		return slices.ContainsFunc(s.list(c, `{"function":"file"}`), waitsForRoom)
	})
	s.eventually("all are done", func() bool {
		s.fbus("purge", "--state", "done")
		list := s.list(c, `{}`)
		for _, i := range list {
			if i.Used > 0 || i.State == "dead" {
				t.Fatalf("an attempt was used: %+v", i)
			}
		}
		return len(list) == 0
	})
	if strings.Contains(s.stderr(), "the disk is full") {
		t.Errorf("the node said: %s", s.stderr())
	}
}

// TestDiskFreePages: the room that purged jobs had in the file of the store is there for long output,
// which leaves the room that accepted jobs need.
func TestDiskFreePages(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=4m")
	s := d.node(t)
	c := s.client("poster")
	const parked = 48
	for range parked {
		if id, a := post(c, "parked", `{"delay":100000}`, strings.Repeat("x", 30<<10)); id == "" {
			t.Fatalf("%+v", a.res)
		}
	}
	if status, _, errs := s.fbus("purge", "--state", "delayed"); status != 0 || errs != fmt.Sprintf("fbus: %d jobs purged\n", parked) {
		t.Fatalf("fbus purge: %d, %q", status, errs)
	}
	for range 12 {
		post(c, "file", `{"backoff":0.01}`, "")
	}
	s.worker("file", "file", 1, output(300<<10))
	s.eventually("jobs wait for room", func() bool {
		return slices.ContainsFunc(s.list(c, `{"function":"file"}`), waitsForRoom)
	})
	if done := len(s.list(c, `{"state":"done"}`)); done < 9 { // 7 have room without the free pages
		t.Errorf("%d jobs had room for their output", done)
	}
	if strings.Contains(s.stderr(), "the disk is full") {
		t.Errorf("the node said: %s", s.stderr())
	}
}

// TestDiskFullForAWhile: a job that finds no room again and again, since something else takes that while
// it runs, waits each time and pays no attempt.
func TestDiskFullForAWhile(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=4m")
	s := d.node(t)
	c := s.client("poster")
	filler := filepath.Join(d.dir, "filler")
	const tries = 6
	var ran atomic.Int32
	write := output(300 << 10)
	s.worker("w", "f", 1, func(ctx context.Context, inv *fbus.Invocation) fbus.Result {
		if ran.Add(1) <= tries {
			err := d.do(func() error {
				f, err := os.Create(filler)
				if err != nil {
					return err
				}
				defer f.Close()
				left, err := d.left()
				if err != nil {
					return err
				}
				return unix.Fallocate(int(f.Fd()), 0, 0, left-500<<10) // posts are refused below 800 KiB
			})
			if err != nil {
				t.Error(err)
			}
		}
		return write(ctx, inv)
	})
	id, _ := post(c, "f", `{"backoff":0.01}`, "")
	for n := range tries {
		s.eventually("it waits for room", func() bool {
			list := s.list(c, `{}`)
			return len(list) == 1 && list[0].Attempts == n+1 && waitsForRoom(list[0])
		})
		d.must(d.do(func() error { return os.Remove(filler) }))
	}
	if a := ask(c, "fbus.result", id); !a.ok() || len(a.out) != 300<<10 {
		t.Errorf("%+v, %d bytes", a.res, len(a.out))
	}
	if list := s.list(c, `{}`); len(list) != 1 || list[0].Used > 0 {
		t.Errorf("%+v", list)
	}
}

// TestDiskTooSmall: a job whose output the disk cannot hold is dead after some tries. Meanwhile other
// jobs of its function run, also those that were posted after it.
func TestDiskTooSmall(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	d.tmpfs("size=4m")
	s := d.node(t)
	c := s.client("poster")
	s.worker("w", "gen", 2, func(_ context.Context, inv *fbus.Invocation) fbus.Result {
		n, _ := strconv.Atoi(string(inv.Head()))
		if _, err := inv.Stdout.Write(make([]byte, n)); err != nil {
			return fbus.Exit(74)
		}
		return fbus.Result{}
	})
	big, _ := post(c, "gen", `{"backoff":0.1}`, "8000000")
	state := func(id string) (state, message string) {
		list := s.list(c, fmt.Sprintf(`{"ids":[%q]}`, id))
		if len(list) != 1 {
			return "", ""
		}
		return string(list[0].State), list[0].Message
	}
	s.eventually("it has found no room", func() bool { was, _ := state(big); return was != "queued" && was != "running" })
	small, _ := post(c, "gen", `{}`, "11")
	if a := ask(c, "fbus.result", small); !a.ok() || len(a.out) != 11 {
		t.Errorf("a job with short output: %+v", a)
	}
	s.eventually("it is dead", func() bool { was, _ := state(big); return was == "dead" })
	if _, why := state(big); !strings.Contains(why, "the disk is nearly full") {
		t.Errorf("it is dead for %q", why)
	}
	waiting, _ := post(c, "gen", `{"backoff":3600}`, "8000000")
	s.eventually("another waits", func() bool { was, _ := state(waiting); return was == "delayed" })
	if status, _, errs := s.fbus("cancel", waiting); status != 0 {
		t.Errorf("fbus cancel: %d, %s", status, errs)
	}
	small, _ = post(c, "gen", `{}`, "12")
	if a := ask(c, "fbus.result", small); !a.ok() || len(a.out) != 12 {
		t.Errorf("after a cancellation: %+v", a)
	}
}

// output is a function that writes so many bytes.
func output(bytes int) fbus.Handler {
	return func(_ context.Context, inv *fbus.Invocation) fbus.Result {
		if _, err := inv.Stdout.Write(make([]byte, bytes)); err != nil {
			return fbus.Exit(74)
		}
		return fbus.Result{}
	}
}

func waitsForRoom(i fbus.JobInfo) bool {
	return strings.HasPrefix(i.Note, "the store of jobs is full: the disk is nearly full")
}
