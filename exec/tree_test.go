package exec

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/exec/keeper"

	"golang.org/x/sys/unix"

	"fbus/bus/args"
)

// daemon leaves a process behind in the classic way, and says its number.
const daemon = `perl -e '
	use POSIX; pipe R, W;
	if (fork) { close W; print <R>; exit }
	setsid; exit if fork; syswrite W, "$$ "; close W; open STDOUT, ">/dev/null";
	%s exec "sleep", "1000";'`

// Whatever a program leaves behind is gone when its call ends, and the call
// ends at once when the program does.
func TestLeftBehind(t *testing.T) {
	scripts := map[string]string{
		"keeps stdout":       "sleep 1000 & echo $!",
		"own session":        "setsid sleep 1000 & echo $!",
		"daemon":             fmt.Sprintf(daemon, ""),
		"daemon without env": fmt.Sprintf(daemon, "%ENV = ();"),
		"ignores TERM":       "trap '' TERM HUP INT; sleep 1000 & echo $!",
		"stopped":            "sleep 1000 & echo $!; kill -STOP $!",
		"many":               "for i in 1 2 3 4 5; do (sleep 1000 & echo $!; setsid sh -c 'sleep 1000 & echo $! $$; wait' & sleep 0.1); done",
		"forks when told":    "{ sh -c 'trap \"sleep 1000 &\" TERM; echo $$; while :; do sleep 1; done' & } | { read -r pid; echo $pid; }",
	}
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := sh(t, script+"\nexit 4")
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					got := runCall(t.Context(), f, &Call{})
					check(t, got, programExit(4), got.out)
					checkGone(t, got.out)
				})
			}
			wg.Wait()
		})
	}
}

// While a program runs its dead orphans do not pile up.
func TestOrphansReaped(t *testing.T) {
	t.Parallel()
	f := sh(t, `for i in 1 2 3 4 5; do sh -c 'true &'; done; echo $PPID; read x`)
	said := newLines()
	r, w, _ := os.Pipe()
	done := background(t.Context(), f, &Call{Rest: r, Stdout: said})
	holder, _ := strconv.Atoi(said.next(t))
	eventually(t, "orphans reaped", func() bool { return len(childrenOf(holder)) == 1 })
	w.Close()
	if res := await(t, done); !same(res, programExit(1)) {
		t.Errorf("%+v", res)
	}
	r.Close()
}

func TestKeeperKilled(t *testing.T) {
	t.Parallel()
	f := sh(t, fmt.Sprintf(daemon, "%ENV = ();")+"; setsid sleep 1000 & echo $PPID $! $$; read x; exit 7")
	r, w, _ := os.Pipe()
	defer r.Close()
	spared, said := newLines(), newLines()
	other := background(t.Context(), f, &Call{Rest: r, Stdout: spared})
	spared.next(t)
	never, end, _ := os.Pipe()
	defer never.Close()
	done := background(t.Context(), f, &Call{Rest: never, Stdout: said})
	pids := said.next(t) // the daemon's, the keeper's, ...
	syscall.Kill(pidOf(t, strings.Fields(pids)[1]), syscall.SIGKILL)
	if res := await(t, done); res.Code != args.CodeWorkerLost {
		t.Errorf("%+v", res)
	}
	checkGone(t, pids)
	end.Close()
	w.Close()
	if res := await(t, other); !same(res, programExit(7)) {
		t.Errorf("the other call: %+v", res)
	}
	if res := f.Run(t.Context(), &Call{Input: []byte("\n")}); !same(res, programExit(7)) {
		t.Errorf("the next call: %+v", res)
	}
}

// heldRuns counts the calls that hold a program.
func heldRuns(f *Function) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := range f.running {
		r.mu.Lock()
		if r.process != nil {
			n++
		}
		r.mu.Unlock()
	}
	return n
}

// killAndWait returns when all threads of a process are dead.
func killAndWait(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(fd)
	syscall.Kill(pid, syscall.SIGKILL)
	keeper.IgnoringEINTR(func() error {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		return err
	})
}

func TestStoppedKeeperStillEnds(t *testing.T) {
	f := sh(t, "echo $PPID $$; sleep 1000")
	said := newLines()
	done := background(t.Context(), f, &Call{Stdout: said})
	holder, pid, _ := strings.Cut(said.next(t), " ")
	syscall.Kill(pidOf(t, holder), syscall.SIGSTOP)
	f.Kill()
	if res := await(t, done); res.Code != "cancelled" {
		t.Errorf("%+v", res)
	}
	checkGone(t, pid)
}

