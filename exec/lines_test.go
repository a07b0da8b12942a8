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

// A loop that does as each line says.
const obey = `
echo "$$" >&2
while read -r what how; do
	case $what in
	echo) echo "$how" ;;
	pid) echo $$ ;;
	twice) printf '%s\n%s\n' "$how" "$how" ;;
	half) printf '%s' "$how"; exit 3 ;;
	crash) exit 3 ;;
	die) kill -9 $$ ;;
	mute) exec >&-; sleep 1000 ;;
	hang) sleep 1000 & wait ;;
	err) echo "$how" >&2; echo done ;;
	env) eval "echo \$$how" ;;
	late) eval "$how"; echo late ;;
	esac
done`

func lineMode(s *Spec) { s.Resident = LineByLine; s.Slots = 1 }

func ask(t *testing.T, f *Function, line string) reply {
	t.Helper()
	return runCall(t.Context(), f, &Call{Input: []byte(line)})
}

func lostAs(msg string) Result {
	return fbusEnd(args.CodeWorkerLost, msg)
}

func TestLineByLine(t *testing.T) {
	f := sh(t, obey, lineMode)
	first := ask(t, f, "pid\n")
	for _, in := range []string{"echo a b\n", "echo a b"} {
		check(t, ask(t, f, in), programExit(0), "a b\n")
	}
	check(t, runCall(t.Context(), f, list(t, "echo x y")), programExit(0), "x y\n")
	check(t, runCall(t.Context(), f, list(t, "echo x\n")), programExit(0), "x\n")
	check(t, runCall(t.Context(), f, document(`["echo doc"]`)), programExit(0), "doc\n")
	check(t, runCall(t.Context(), f, document(`"echo doc"`)), programExit(0), "doc\n")
	check(t, runCall(t.Context(), f, &Call{Input: []byte("echo "), Rest: strings.NewReader("in parts\n")}), programExit(0), "in parts\n")
	check(t, ask(t, f, "pid"), programExit(0), first.out)
	f.Close()
	checkGone(t, first.out)
}

// What is no line is refused before anything is written.
func TestNoLine(t *testing.T) {
	f := sh(t, obey, lineMode)
	pid := ask(t, f, "pid").out
	withInput := list(t, "a")
	withInput.HasInput = true
	for _, c := range []*Call{
		{Input: []byte("a\nb\n")}, {Input: []byte("\n\n")}, {Input: []byte("a\n"), Rest: strings.NewReader("b")},
		list(t), list(t, "a", "b"), list(t, "a\nb"), list(t, doc(`{"a":1}`)), fields(t, "a", "b"),
		document(`{"a":1}`), document(`["a","b"]`), document(`[]`), document(`[["a"]]`), withInput,
	} {
		if got := runCall(t.Context(), f, c); got.Code != args.CodeBadInput || got.Source != args.FromBus || got.out != "" {
			t.Errorf("%+v: %+v", c, got)
		}
	}
	check(t, ask(t, f, "pid"), programExit(0), pid)
}

// A line may hold anything else, and be longer than all buffers.
func TestLineBytes(t *testing.T) {
	t.Parallel()
	f := offer(t, Spec{Argv: []string{"cat"}, Resident: LineByLine})
	for _, in := range []string{"\x00\xff\r\x00", strings.Repeat("x", bufSize-1), strings.Repeat("y", bufSize), strings.Repeat("z", 3<<20)} {
		for range 2 {
			check(t, ask(t, f, in), programExit(0), in+"\n")
		}
	}
}

func TestLineTooLong(t *testing.T) {
	t.Parallel()
	f := offer(t, Spec{Argv: []string{"cat"}, Resident: LineByLine, MaxOutput: 10})
	check(t, ask(t, f, "123456789"), programExit(0), "123456789\n")
	over := fbusEnd(args.CodeOutputLimit, "output exceeds 10 bytes")
	check(t, ask(t, f, "1234567890"), over, "")
	check(t, ask(t, f, strings.Repeat("x", 1<<20)), over, "")
	check(t, ask(t, f, "1"), programExit(0), "1\n")
}

// Only the call that a process held fails, and with a reason.
func TestLineLost(t *testing.T) {
	f := sh(t, obey, lineMode)
	for line, want := range map[string]string{
		"crash":     "the program exited with status 3 before it answered",
		"die":       "the program was ended by SIGKILL before it answered",
		"half a\tb": `the program exited with status 3 before it answered; it left half a line: "a\tb"`,
	} {
		check(t, ask(t, f, "echo ok"), programExit(0), "ok\n")
		check(t, ask(t, f, line), lostAs(want), "")
		check(t, ask(t, f, "echo ok"), programExit(0), "ok\n")
	}
	long := ask(t, f, "half "+strings.Repeat("x", 1000))
	if want := quote([]byte(strings.Repeat("x", 1000))); !strings.HasSuffix(long.Message, want) || len(want) > longestQuoted+10 {
		t.Errorf("%+v", long)
	}
}

