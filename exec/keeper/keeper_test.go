package keeper

import (
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if status, ok := Dispatch(); ok {
		os.Exit(status)
	}
	if len(os.Args) == 2 && os.Args[1] == "hello" {
		fmt.Println("hello")
		return
	}
	if err := BecomeReaper(); err != nil {
		panic(err)
	}
	Env = append(Env, "GORACE=atexit_sleep_ms=0") // else each takes a second to end under -race
	os.Exit(m.Run())
}

// A link to the binary may have any name; only a real keeper acts as one.
func TestDispatchByMoreThanName(t *testing.T) {
	for _, name := range []string{keeperName, limitName, "fbus"} {
		cmd := osexec.Command("/proc/self/exe", "hello")
		cmd.Args[0] = name
		var out []byte
		forget, err := Adopt(func() (pid int, err error) {
			// Output waits too; nothing is swept meanwhile.
			out, err = cmd.Output()
			return 0, err
		})
		forget()
		if err != nil || string(out) != "hello\n" {
			t.Errorf("%s: %v, %q", name, err, out)
		}
	}
}

// Programs have the worker's timer slack, not that of a keeper's other threads.
func TestTimerSlack(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	was, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || was == 0 {
		t.Skip("this thread has no timer slack: ", err)
	}
	const own = 60_000
	unix.Prctl(unix.PR_SET_TIMERSLACK, own, 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(was), 0, 0, 0)
	p, err := NewPool(Setup{Path: "/bin/cat", Argv: []string{"cat", "/proc/self/timerslack_ns"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	program, err := p.Start(Order{}, 0, int(w.Fd()), 2)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	program.Wait(nil)
	if got, err := io.ReadAll(r); err != nil || strings.TrimSpace(string(got)) != fmt.Sprint(own) {
		t.Errorf("a program has the slack %q, and the worker %d: %v", got, own, err)
	}
	if now, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); now != own {
		t.Errorf("this thread is left with a slack of %d", now)
	}
}

// Idle keepers end, except one for the next program.
func TestIdleKeepersEnd(t *testing.T) {
	defer func(d time.Duration) { idleAfter = d }(idleAfter)
	idleAfter = 10 * time.Millisecond
	p, err := NewPool(Setup{Path: "/bin/true", Argv: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	run := func() {
		r, err := p.Start(Order{}, 0, 1, 2)
		if err != nil {
			t.Error(err)
			return
		}
		if end := r.Wait(nil); !end.Exited || end.Status != 0 || end.Asked {
			t.Errorf("%+v", end)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { run(); run(); run() })
	}
	wg.Wait()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		n := len(p.idle)
		p.mu.Unlock()
		if n == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d keepers are idle", n)
		}
	}
	run()
}

// An idle keeper that was killed costs the next program nothing.
func TestIdleKeeperKilled(t *testing.T) {
	p, err := NewPool(Setup{Path: "/bin/true", Argv: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 3 {
		fd, err := unix.PidfdOpen(p.idle[0].pid, 0)
		if err != nil {
			t.Skip(err)
		}
		unix.Kill(p.idle[0].pid, unix.SIGKILL)
		IgnoringEINTR(func() error {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			return err
		})
		unix.Close(fd)
		r, err := p.Start(Order{}, 0, 1, 2)
		if err != nil {
			t.Fatal(err)
		}
		r.Wait(nil)
	}
}

// A keeper starts its program in the cgroup that it is handed, and ends what is
// in there. No memory controller is needed for that.
func TestKeeperCgroup(t *testing.T) {
	dir := ""
	for _, base := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		d := fmt.Sprintf("%s/fbus-test-%d", base, os.Getpid())
		if _, err := os.Stat(base + "/cgroup.procs"); err == nil && os.Mkdir(d, 0o755) == nil {
			dir = d
			break
		}
	}
	if dir == "" {
		t.Skip("no cgroups can be made here")
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := &group{path: dir, fd: fd}
	k, err := startKeeper(&Setup{Path: "/bin/sh", Argv: []string{"sh", "-c", "trap '' TERM; sleep 1000 & cat /proc/self/cgroup"}, Grace: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer k.end()
	r, w, _ := os.Pipe()
	if err := k.run(&order{cgroup: true}, []int{0, int(w.Fd()), 2, fd}); err != nil {
		t.Fatal(err)
	}
	for {
		rep, err := k.next()
		if err != nil || rep.kind == msgFailed {
			t.Fatal(rep, err)
		}
		if rep.kind == msgGone {
			break
		}
	}
	w.Close()
	out, _ := io.ReadAll(r)
	r.Close()
	if !strings.Contains(string(out), "0::/"+filepath.Base(dir)+"\n") {
		t.Errorf("%s", out)
	}
	l.remove()
	if _, err := os.Stat(dir); err == nil {
		t.Error("the cgroup is still there")
	}
}

func TestNoMemoryController(t *testing.T) {
	if _, err := newGroup(t.TempDir()+"/none/leaf", 1<<20); err == nil {
		t.Error("made a group in a directory that does not exist")
	}
	if dir := usableCgroup(t.TempDir()); dir != "" {
		t.Errorf("%s is not a cgroup", dir)
	}
}

// A keeper that cannot start is an error with the first line of what it wrote, which goes
// nowhere else: no stack trace reaches the worker's stderr.
func TestKeeperCannotStart(t *testing.T) {
	defer func(was string) { selfExe = was }(selfExe)
	dir := t.TempDir()
	for name, test := range map[string]struct{ program, want string }{
		"crash":  {"#!/bin/sh\nprintf 'runtime: failed to create new OS thread\\n\\ngoroutine 1:\\n' >&2; exit 2\n", "start keeper: resource temporarily unavailable: runtime: failed to create new OS thread"},
		"silent": {"#!/bin/sh\nexit 2\n", "start keeper: resource temporarily unavailable: it ended at once"},
		"gone":   {"", "start keeper: no such file or directory"},
	} {
		selfExe = filepath.Join(dir, name)
		if test.program != "" {
			if err := os.WriteFile(selfExe, []byte(test.program), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		p, err := NewPool(Setup{Path: "/bin/true"})
		if err == nil {
			p.Close()
		}
		if err == nil || err.Error() != test.want {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}

// Orphans of processes that are not the worker's own are reaped, and a child that somebody waits
// for is left to them.
func TestReapStrangers(t *testing.T) {
	defer func(was time.Duration) { strangerAge = was }(strangerAge)
	strangerAge = 50 * time.Millisecond
	defer ReapStrangers()()
	out, err := osexec.Command("sh", "-c", "sleep 0.01 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); unix.Kill(pid, 0) != unix.ESRCH; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the orphan is still there")
		}
	}
	cmd := osexec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A step that limits memory and cannot start is a lack of room, and no program that has exited.
func TestLimitCannotStart(t *testing.T) {
	defer func(was string) { selfExe = was }(selfExe)
	selfExe = filepath.Join(t.TempDir(), "crash")
	if err := os.WriteFile(selfExe, []byte("#!/bin/sh\nexit 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	attr := &syscall.ProcAttr{Files: []uintptr{0, 1, 2}}
	var pid int
	_, err := Adopt(func() (int, error) {
		var err error
		pid, err = forkLimited(1<<30, "/bin/true", []string{"true"}, attr)
		return pid, err
	})
	if err != unix.EAGAIN {
		t.Errorf("process %d, error %v", pid, err)
	}
}
