package exec

import (
	"errors"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus/args"
)

func script(t *testing.T, dir, name, text string, mode os.FileMode) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestRefusedPrograms(t *testing.T) {
	dir := t.TempDir()
	plain := script(t, dir, "plain", "#!/bin/sh\n", 0o644)
	interp := script(t, dir, "interp", "#!/no/such/shell -x\necho\n", 0o755)
	dos := script(t, dir, "dos", "#!/bin/sh\r\necho\r\n", 0o755)
	env := script(t, dir, "env", "#!/usr/bin/env nosuchlanguage\n", 0o755)
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o755); err != nil {
		t.Fatal(err)
	}
	byFIFO := script(t, dir, "byfifo", "#!"+fifo+"\n", 0o755)
	tests := []struct {
		name string
		spec Spec
		code string
		part string
	}{
		{"FIFO", Spec{Argv: []string{fifo}}, args.CodeCannotRun, "/fifo is a FIFO"},
		{"FIFO on PATH", Spec{Argv: []string{"fifo"}, Env: []string{"PATH=" + dir}}, args.CodeCannotRun, "/fifo is a FIFO"},
		{"FIFO as interpreter", Spec{Argv: []string{byFIFO}}, args.CodeCannotRun, "bad interpreter"},
		{"device", Spec{Argv: []string{os.DevNull}}, args.CodeCannotRun, "is a device"},
		{"none", Spec{}, args.CodeUsage, "no program"},
		{"not on PATH", Spec{Argv: []string{"no-such-program"}}, args.CodeNotFound, "not on PATH"},
		{"no file", Spec{Argv: []string{dir + "/none"}}, args.CodeNotFound, "no such file"},
		{"directory", Spec{Argv: []string{dir}}, args.CodeCannotRun, "is a directory"},
		{"not executable", Spec{Argv: []string{plain}}, args.CodeCannotRun, "permission denied"},
		{"not executable on PATH", Spec{Argv: []string{"plain"}, Env: []string{"PATH=" + dir}}, args.CodeCannotRun, "permission denied"},
		{"interpreter", Spec{Argv: []string{interp}}, args.CodeCannotRun, "/no/such/shell"},
		{"DOS", Spec{Argv: []string{dos}}, args.CodeCannotRun, `/bin/sh\r`},
		{"env", Spec{Argv: []string{env}}, args.CodeCannotRun, "nosuchlanguage"},
		{"no directory", Spec{Argv: []string{"cat"}, Dir: dir + "/none"}, args.CodeUsage, "no such file"},
		{"bad -e", Spec{Argv: []string{"cat"}, Env: []string{"=x"}}, args.CodeUsage, "NAME=VALUE"},
		{"NUL", Spec{Argv: []string{"cat", "a\x00"}}, args.CodeUsage, "NUL"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.spec)
			var e *args.Error
			if !errors.As(err, &e) || e.Code != tt.code || !strings.Contains(e.Message, tt.part) {
				t.Errorf("got %+v, want %s about %q", err, tt.code, tt.part)
			}
		})
	}
}

func TestProgramFound(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, "where", "#!/bin/sh\npwd; echo $0\n", 0o755)
	for name, spec := range map[string]Spec{
		"relative to Dir": {Argv: []string{"./where"}, Dir: dir},
		"PATH from Env":   {Argv: []string{"where"}, Dir: dir, Env: []string{"PATH=/nowhere:" + dir}},
	} {
		t.Run(name, func(t *testing.T) {
			got := runCall(t.Context(), offer(t, spec), &Call{})
			check(t, got, programExit(0), dir+"\n"+dir+"/where\n")
		})
	}
}

// What goes wrong after the offer is told in the same words.
func TestProgramChanges(t *testing.T) {
	t.Parallel()
	for _, memory := range []int64{0, 512 << 20} {
		dir := t.TempDir()
		file := script(t, dir, "p", "#!/bin/sh\necho one\n", 0o755)
		f := offer(t, Spec{Argv: []string{file}, Memory: memory})
		check(t, runCall(t.Context(), f, &Call{}), programExit(0), "one\n")
		script(t, dir, "p", "#!/bin/sh\necho two\n", 0o755)
		check(t, runCall(t.Context(), f, &Call{}), programExit(0), "two\n")
		for _, step := range []struct {
			change func()
			code   string
			part   string
		}{
			{func() { script(t, dir, "p", "#!/no/such\n", 0o755) }, args.CodeCannotStart, "/no/such"},
			{func() { script(t, dir, "p", "echo no first line\n", 0o755) }, args.CodeCannotStart, "#!/bin/sh"},
			{func() { os.Chmod(file, 0o644) }, args.CodeCannotStart, "permission denied"},
			{func() { os.Remove(file) }, args.CodeCannotStart, "no such file"},
		} {
			step.change()
			got := f.Run(t.Context(), &Call{})
			if got.Source != args.FromBus || got.Code != step.code || !strings.Contains(got.Message+got.Hint, step.part) {
				t.Errorf("memory %d: %+v, want %s about %q", memory, got, step.code, step.part)
			}
		}
	}
}