// A process that has closed its output is not waited for for ever.
func TestLineMute(t *testing.T) {
	set(t, &closedAfter, 20*time.Millisecond)
	f := sh(t, obey, lineMode)
	check(t, ask(t, f, "echo ok"), programExit(0), "ok\n")
	check(t, ask(t, f, "mute"), lostAs("the program closed its output before it answered"), "")
	check(t, ask(t, f, "echo ok"), programExit(0), "ok\n")
}

func TestLineEvery7th(t *testing.T) {
	t.Parallel()
	f := offer(t, Spec{Resident: LineByLine, Slots: 1, Argv: []string{"perl", "-e", `$| = 1; while (<STDIN>) { exit 9 if ++$n == 7; print }`}})
	for i := 1; i <= 70; i++ {
		want, out := programExit(0), fmt.Sprintln(i)
		if i%7 == 0 {
			want, out = lostAs("the program exited with status 9 before it answered"), ""
		}
		check(t, ask(t, f, fmt.Sprint(i)), want, out)
	}
}

// A process that wrote out of turn is replaced, and no call fails for it.
func TestStrayLine(t *testing.T) {
	t.Parallel()
	log := newLines()
	f := sh(t, obey, lineMode, logged(log))
	for i := range 20 {
		check(t, ask(t, f, fmt.Sprintf("twice %d", i)), programExit(0), fmt.Sprintf("%d\n", i))
	}
	// Noise while nothing is asked: the next call finds it before it writes.
	pid := ask(t, f, "pid").out
	file := filepath.Join("/proc", strings.TrimSpace(pid), "fd/1")
	noise, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(noise, strings.Repeat("noise ", 100))
	noise.Close()
	check(t, ask(t, f, "echo ok"), programExit(0), "ok\n")
	for {
		if line := log.next(t); strings.Contains(line, `"noise noise`) {
			if len(line) > 200 {
				t.Errorf("%d bytes: %s", len(line), line)
			}
			break
		}
	}
}

// A program that always speaks first can not be used. That line is found, or
// taken for the answer of a process just started; nothing waits for ever.
func TestAlwaysStray(t *testing.T) {
	t.Parallel()
	log := newLines()
	f := sh(t, "echo hello; cat", lineMode, logged(log))
	eventually(t, "it has spoken", func() bool {
		f.stay.mu.Lock()
		defer f.stay.mu.Unlock()
		spoken := false
		for p := range f.stay.all {
			if p.state != starting {
				p.replies.conn.Control(func(fd uintptr) { spoken = unreadEnd(fd).count() > 0 })
			}
		}
		return spoken
	})
	ask(t, f, "x")
	if line := log.next(t); line != `f: replaced: it wrote before it was asked: "hello\n"` {
		t.Errorf("%q", line)
	}
}

func TestLineDeadline(t *testing.T) {
	f := sh(t, obey, lineMode)
	pid := ask(t, f, "pid").out
	late, pass := overdue(t)
	hung := background(late, f, &Call{Input: []byte("hang")})
	eventually(t, "it hangs", func() bool { return len(childrenOf(pidOf(t, pid))) == 1 })
	pass()
	if got := await(t, hung); !same(got, fbusEnd(args.CodeDeadline, "deadline exceeded")) {
		t.Errorf("%+v", got)
	}
	checkGone(t, pid)
	got := runCall(late, f, &Call{Input: []byte("echo never")})
	if got.Code != "deadline" || got.out != "" {
		t.Errorf("%+v", got)
	}
	check(t, ask(t, f, "echo x"), programExit(0), "x\n")
}

// The offer's own limit ends a call as the caller's does, whether the program
// has begun to read its request or not. If it has, it is replaced.
func TestLineTimeout(t *testing.T) {
	f := sh(t, obey, lineMode, func(s *Spec) { s.Timeout = 100 * time.Millisecond })
	pid := programOf(t, f)
	eventually(t, "a program that hangs is replaced", func() bool {
		got := ask(t, f, "hang")
		check(t, got, fbusEnd(args.CodeDeadline, "ran longer than 100ms"), "")
		replaced := programOf(t, f) != pid
		if replaced && !strings.HasSuffix(got.err, flushHint) {
			t.Errorf("%q", got.err)
		}
		return replaced
	})
	checkGone(t, itoa(pid))
}

// programOf waits for a function's one resident program, and returns its pid.
func programOf(t *testing.T, f *Function) (pid int) {
	t.Helper()
	eventually(t, "a process holds the program", func() bool {
		f.stay.mu.Lock()
		defer f.stay.mu.Unlock()
		for p := range f.stay.all {
			if p.state == starting || p.state == retiring {
				continue
			}
			stdin, _ := os.Readlink("/proc/self/fd/" + itoa(int(p.in.end)))
			for _, holder := range childrenOf(os.Getpid()) {
				for _, child := range childrenOf(holder) {
					if holds(child, stdin) {
						pid = child
					}
				}
			}
		}
		return pid != 0
	})
	return pid
}

