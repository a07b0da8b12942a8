package exec

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus/args"
)

func warmMode(n int) func(*Spec) {
	return func(s *Spec) { s.Warm = n }
}

// logged has what a function says to its worker's log, or to Note, come line
// by line.
func logged(to *lines) func(*Spec) {
	return func(s *Spec) {
		s.Log = func(format string, args ...any) { io.WriteString(to, sprintln(format, args...)) }
	}
}

func noted(to *lines) func(*Spec) {
	return func(s *Spec) { s.Note = func(why string) { io.WriteString(to, why+"\n") } }
}

// waits returns the pids of the processes that wait, once there are n.
func waits(t *testing.T, said *lines, n int) (pids []string) {
	t.Helper()
	for range n {
		pids = append(pids, said.next(t))
	}
	return pids
}

// A waiting process serves one call, and what it said before is that call's.
func TestWarm(t *testing.T) {
	t.Parallel()
	f := sh(t, "echo banner; cat", warmMode(2), func(s *Spec) { s.Slots = 2 })
	for _, in := range []string{"a\n", "", strings.Repeat("x", 200_000) + "\n"} {
		check(t, runCall(t.Context(), f, &Call{Input: []byte(in)}), programExit(0), "banner\n"+in)
		check(t, runCall(t.Context(), f, &Call{Input: []byte(in), Rest: strings.NewReader("more")}), programExit(0), "banner\n"+in+"more")
	}
	check(t, runCall(t.Context(), f, list(t, "a", "b")), programExit(0), "banner\n[\"a\",\"b\"]\n")
}

// The process was there before the call, and the next one is there at once.
func TestWarmIsStartedAhead(t *testing.T) {
	t.Parallel()
	log := newLines()
	f := sh(t, "echo $$ >&2; read x; echo $$; exit 5", warmMode(1), logged(log))
	for range 5 {
		ahead := strings.TrimPrefix(log.next(t), "f: ")
		eventually(t, "known to be ready", func() bool { // it may write before that
			f.warm.mu.Lock()
			defer f.warm.mu.Unlock()
			return len(f.warm.idle) == 1
		})
		got := runCall(t.Context(), f, &Call{Input: []byte("x\n")})
		check(t, got, programExit(5), ahead+"\n")
		checkGone(t, ahead)
	}
}

func TestWarmStaysInSlots(t *testing.T) {
	t.Parallel()
	const slots = 3
	f := sh(t, "cat", warmMode(2), func(s *Spec) { s.Slots = slots })
	timed(48, 6, func() {
		check(t, runCall(t.Context(), f, &Call{Input: []byte("x")}), programExit(0), "x")
		f.warm.mu.Lock()
		defer f.warm.mu.Unlock()
		if n := len(f.warm.idle) + f.warm.starting + f.warm.running; n > slots {
			t.Errorf("%d processes for %d slots", n, slots)
		}
	})
	eventually(t, "refilled", func() bool {
		f.warm.mu.Lock()
		defer f.warm.mu.Unlock()
		return len(f.warm.idle) == 2
	})
}

func TestWarmEnvironment(t *testing.T) {
	t.Parallel()
	log := newLines()
	f := sh(t, "echo $$ >&2; cat >/dev/null; env | grep FBUS_[FN] | sort", warmMode(1), logged(log), func(s *Spec) { s.Node = "/tmp/a" })
	first := log.next(t)
	f.SetNode("/tmp/a")
	c := &Call{ID: "17", Caller: "uid:0", Deadline: time.Now().Add(time.Hour)}
	check(t, runCall(t.Context(), f, c), programExit(0), "FBUS_FUNCTION=f\nFBUS_NODE=/tmp/a\n")
	second := log.next(t)
	f.SetNode("/tmp/b")
	third := log.next(t)
	if first == second || second == third {
		t.Errorf("%s, %s, %s", first, second, third)
	}
	check(t, runCall(t.Context(), f, &Call{}), programExit(0), "FBUS_FUNCTION=f\nFBUS_NODE=/tmp/b\n")
	eventually(t, "the old process gone", func() bool {
		return syscall.Kill(pidOf(t, strings.TrimPrefix(second, "f: ")), 0) == syscall.ESRCH
	})
}

// pidOf reads what a program said. No pid at all would be this very process
// group.
func pidOf(t *testing.T, s string) int {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil || pid <= 1 {
		t.Fatalf("not a pid: %q", s)
	}
	return pid
}