func TestTooLongForCommandLine(t *testing.T) {
	t.Parallel()
	f := offer(t, Spec{Argv: []string{"true"}, Args: ArgsArgv})
	values := make([]any, 100)
	for i := range values {
		values[i] = strings.Repeat("a", 100_000)
	}
	if got := f.Run(t.Context(), list(t, values...)); got.Code != args.CodeBadInput {
		t.Errorf("%+v", got)
	}
}

func TestArgvStdin(t *testing.T) {
	t.Parallel()
	f := sh(t, `echo "$@"; cat`, func(s *Spec) { s.Argv = append(s.Argv, "sh", "{}") })
	check(t, runCall(t.Context(), f, &Call{Input: []byte("in")}), programExit(0), "\nin")
	c := list(t, "a b", "c")
	check(t, runCall(t.Context(), f, c), programExit(0), "a b c\n")
	c.HasInput, c.Input = true, []byte("in")
	check(t, runCall(t.Context(), f, c), programExit(0), "a b c\nin")
}

// A program sees three descriptors, blocking, whatever its worker has open.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	leak, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0) // as inherited: not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(leak)
	f := offer(t, Spec{Argv: []string{"perl", "-e", `use Fcntl;
		for (0..1023) { print "$_ " if -e "/proc/self/fd/$_" }
		for (*STDIN, *STDOUT, *STDERR) { print fcntl($_, F_GETFL, 0) & O_NONBLOCK ? "n" : "b" }`}})
	large := strings.Repeat("x", 100_000)
	timed(20, 4, func() {
		check(t, runCall(t.Context(), f, &Call{Input: []byte("x")}), programExit(0), "0 1 2 bbb")
		check(t, runCall(t.Context(), f, &Call{Input: []byte(large)}), programExit(0), "0 1 2 bbb")
	})
}

func TestEnvironment(t *testing.T) {
	for _, name := range slices.Concat(notInherited, ofService) {
		t.Setenv(name, "inherited")
	}
	t.Setenv("KEPT", "kept")
	t.Setenv("CHANGED", "no")
	f := sh(t, "env | grep -E 'FBUS|KEPT|CHANGED|=inherited' | sort", func(s *Spec) {
		s.Env = []string{"CHANGED=yes", "FBUS_CALLER=forged"}
		s.Node = "/tmp/a"
	})
	got := runCall(t.Context(), f, &Call{})
	check(t, got, programExit(0), "CHANGED=yes\nFBUS_FUNCTION=f\nFBUS_NODE=/tmp/a\nFBUS_SLOT=0\nKEPT=kept\n")
	f.SetNode("")
	own := sh(t, "echo $FBUS_NODE", func(s *Spec) { s.Env = []string{"FBUS_NODE=mine"} })
	check(t, runCall(t.Context(), own, &Call{}), programExit(0), "mine\n")
	f.SetNode("/tmp/b")
	got = runCall(t.Context(), f, &Call{ID: "17", Caller: "uid:0", Deadline: time.UnixMilli(1500).In(time.FixedZone("x", 3600))})
	check(t, got, programExit(0), "CHANGED=yes\nFBUS_CALLER=uid:0\nFBUS_CALL_ID=17\n"+
		"FBUS_DEADLINE=1970-01-01T00:00:01.500Z\nFBUS_FUNCTION=f\nFBUS_NODE=/tmp/b\nFBUS_SLOT=0\nKEPT=kept\n")
}

// A program starts as a shell would start it: signals at their defaults, the
// user's own limits, a session of its own.
func TestSurroundings(t *testing.T) {
	files, err := osexec.Command("sh", "-c", "ulimit -n").Output()
	if err != nil {
		t.Fatal(err)
	}
	f := sh(t, `ulimit -n; grep -E 'Sig(Blk|Ign)' /proc/self/status; ps -o pid=,sid= $$ | awk '{ print $1 == $2 }'`)
	const none = "0000000000000000\n"
	check(t, runCall(t.Context(), f, &Call{}), programExit(0), string(files)+"SigBlk:\t"+none+"SigIgn:\t"+none+"1\n")
}
