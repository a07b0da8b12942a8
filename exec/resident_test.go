package exec

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus/args"
)

func TestResidentStderr(t *testing.T) {
	log := newLines()
	f := sh(t, obey+"; echo over >&2", lineMode, logged(log))
	if first := log.next(t); !strings.HasPrefix(first, "f: ") {
		t.Errorf("%q", first)
	}
	for range 50 {
		if got := ask(t, f, "err to the caller"); got.out != "done\n" || got.err != "to the caller\n" {
			t.Errorf("%+v", got)
		}
	}
	f.Close()
	if last := log.next(t); last != "f: over" {
		t.Errorf("%q", last)
	}
}

func TestMaxCalls(t *testing.T) {
	t.Parallel()
	f := sh(t, obey, lineMode, func(s *Spec) { s.MaxCalls = 3 })
	seen := make(map[string]int)
	for range 12 {
		seen[ask(t, f, "pid").out]++
	}
	if len(seen) != 4 {
		t.Errorf("%v", seen)
	}
	for pid := range seen {
		if seen[pid] != 3 {
			t.Errorf("%v", seen)
		}
	}
}

func TestMaxIdle(t *testing.T) {
	f := sh(t, obey, lineMode, func(s *Spec) { s.MaxIdle = 20 * time.Millisecond })
	first := ask(t, f, "pid").out
	eventually(t, "gone", func() bool { return syscall.Kill(pidOf(t, first), 0) == syscall.ESRCH })
	eventually(t, "none", func() bool { f.stay.mu.Lock(); defer f.stay.mu.Unlock(); return len(f.stay.all) == 0 })
	if second := ask(t, f, "pid"); second.Status != 0 || second.out == first {
		t.Errorf("%+v", second)
	}
}

// Whoever kills an idle process costs no call anything.
func TestIdleResidentKilled(t *testing.T) {
	t.Parallel()
	f := sh(t, obey, lineMode)
	for range 20 {
		got := ask(t, f, "pid")
		check(t, got, programExit(0), got.out)
		killAndWait(t, pidOf(t, got.out))
	}
}

func TestReplyFD(t *testing.T) {
	t.Parallel()
	for fd, memory := range map[int]int64{3: 0, 9: 0, 4: 1 << 30} {
		log := newLines()
		f := sh(t, fmt.Sprintf(`while read -r x; do echo "log $x"; echo "got $x" >&%d; done`, fd), lineMode, logged(log),
			func(s *Spec) { s.ReplyFD, s.Memory = fd, memory })
		for range 3 {
			check(t, ask(t, f, "x"), programExit(0), "got x\n")
			if line := log.next(t); line != "f: log x" {
				t.Errorf("%q", line)
			}
		}
	}
}

// A resident sees no descriptors but those that it was promised.
func TestReplyFDIsAll(t *testing.T) {
	f := offer(t, Spec{Resident: LineByLine, ReplyFD: 5, Argv: []string{"perl", "-e", `open R, ">&=5"; $x = join " ", grep { -e "/proc/self/fd/$_" } 0..1023;
		while (<STDIN>) { syswrite R, "$x\n" }`}})
	check(t, ask(t, f, ""), programExit(0), "0 1 2 5\n")
}

func TestResidentEnvironment(t *testing.T) {
	t.Parallel()
	f := sh(t, obey, lineMode, func(s *Spec) { s.Node = "/tmp/a" })
	for name, want := range map[string]string{"PYTHONUNBUFFERED": "1", "FBUS_FUNCTION": "f", "FBUS_NODE": "/tmp/a", "FBUS_CALL_ID": ""} {
		got := runCall(t.Context(), f, &Call{ID: "17", Input: []byte("env " + name)})
		check(t, got, programExit(0), want+"\n")
	}
	pid := ask(t, f, "pid").out
	f.SetNode("/tmp/a")
	check(t, ask(t, f, "pid"), programExit(0), pid)
	f.SetNode("/tmp/b")
	check(t, ask(t, f, "env FBUS_NODE"), programExit(0), "/tmp/b\n")
	own := sh(t, obey, lineMode, func(s *Spec) { s.Env = []string{"PYTHONUNBUFFERED="} })
	check(t, ask(t, own, "env PYTHONUNBUFFERED"), programExit(0), "\n")
}