// child is the test binary as another program.
func child(mode string) int {
	switch mode {
	case "rpc":
		return rpcChild()
	case "refused":
		f, err := New(Spec{Name: "f", Grace: 10 * time.Millisecond, Argv: []string{"sh", "-c",
			os.Args[3] + ` -e 'use POSIX; setuid(0); syswrite STDOUT, "$$\n"; sleep 30' & read x`}})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		r, w := io.Pipe()
		said := newLines()
		done := make(chan Result)
		go func() { done <- f.Run(context.Background(), &Call{Rest: r, Stdout: said}) }()
		fmt.Println(<-said.said)
		w.Close()
		fmt.Printf("%+v\n", <-done)
		f.Close()
	case "worker":
		keeper.BecomeReaper()
		f, err := New(Spec{Name: "f", Argv: []string{"sh", "-c",
			"trap '' TERM; " + fmt.Sprintf(daemon, "") + "; setsid sleep 1000 & echo $PPID $! $$; sleep 1000"}})
		if err != nil {
			return 1
		}
		c := &Call{Stdout: os.Stdout}
		go f.Run(context.Background(), &Call{Stdout: os.Stdout})
		f.Run(context.Background(), c)
	}
	return 0
}

// A process that changed its uid cannot be killed: its call ends all the same,
// and says so.
func TestRefusesToDie(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make a program that others cannot kill")
	}
	t.Parallel()
	perl, err := os.ReadFile("/usr/bin/perl")
	if err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("/tmp", "fbus-exec-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	file := filepath.Join(dir, "perl")
	if os.WriteFile(file, perl, 0o755) != nil || os.Chmod(file, 0o755|os.ModeSetuid) != nil {
		t.Skip("no setuid program can be made")
	}
	cmd := osexec.Command("/proc/self/exe", "child", "refused", file)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	forget, err := keeper.Adopt(func() (int, error) { return started(cmd) })
	if err != nil {
		t.Skip(err)
	}
	defer forget()
	err = cmd.Wait()
	line, rest, _ := strings.Cut(out.String(), "\n")
	pid, aerr := strconv.Atoi(line)
	if err != nil || aerr != nil || !strings.Contains(rest, "Status:1 ") || !strings.Contains(rest, "could not be killed: process "+line) {
		t.Fatalf("%v: %s", err, out.String())
	}
	syscall.Kill(pid, syscall.SIGKILL)
	unix.Wait4(pid, nil, 0, nil)
}

func started(cmd *osexec.Cmd) (int, error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

func TestWorkerKilled(t *testing.T) {
	cmd := osexec.Command("/proc/self/exe", "child", "worker")
	said := newLines()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	forget, err := keeper.Adopt(func() (int, error) { return started(cmd) })
	if err != nil {
		t.Fatal(err)
	}
	defer forget()
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		buf := make([]byte, 1000)
		for {
			n, err := out.Read(buf)
			said.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	pids := strings.Fields(said.next(t) + " " + said.next(t))
	cmd.Process.Kill()
	cmd.Wait()
	<-copied
	for _, s := range pids {
		pid, _ := strconv.Atoi(s)
		eventually(t, "process "+s+" dead", func() bool {
			// The keepers become this process's children.
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
			return syscall.Kill(pid, 0) == syscall.ESRCH
		})
	}
}

// childrenOf lists a process's children, also dead ones that are not reaped.
func childrenOf(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if statFields(pid)[1] == strconv.Itoa(parent) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func stateOf(pid int) string { return statFields(pid)[0] }

// statFields returns the fields of /proc/PID/stat behind the command's name:
// state, parent, ...
func statFields(pid int) []string {
	stat, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return append(strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])), "", "")
}

// census counts what a leak would add to.
type census struct{ fds, goroutines, children int }

func takeCensus() census {
	fds, _ := os.ReadDir("/proc/self/fd")
	return census{len(fds), runtime.NumGoroutine(), len(childrenOf(os.Getpid()))}
}

func TestNoLeaks(t *testing.T) {
	const width, calls = 8, 80
	f := sh(t, "echo a; echo b >&2; cat", func(s *Spec) { s.Slots = width })
	run := func(n int) {
		timed(n, width, func() {
			got := runCall(t.Context(), f, &Call{Input: []byte("c")})
			if !same(got.Result, programExit(0)) || got.out != "a\nc" || got.err != "b\n" {
				t.Errorf("%+v", got)
			}
		})
	}
	run(4 * width)
	var after census
	before := takeCensus()
	run(calls)
	eventually(t, "as before", func() bool {
		after = takeCensus()
		return after.fds <= before.fds+2*width && after.goroutines <= before.goroutines && after.children <= before.children+width
	})
	eventually(t, "no zombie", func() bool {
		return !slices.ContainsFunc(childrenOf(os.Getpid()), func(pid int) bool { return stateOf(pid) == "Z" })
	})
	f.Close()
	eventually(t, "keepers gone", func() bool { return takeCensus().children <= before.children })
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	f := offer(t, Spec{Argv: []string{"perl", "-e", `$x = "a" x ($ARGV[0] << 20); print length $x`, "{1}"}, Memory: 64 << 20})
	if by := f.MemoryBy(); by != "rlimit" && by != "cgroup" {
		t.Errorf("limited by %q", by)
	}
	check(t, runCall(t.Context(), f, list(t, "1")), programExit(0), "1048576")
	if got := runCall(t.Context(), f, list(t, "200")); got.Status == 0 || got.out != "" {
		t.Errorf("%+v", got)
	}
}
