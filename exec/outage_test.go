package exec

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

// limits takes what a function reports about its slots.
type limits struct {
	mu   sync.Mutex // protects the fields below
	now  int
	why  string
	log  []string
	seen chan int
}

func watchLimits(spec *Spec) *limits {
	l := &limits{now: spec.Slots, seen: make(chan int, 1000)}
	spec.Limit = func(slots int, why *args.Error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.now, l.why = slots, ""
		if why != nil {
			l.why = why.Message
		}
		l.seen <- slots
	}
	spec.Log = func(format string, a ...any) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.log = append(l.log, args.Sprintf(format, a...))
	}
	return l
}

func (l *limits) get() (slots int, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now, l.why
}

// await waits until so many slots are reported.
func (l *limits) await(t *testing.T, slots int) {
	t.Helper()
	for {
		select {
		case k := <-l.seen:
			if k == slots {
				return
			}
		case <-time.After(patience):
			t.Fatalf("never %d slots", slots)
		}
	}
}

// said counts the lines of the log that hold a text.
func (l *limits) said(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.log {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// A function whose program is gone gives its slots up before the call ends, reports that
// once, and has its slots back when the program is there again. So in every mode.
func TestProgramGone(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]Spec{
		"once":  {},
		"warm":  {Warm: 1},
		"lines": {Resident: LineByLine, MaxCalls: 1},
		"json":  {Resident: JSONRPC, MaxCalls: 1},
		"dir":   {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			what := filepath.Join(dir, "program")
			spec.Argv, spec.Slots = []string{what}, 2
			program := "#!/bin/sh\nread -r x; echo \"$x\"\n"
			switch {
			case spec.Resident == LineByLine:
				program = "#!/bin/sh\nwhile read -r x; do echo \"$x\"; done\n"
			case name == "dir":
				spec.Argv, spec.Dir = []string{"cat"}, filepath.Join(dir, "work")
				what = spec.Dir
				os.Mkdir(what, 0o755)
			case spec.Resident == JSONRPC:
				program = "#!/bin/sh\nwhile read -r x; do echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"hi\"}'; done\n"
			}
			if name != "dir" {
				script(t, dir, "program", program, 0o755)
			}
			l := watchLimits(&spec)
			f := offer(t, spec)
			if res := runCall(t.Context(), f, &Call{Input: []byte("hi\n")}); res.Source != args.FromProgram {
				t.Fatalf("%+v", res)
			}
			away := what + ".away"
			os.Rename(what, away)
			status := 127
			if name == "dir" {
				status = 126
			}
			for failed := 0; failed < 3; { // a process that was started before may still serve a call
				res := runCall(t.Context(), f, &Call{Input: []byte("hi\n")})
				if res.Source == args.FromProgram || res.Code == args.CodeWorkerLost {
					continue
				}
				failed++
				slots, why := l.get()
				if res.Code != args.CodeCannotStart || res.Status != status || slots != 0 || !strings.Contains(why, what) {
					t.Errorf("%+v, %d slots, %q", res, slots, why)
				}
			}
			os.Rename(away, what)
			l.await(t, 2)
			if res := runCall(t.Context(), f, &Call{Input: []byte("hi\n")}); res.Source != args.FromProgram {
				t.Errorf("%+v", res)
			}
			// A shell that has begun just before does not find its script any more, and says so itself.
			if n := l.said("cannot start"); n != 1 || l.said("started again") != 1 || l.said("held ready") > l.said("cannot open") {
				t.Errorf("%q", l.log)
			}
		})
	}
}