// A program that does not live is not started without end; why is said once;
// calls start their own.
func TestWarmDies(t *testing.T) {
	set(t, &steadyAfter, time.Hour) // on a busy machine one may take long to die
	log, notes := newLines(), newLines()
	broken := filepath.Join(t.TempDir(), "broken")
	os.WriteFile(broken, nil, 0o600)
	f := sh(t, "if test -e "+broken+"; then echo no module >&2; exit 3; fi; cat", warmMode(2), logged(log), noted(notes))
	const why = "the program exited with status 3: no module"
	if got := notes.next(t); got != why {
		t.Errorf("noted %q", got)
	}
	got := runCall(t.Context(), f, &Call{Input: []byte("x")})
	check(t, got, programExit(3), "")
	if !strings.Contains(got.err, "no module\n") {
		t.Errorf("%+v", got)
	}
	eventually(t, "no process is about to look", func() bool {
		f.warm.mu.Lock()
		defer f.warm.mu.Unlock()
		return f.warm.pause != nil && len(f.warm.idle)+f.warm.starting == 0 && os.Remove(broken) == nil
	})
	eventually(t, "well again", func() bool {
		return runCall(t.Context(), f, &Call{Input: []byte("x")}).out == "x" && len(notes.said) > 0
	})
	if got := notes.next(t); got != "" || len(notes.said) > 0 {
		t.Errorf("noted %q and %d more", got, len(notes.said))
	}
	told := 0
	for len(log.said) > 0 {
		if strings.HasSuffix(log.next(t), "no process can be held ready: "+why) {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// A process that waits for long is ready, whatever was before.
func TestWarmSteady(t *testing.T) {
	set(t, &steadyAfter, time.Millisecond)
	notes := newLines()
	file := filepath.Join(t.TempDir(), "twice")
	sh(t, "test -e "+file+" || { : > "+file+"; exit 1; }; cat", warmMode(1), noted(notes))
	if why, then := notes.next(t), notes.next(t); why == "" || then != "" {
		t.Errorf("noted %q, %q", why, then)
	}
}

// A process that dies before it can have read its call is no matter. It runs alone: a
// keeper that another test starts holds copies of pipes for a moment, also after the
// start has returned.
func TestWarmDiedUnread(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for _, in := range []string{"x", "", long} {
		log := newLines()
		f := sh(t, "echo $$ $PPID >&2; exec cat", warmMode(1), logged(log))
		var pid, keeper int
		ids := strings.Fields(log.next(t))
		pid, keeper = pidOf(t, ids[1]), pidOf(t, ids[2])
		stdin, _ := os.Readlink(filepath.Join("/proc", ids[1], "fd/0"))
		eventually(t, "the keeper lets go of stdin", func() bool { return !holds(keeper, stdin) })
		syscall.Kill(keeper, syscall.SIGSTOP) // so that nobody tells
		killAndWait(t, pid)
		c := &Call{Input: []byte(in)}
		var out strings.Builder
		c.Stdout = &out
		done := background(t.Context(), f, c)
		eventually(t, "handed over", func() bool { return heldRuns(f) == 1 })
		syscall.Kill(keeper, syscall.SIGCONT)
		if res := await(t, done); !same(res, programExit(0)) || out.String() != in {
			t.Errorf("%d bytes of input: %+v, %d bytes", len(in), res, out.Len())
		}
	}
}

// holds says that a process has a file open.
func holds(pid int, file string) bool {
	fds, _ := filepath.Glob("/proc/" + itoa(pid) + "/fd/*")
	return slices.ContainsFunc(fds, func(fd string) bool {
		to, _ := os.Readlink(fd)
		return to == file
	})
}

func TestWarmKeeperKilled(t *testing.T) {
	t.Parallel()
	log := newLines()
	f := sh(t, "echo $$ $PPID >&2; exec cat", warmMode(2), logged(log))
	for range 3 {
		ids := strings.Fields(log.next(t))
		// The keeper of a process that has served a call may be starting the next one:
		// then the call can have that, and is lost.
		for len(ids) != 3 || syscall.Kill(pidOf(t, ids[1]), 0) != nil {
			ids = strings.Fields(log.next(t))
		}
		killAndWait(t, pidOf(t, ids[2]))
		check(t, runCall(t.Context(), f, &Call{Input: []byte("x")}), programExit(0), "x")
		eventually(t, "gone", func() bool { return syscall.Kill(pidOf(t, ids[1]), 0) == syscall.ESRCH })
	}
}

func TestWarmEnds(t *testing.T) {
	t.Parallel()
	script := "trap '' TERM; sleep 1000 & echo $$ $!; echo ready >&2; wait"
	log := newLines()
	f := sh(t, script, warmMode(1), logged(log), func(s *Spec) { s.Timeout = 50 * time.Millisecond })
	log.next(t)
	got := runCall(t.Context(), f, &Call{})
	check(t, got, fbusEnd(args.CodeDeadline, "ran longer than 50ms"), got.out)
	checkGone(t, got.out)
	got = runCall(t.Context(), sh(t, "head -c 101 /dev/zero; cat", warmMode(1), func(s *Spec) { s.MaxOutput = 100 }), &Call{})
	check(t, got, fbusEnd(args.CodeOutputLimit, "output exceeds 100 bytes"), strings.Repeat("\x00", 100))

	f = sh(t, script, warmMode(1))
	ctx, cancel := context.WithCancel(t.Context())
	said := newLines()
	done := background(ctx, f, &Call{Stdout: said})
	pids := said.next(t)
	cancel()
	if res := await(t, done); res.Code != "cancelled" {
		t.Errorf("%+v", res)
	}
	checkGone(t, pids)
}

// Nothing is left of processes that wait, kill or no kill.
func TestWarmClose(t *testing.T) {
	t.Parallel()
	for _, kill := range []bool{false, true} {
		log := newLines()
		f := sh(t, "trap '' TERM; sleep 1000 & echo $$ $! >&2; wait", warmMode(2), logged(log))
		pids := strings.ReplaceAll(strings.Join(waits(t, log, 2), " "), "f: ", "")
		if kill {
			f.Kill()
		}
		f.Close()
		checkGone(t, pids)
		if res := f.Run(t.Context(), &Call{}); res.Code != args.CodeCancelled {
			t.Errorf("%+v", res)
		}
	}
}

// Calls, kills, closes and changes of the node in any order.
func TestWarmStorm(t *testing.T) {
	before := takeCensus()
	f := sh(t, "cat", warmMode(3), func(s *Spec) { s.Slots = 4 })
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 30 {
			f.SetNode(itoa(i % 2))
		}
	})
	timed(200, 8, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if got := runCall(ctx, f, &Call{Input: []byte("x")}); got.Code != "deadline" && got.out != "x" {
			t.Errorf("%+v", got)
		}
	})
	wg.Wait()
	f.Close()
	eventually(t, "as before", func() bool { return takeCensus().children <= before.children })
}