// An answer that comes after its call has ended is nobody's.
func TestLineLate(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f := sh(t, "trap '' TERM\n"+obey, lineMode, func(s *Spec) { s.Grace = patience })
	for i := range 5 {
		eventually(t, "none but the one in service", func() bool { return retired(f) == 0 })
		late, pass := overdue(t)
		ended := background(late, f, &Call{Input: []byte("late read -r x <" + fifo + "; echo late; exit")})
		told, err := os.OpenFile(fifo, os.O_WRONLY, 0) // returns when the program reads there
		if err != nil {
			t.Fatal(err)
		}
		pass()
		eventually(t, "its end", func() bool { return retired(f) == 1 })
		fmt.Fprintln(told, "go on")
		told.Close()
		// Its answer may still have come at that very moment.
		if res := await(t, ended); (res.Code != "deadline" || len(res.Output) > 0) && string(res.Output) != "late\n" {
			t.Errorf("%+v", res)
		}
		check(t, ask(t, f, fmt.Sprintf("echo %d", i)), programExit(0), fmt.Sprintf("%d\n", i))
	}
}

// A request that the program has not begun to read is taken back: a program
// that is slow to start is not killed for it.
func TestLineTakenBack(t *testing.T) {
	f := sh(t, obey, lineMode)
	pid := ask(t, f, "pid").out
	syscall.Kill(pidOf(t, pid), syscall.SIGSTOP)
	eventually(t, "stopped", func() bool { return stateOf(pidOf(t, pid)) == "T" })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if got := runCall(ctx, f, &Call{Input: []byte("crash")}); got.Code != "deadline" {
		t.Errorf("%+v", got)
	}
	syscall.Kill(pidOf(t, pid), syscall.SIGCONT)
	check(t, ask(t, f, "pid"), programExit(0), pid)
}

// A request that was written to a process already dead is put to another.
func TestLineDiedUnread(t *testing.T) {
	f := sh(t, "echo $PPID >&2\n"+obey, lineMode)
	first := ask(t, f, "pid")
	keeper, pid := pidOf(t, strings.Fields(first.err)[0]), pidOf(t, first.out)
	// Somebody else holds its stdout, so that no end of it is seen.
	held, err := os.OpenFile(filepath.Join("/proc", itoa(pid), "fd/1"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	syscall.Kill(keeper, syscall.SIGSTOP)
	killAndWait(t, pid)
	done := background(t.Context(), f, &Call{Input: []byte("pid")})
	eventually(t, "asked", func() bool { return heldCalls(f) == 1 })
	syscall.Kill(keeper, syscall.SIGCONT)
	if res := await(t, done); res.Status != 0 || string(res.Output) == first.out {
		t.Errorf("%+v", res)
	}
}

// retired counts the processes that are out of service and not gone.
func retired(f *Function) int {
	f.stay.mu.Lock()
	defer f.stay.mu.Unlock()
	return f.stay.count[retiring]
}

// heldCalls counts the calls whose request was sent.
func heldCalls(f *Function) (n int) {
	f.stay.mu.Lock()
	defer f.stay.mu.Unlock()
	for p := range f.stay.all {
		p.mu.Lock()
		for _, h := range p.calls {
			if h.sent {
				n++
			}
		}
		p.mu.Unlock()
	}
	return n
}

func TestLineCancel(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"cancel", "kill"} {
		f := sh(t, "trap '' TERM\n"+obey, lineMode)
		pid := ask(t, f, "pid").out
		ctx, cancel := context.WithCancel(t.Context())
		done := background(ctx, f, &Call{Input: []byte("hang")})
		// A call that the program has not read yet would be taken back.
		eventually(t, "it hangs", func() bool { return len(childrenOf(pidOf(t, pid))) == 1 })
		waiting := background(ctx, f, &Call{Input: []byte("echo never")})
		eventually(t, "asked, and waiting", func() bool {
			f.stay.mu.Lock()
			queued := len(f.stay.queue)
			f.stay.mu.Unlock()
			return heldCalls(f) == 1 && queued == 1
		})
		if how == "kill" {
			f.Kill()
		} else {
			cancel()
		}
		for _, d := range []<-chan Result{done, waiting} {
			if res := await(t, d); !same(res, fbusEnd(args.CodeCancelled, "cancelled")) {
				t.Errorf("%s: %+v", how, res)
			}
		}
		cancel()
		checkGone(t, pid)
		check(t, ask(t, f, "echo ok"), programExit(0), "ok\n")
	}
}

// A program that greets would have its greeting taken for the first answer.
func TestLineGreeting(t *testing.T) {
	set(t, &firstGreeting, patience) // on a busy machine a start takes long
	set(t, &laterGreeting, patience)
	f := sh(t, "echo hello\n"+obey, lineMode)
	for range 2 {
		got := ask(t, f, "echo x")
		if got.Code != args.CodeInternal || !strings.Contains(got.Message, `"hello\n"`) {
			t.Errorf("%+v", got)
		}
	}
}