// A program that does not live: calls fail with the reason, starts are spaced,
// and all is well once it does.
func TestResidentDies(t *testing.T) {
	t.Parallel()
	log, notes := newLines(), newLines()
	broken := filepath.Join(t.TempDir(), "broken")
	os.WriteFile(broken, nil, 0o600)
	f := sh(t, "if test -e "+broken+"; then echo no module >&2; exit 3; fi"+obey, lineMode, logged(log), noted(notes))
	const why = "the program exited with status 3: no module"
	if got := notes.next(t); got != why {
		t.Errorf("noted %q", got)
	}
	got := ask(t, f, "echo x")
	check(t, got, lostAs("the program exited with status 3 before it answered: no module"), "")
	os.Remove(broken)
	eventually(t, "well again", func() bool { return ask(t, f, "echo x").out == "x\n" })
	if got := notes.next(t); got != "" || len(notes.said) > 0 {
		t.Errorf("noted %q and %d more", got, len(notes.said))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	os.WriteFile(broken, nil, 0o600)
	ask(t, f, "crash")
	notes.next(t)
	if got := runCall(ctx, f, &Call{Input: []byte("echo x")}); got.Code != "worker_lost" && got.Code != "deadline" {
		t.Errorf("%+v", got)
	}
}

// The offer's own limit covers the wait for a process that can not live, or that
// is not fit to be asked.
func TestResidentTimeoutWithoutProcess(t *testing.T) {
	set(t, &firstGreeting, patience) // a third of the limit then: on a busy machine a start takes long
	set(t, &laterGreeting, patience)
	for script, limit := range map[string]time.Duration{"exit 9": 50 * time.Millisecond, "echo hello; cat": time.Second} {
		program := func() *Function { return sh(t, script, lineMode, func(s *Spec) { s.Timeout = limit }) }
		f := program()
		eventually(t, "a call ends while starts are put off", func() bool {
			got := ask(t, f, "x")
			if f.stay.proven.Load() { // its greeting came too late, and was taken for the answer
				f = program()
			}
			return got.Code == "deadline" && strings.HasPrefix(got.Message, fmt.Sprintf("no process was ready within %v: ", limit))
		})
	}
}

// A program that ends between two calls is in the log once.
func TestResidentExits(t *testing.T) {
	t.Parallel()
	log := newLines()
	f := sh(t, "while read -r x; do echo $$; done", lineMode, logged(log))
	for range 5 {
		killAndWait(t, pidOf(t, ask(t, f, "x").out))
		if line := log.next(t); line != "f: replaced: the program was ended by SIGKILL" {
			t.Errorf("%q", line)
		}
	}
	f.Close()
	if n := len(log.said); n > 0 {
		t.Errorf("%d lines more: %q", n, log.next(t))
	}
}

// A program that is gone is reported as in once mode.
func TestResidentVanishes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	os.WriteFile(file, []byte("#!/bin/sh\n"+obey), 0o755)
	f := offer(t, Spec{Argv: []string{file}, Resident: LineByLine, Slots: 1})
	check(t, ask(t, f, "echo x"), programExit(0), "x\n")
	os.Remove(file)
	check(t, ask(t, f, "crash"), lostAs("the program exited with status 3 before it answered"), "")
	if got := ask(t, f, "echo x"); got.Code != args.CodeCannotStart || got.Status != 127 {
		t.Errorf("%+v", got)
	}
}

// What a resident leaves behind dies with it, as do those that ignore the end
// of their input.
func TestResidentClose(t *testing.T) {
	t.Parallel()
	f := sh(t, `trap '' TERM; setsid sleep 1000 & read -r x; echo $$ $!; while :; do sleep 1; done`, lineMode)
	pids := ask(t, f, "").out
	f.Close()
	checkGone(t, pids)
	if res := f.Run(t.Context(), &Call{}); res.Code != args.CodeCancelled {
		t.Errorf("%+v", res)
	}
}

func TestResidentKeeperKilled(t *testing.T) {
	t.Parallel()
	f := sh(t, obey, lineMode)
	got := ask(t, f, "pid")
	keeper := pidOf(t, statFields(pidOf(t, got.out))[1]) // its parent
	done := background(t.Context(), f, &Call{Input: []byte("hang")})
	// A call that the program has not read yet would be put to another.
	eventually(t, "it hangs", func() bool { return len(childrenOf(pidOf(t, got.out))) == 1 })
	syscall.Kill(keeper, syscall.SIGKILL)
	if res := await(t, done); !same(res, lostAs("the program's keeper was killed")) {
		t.Errorf("%+v", res)
	}
	checkGone(t, got.out)
	check(t, ask(t, f, "echo x"), programExit(0), "x\n")
}