// Where there is room for some programs only, as many slots stay. Then more are tried.
func TestShortage(t *testing.T) {
	spec := Spec{Argv: []string{"sh", "-c", "read -r x; echo $x"}, Slots: 8}
	l := watchLimits(&spec)
	f := offer(t, spec)
	runs := make([]<-chan Result, 2)
	ends := make([]*os.File, len(runs))
	for i := range runs {
		r, w, _ := os.Pipe()
		defer r.Close()
		ends[i] = w
		runs[i] = background(t.Context(), f, &Call{Rest: r})
	}
	for f.outage.processes.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	set(t, &firstPause, time.Hour)
	a := f.attempt()
	if e := a.notStarted(os.NewSyscallError("pipe2", unix.EMFILE)); e.Code != args.CodeCannotStart || e.Status() != 126 {
		t.Errorf("%+v", e)
	}
	if slots, why := l.get(); slots != 2 || why != "cannot start more than 2 programs at once: too many open files" {
		t.Errorf("%d slots, %q", slots, why)
	}
	a = f.attempt() // the third: the node did not know yet
	a.notStarted(unix.EAGAIN)
	if slots, _ := l.get(); slots != 2 {
		t.Errorf("%d slots", slots)
	}
	end := func(i int) {
		ends[i].Write([]byte("x\n"))
		ends[i].Close()
		await(t, runs[i])
	}
	end(0)
	a = f.attempt()
	a.notStarted(unix.EAGAIN)
	if slots, _ := l.get(); slots != 1 {
		t.Errorf("%d slots", slots)
	}
	end(1)
	f.outage.look()
	if slots, _ := l.get(); slots != 2 {
		t.Errorf("%d slots after a look", slots)
	}
	for range 6 {
		f.outage.look()
	}
	if slots, why := l.get(); slots != 8 || why != "" {
		t.Errorf("%d slots, %q", slots, why)
	}
	a = f.attempt()
	a.notStarted(unix.EAGAIN) // nothing runs: none can be started
	if slots, why := l.get(); slots != 0 || why != "cannot start: resource temporarily unavailable" {
		t.Errorf("%d slots, %q", slots, why)
	}
	f.outage.look() // one is tried
	a = f.attempt()
	a.begun()
	a.gone()
	a.notExecuted(unix.ETXTBSY, false)
	if slots, _ := l.get(); slots != 0 {
		t.Errorf("%d slots", slots)
	}
	for range 10 { // nothing that can be seen is wrong, and nothing was started
		f.outage.look()
	}
	if slots, why := l.get(); slots != 1 || !strings.HasSuffix(why, unix.ETXTBSY.Error()) || l.said("started again") > 0 {
		t.Errorf("%d slots, %q; %q", slots, why, l.log)
	}
	fails := f.outage.fails
	a = f.attempt()
	a.begun()
	a.gone()
	a.notExecuted(unix.ETXTBSY, false)
	if slots, _ := l.get(); slots != 0 || f.outage.fails <= fails || l.said("text file busy") != 1 {
		t.Errorf("%d slots, %d failures, %q", slots, f.outage.fails, l.log)
	}
	f.outage.look()
	check(t, runCall(t.Context(), f, &Call{Input: []byte("y\n")}), programExit(0), "y\n")
	if slots, _ := l.get(); slots != 8 {
		t.Errorf("%d slots after a success", slots)
	}
}

// What is wrong with a call is no fault of the worker.
func TestCallsOwnFault(t *testing.T) {
	t.Parallel()
	spec := Spec{Argv: []string{"true"}, Args: ArgsArgv, Slots: 2}
	l := watchLimits(&spec)
	f := offer(t, spec)
	a := f.attempt()
	if e := a.notExecuted(syscall.E2BIG, true); e.Code != args.CodeBadInput {
		t.Errorf("%+v", e)
	}
	if slots, _ := l.get(); slots != 2 {
		t.Errorf("%d slots", slots)
	}
}

// Nothing of a stream is read for a program that cannot be started: it may go to another worker.
func TestInputOfNotStarted(t *testing.T) {
	t.Parallel()
	file := script(t, t.TempDir(), "program", "#!/bin/sh\nexec cat\n", 0o755)
	f := offer(t, Spec{Argv: []string{file}, Slots: 1})
	check(t, runCall(t.Context(), f, &Call{Input: []byte("a"), Rest: strings.NewReader("b")}), programExit(0), "ab")
	os.Remove(file)
	rest := strings.NewReader("b")
	if res := f.Run(t.Context(), &Call{Input: []byte("a"), Rest: rest}); res.Code != args.CodeCannotStart || rest.Len() != 1 {
		t.Errorf("%+v, %d bytes left", res, rest.Len())
	}
}
