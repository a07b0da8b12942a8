package testscripts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/commands"

	"github.com/rogpeppe/go-internal/testscript"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for something that should happen: long enough for
// any machine, since only a failure takes it.
const patience = time.Minute

type runnerKey struct{}

// runner holds what one script has started in the background. Only the
// script's own goroutine uses it.
type runner struct {
	work    string
	started map[string]*process
	order   []string
	names   []string // of the variables of the script's environment
	stdin   bool     // it has input for command lines
	tls     *overTLS // nil: over unix sockets
}

// process is a background command; its output goes to NAME.out and NAME.err.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it was reaped
}

func runnerOf(ts *testscript.TestScript) *runner { return ts.Value(runnerKey{}).(*runner) }

// start runs a command with its output in files. It has a process group of its
// own, as a shell gives one to each job.
func (r *runner) start(ts *testscript.TestScript, name string, args []string) *process {
	if r.started[name] != nil {
		ts.Fatalf("%s was started already", name)
	}
	stdout, err := os.Create(filepath.Join(r.work, name+".out"))
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.Create(filepath.Join(r.work, name+".err"))
	ts.Check(err)
	defer stderr.Close()
	cmd := exec.Command(lookPath(ts, args[0]), args[1:]...)
	cmd.Dir, cmd.Env = ts.MkAbs("."), environ(ts)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(cmd.Start())
	ts.Check(os.WriteFile(filepath.Join(r.work, name+".pid"), fmt.Appendln(nil, cmd.Process.Pid), 0o666))
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the command
		cmd.Wait()
		close(p.done)
	}()
	r.started[name] = p
	r.order = append(r.order, name)
	return p
}

// environ is the script's environment.
func environ(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{
		"WORK", "PATH", "HOME", "TMPDIR", "FBUS_HOME", "FBUS_STATE", "FBUS_NODE", "FBUS_TICKET", "FBUS_TEST_CLOCK", "LC_ALL", "GORACE", "GOCOVERDIR", "GOTRACEBACK",
	} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func lookPath(ts *testscript.TestScript, name string) string {
	if strings.ContainsRune(name, '/') {
		return name
	}
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		if unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	ts.Fatalf("%s is not on PATH", name)
	return ""
}

// finish ends what the script has left running, and fails it if any process of
// its own is there afterwards.
func (r *runner) finish(t testscript.T) {
	if f, ok := t.(interface{ Failed() bool }); ok && f.Failed() {
		for _, name := range r.order {
			for _, suffix := range []string{".out", ".err"} {
				if data, _ := os.ReadFile(filepath.Join(r.work, name+suffix)); len(data) > 0 {
					t.Log(fmt.Sprintf("[%s%s]\n%.4000s", name, suffix, data))
				}
			}
		}
	}
	// Callers and workers before nodes. A second signal ends a drain.
	slices.Reverse(r.order)
	for _, name := range r.order {
		if !r.started[name].end() {
			t.Log(name + " did not end by two SIGTERM, and was killed")
		}
	}
	var left map[int]string
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if left = r.leftovers(); len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	if len(left) > 0 {
		t.Fatal("processes were left behind:\n" + strings.Join(slices.Collect(maps.Values(left)), "\n"))
	}
}

// end stops a process and reports whether it went when asked.
func (p *process) end() bool {
	for range 2 {
		p.cmd.Process.Signal(syscall.SIGCONT)
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
			return true
		case <-time.After(100 * time.Millisecond): // a signal sent twice at once is one
		}
	}
	select {
	case <-p.done:
		return true
	case <-time.After(10 * time.Second):
	}
	p.cmd.Process.Kill()
	<-p.done
	return false
}

// bound kills everything that a script has started after a limit that only a command
// that hangs can reach: it then fails in its own line, before go test's limit.
func (r *runner) bound(limit time.Duration) (stop func() bool) {
	return time.AfterFunc(limit, func() {
		for pid := range r.leftovers() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}).Stop
}

// leftovers finds processes that the script has started, by their environment
// or their directory.
func (r *runner) leftovers() map[int]string {
	list := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		own := slices.ContainsFunc(bytes.Split(env, []byte{0}), func(kv []byte) bool { return string(kv) == "WORK="+r.work })
		if !own && cwd != r.work && !strings.HasPrefix(cwd, r.work+"/") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		list[pid] = fmt.Sprintf("%d %q", pid, strings.ReplaceAll(string(line), "\x00", " "))
	}
	return list
}

// node starts fbus serve at $FBUS_NODE, with these flags, and waits until it is
// ready. With -as NAME it is called NAME, else node. It listens on TCP only if
// --listen says where.
func node(ts *testscript.TestScript, neg bool, args []string) {
	name, args := nameOf("node", args)
	if o := runnerOf(ts).tls; o != nil {
		o.node(ts, name, args)
		return
	}
	if !slices.Contains(args, "--listen") {
		args = append([]string{"--no-tcp"}, args...)
	}
	args = append([]string{"fbus", "serve", "--socket", ts.Getenv("FBUS_NODE")}, args...)
	startReady(ts, name, args, `is ready at`)
}

// offer starts fbus offer and waits until it stands. The process is called as
// the function, or NAME with -as NAME.
func offer(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: offer [-as NAME] FUNCTION [flags] -- PROGRAM")
	}
	fallback := args[0]
	name, args := nameOf(fallback, args)
	startReady(ts, name, append([]string{"fbus", "offer"}, args...), `(?m)^fbus: offering`)
}

// up starts fbus up and waits until its functions stand. The process is called
// up, or NAME with -as NAME.
func up(ts *testscript.TestScript, neg bool, args []string) {
	name, args := nameOf("up", args)
	startReady(ts, name, append([]string{"fbus", "up"}, args...), `(?m)^fbus: offering \d+ function`)
}

func nameOf(name string, args []string) (string, []string) {
	if len(args) > 1 && args[0] == "-as" {
		return args[1], args[2:]
	}
	return name, args
}

func startReady(ts *testscript.TestScript, name string, args []string, ready string) {
	r := runnerOf(ts)
	p := r.start(ts, name, args)
	re := regexp.MustCompile(ready)
	path := filepath.Join(r.work, name+".err")
	poll(ts, name+" to be ready", 50*time.Millisecond, func() bool {
		data, _ := os.ReadFile(path)
		if re.Match(data) {
			return true
		}
		select {
		case <-p.done:
			ts.Fatalf("%s ended before it was ready: %s\n%s", name, p.cmd.ProcessState, data)
		default:
		}
		return false
	})
}

// background starts a command: bg NAME COMMAND [ARG…].
func background(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: bg NAME COMMAND [ARG…]")
	}
	runnerOf(ts).start(ts, args[0], args[1:])
}

// ended waits for a background command to end with a status, and gives its
// output to stdout and stderr: ended NAME STATUS[|STATUS…].
func ended(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: ended NAME STATUS")
	}
	r := runnerOf(ts)
	p := r.started[args[0]]
	if p == nil {
		ts.Fatalf("%s was not started", args[0])
	}
	poll(ts, args[0]+" to end", 50*time.Millisecond, func() bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	})
	delete(r.started, args[0])
	r.order = slices.DeleteFunc(r.order, func(name string) bool { return name == args[0] })
	stdout, _ := os.ReadFile(filepath.Join(r.work, args[0]+".out"))
	stderr, _ := os.ReadFile(filepath.Join(r.work, args[0]+".err"))
	ts.Stdout().Write(stdout)
	ts.Stderr().Write(stderr)
	if got := statusOf(p.cmd.ProcessState); !slices.Contains(strings.Split(args[1], "|"), got) {
		ts.Fatalf("%s ended with %s, not %s\n%.4000s", args[0], got, args[1], stderr)
	}
}

// statusOf is an exit status, or the name of the signal that ended a process.
func statusOf(st *os.ProcessState) string {
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return unix.SignalName(ws.Signal())
	}
	return strconv.Itoa(st.ExitCode())
}

// status runs a command that has to end with an exit status or a signal:
// status STATUS[|STATUS…] COMMAND [ARG…].
func status(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: status STATUS COMMAND [ARG…]")
	}
	got := "0"
	if r := runnerOf(ts); args[1] == "fbus" && r.served(ts, args[2:], args[0]) {
		got = strconv.Itoa(serveLine(ts, args[2:]))
	} else {
		defer r.bound(2 * patience)()
		err := ts.Exec(lookPath(ts, args[1]), args[2:]...)
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			got = statusOf(exit.ProcessState)
		case err != nil:
			ts.Fatalf("%v", err)
		}
	}
	if !slices.Contains(strings.Split(args[0], "|"), got) {
		ts.Fatalf("ended with %s, not %s", got, args[0])
	}
}

// within runs a command that has to end with status 0 in the given time. The
// time is that of a machine with nothing else to do; one that is slow at the
// time gets as much more.
func within(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: within TIME COMMAND [ARG…]")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	slow := slowness()
	began := time.Now()
	status(ts, false, append([]string{"0"}, args[1:]...))
	if took, times := time.Since(began), slow(); took > time.Duration(times*float64(limit)) {
		ts.Fatalf("took %s, more than %s, on a machine that is %.1f times too slow", took.Round(time.Millisecond), limit, times)
	}
}

// slowness looks, until it is asked, how much longer than it should the machine
// takes to run a command that does nothing: the worst, and at least 1.
func slowness() (times func() float64) {
	const nothing = 10 * time.Millisecond
	stop, worst := make(chan struct{}), make(chan time.Duration)
	go func() { // ends when it is asked
		most := nothing
		for {
			began := time.Now()
			exec.Command("true").Run()
			most = max(most, time.Since(began))
			select {
			case <-stop:
				worst <- most
				return
			case <-time.After(nothing):
			}
		}
	}()
	return func() float64 {
		close(stop)
		return float64(<-worst) / float64(nothing)
	}
}

// overruns runs a command that has a limit, LIMIT in its words, which passes. A
// short one is tried first; while that leaves the programs no time for what the
// test needs, as a shell command says, longer ones: overruns STATUS TEST
// COMMAND [ARG…]. Afterwards $LIMIT is the one that was long enough.
func overruns(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: overruns STATUS TEST COMMAND [ARG…]")
	}
	for _, limit := range []string{"200ms", "1s", "4s", "20s"} {
		words := []string{args[0]}
		for _, word := range args[2:] {
			words = append(words, strings.ReplaceAll(word, "LIMIT", limit))
		}
		status(ts, false, words)
		ts.Setenv("LIMIT", limit)
		cmd := exec.Command("sh", "-c", args[1])
		cmd.Dir, cmd.Env = ts.MkAbs("."), environ(ts)
		if cmd.Run() == nil {
			return
		}
	}
	ts.Fatalf("no limit is long enough for: %s", args[1])
}

// sendSignal signals a background command or the process whose pid a file
// holds: signal SIG NAME|FILE.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: signal SIG NAME|FILE")
	}
	sig := unix.SignalNum("SIG" + args[0])
	if sig == 0 {
		ts.Fatalf("no signal %s", args[0])
	}
	if p := runnerOf(ts).started[args[1]]; p != nil {
		ts.Check(p.cmd.Process.Signal(sig))
		return
	}
	for _, pid := range pids(ts, args[1]) {
		ts.Check(syscall.Kill(pid, sig))
	}
}

// pids reads the process ids that a file holds, at least one.
func pids(ts *testscript.TestScript, file string) []int {
	var list []int
	for _, word := range strings.Fields(ts.ReadFile(file)) {
		pid, err := strconv.Atoi(word)
		if err != nil || pid < 2 {
			ts.Fatalf("%s: %q is no process id", file, word)
		}
		list = append(list, pid)
	}
	if len(list) == 0 {
		ts.Fatalf("%s holds no process id", file)
	}
	return list
}

// running reports whether a process exists and is no zombie.
func running(pid int) bool {
	state := processState(pid)
	return state != "" && state != "Z"
}

// processState is the letter of a process's state in proc(5), "" if it has gone.
func processState(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))[0]
}

// stopProcess stops a process and waits until it has stopped.
func stopProcess(t testing.TB, p *os.Process) {
	t.Helper()
	p.Signal(syscall.SIGSTOP)
	eventually(t, "it has stopped", func() bool { return processState(p.Pid) == "T" })
}

// gone waits until all processes whose pids the files hold have ended.
func gone(ts *testscript.TestScript, neg bool, args []string) {
	for _, file := range args {
		for _, pid := range pids(ts, file) {
			poll(ts, fmt.Sprintf("process %d of %s to be gone", pid, file), 50*time.Millisecond, func() bool { return !running(pid) })
		}
	}
}

// alive checks that all processes whose pids the files hold run.
func alive(ts *testscript.TestScript, neg bool, args []string) {
	for _, file := range args {
		for _, pid := range pids(ts, file) {
			if !running(pid) {
				ts.Fatalf("process %d of %s is gone", pid, file)
			}
		}
	}
}

// waitFor waits for an event:
//
//	waitfor file PATH…        all are there and not empty
//	waitfor grep RE FILE      the file has a match
//	waitfor COMMAND [ARG…]    the command succeeds
//
// and, negated, for its opposite.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: waitfor file PATH… | grep RE FILE | COMMAND ARG…")
	}
	what := strings.Join(args, " ")
	var test func() bool
	longest := 50 * time.Millisecond
	switch args[0] {
	case "file":
		test = func() bool {
			for _, path := range args[1:] {
				if st, err := os.Stat(ts.MkAbs(path)); err != nil || st.Size() == 0 && st.Mode().IsRegular() {
					return false
				}
			}
			return true
		}
	case "grep":
		re, err := regexp.Compile("(?m)" + args[1])
		ts.Check(err)
		test = func() bool {
			data, err := os.ReadFile(ts.MkAbs(args[2]))
			return err == nil && re.Match(data)
		}
	default:
		path := lookPath(ts, args[0])
		longest = 300 * time.Millisecond // a process each time
		test = func() bool {
			cmd := exec.Command(path, args[1:]...)
			cmd.Dir, cmd.Env = ts.MkAbs("."), environ(ts)
			return cmd.Run() == nil
		}
	}
	poll(ts, what, longest, func() bool { return test() != neg })
}

// poll waits until test is true, with pauses that grow up to the longest.
func poll(ts *testscript.TestScript, what string, longest time.Duration, test func() bool) {
	for end, pause := time.Now().Add(patience), time.Millisecond; !test(); time.Sleep(pause) {
		if time.Now().After(end) {
			ts.Fatalf("waited %s for %s", patience, what)
		}
		pause = min(2*pause, longest)
	}
}

// countBytes checks the size of a file: bytes N FILE.
func countBytes(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: bytes N FILE")
	}
	if got := strconv.Itoa(len(ts.ReadFile(args[1]))); got != args[0] {
		ts.Fatalf("%s has %s bytes, not %s", args[1], got, args[0])
	}
}

// same checks what a file or stdout holds, white space at its end aside:
// same FILE TEXT.
func same(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: same FILE TEXT")
	}
	if got := strings.TrimRight(ts.ReadFile(args[0]), "\n"); (got == args[1]) == neg {
		ts.Fatalf("%s is %q", args[0], got)
	}
}

// each runs many command lines of fbus in one process: to start one for each would take
// most of the time of a script. A line of stdin is a label, settings of the environment
// as NAME=VALUE, and the words that follow fbus, with tabs between them. For each it
// prints a line "LABEL: STATUS", then the command's output with a tab before each line.
func each() int {
	input, err := io.ReadAll(os.Stdin)
	check(err)
	stdout := os.Stdout
	os.Stdin, err = os.Open(os.DevNull)
	check(err)
	for line := range strings.Lines(string(input)) {
		words := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		label, words := words[0], words[1:]
		restore := []func(){}
		for ; strings.Contains(words[0], "="); words = words[1:] {
			name, value, _ := strings.Cut(words[0], "=")
			old, set := os.LookupEnv(name)
			restore = append(restore, func() {
				os.Setenv(name, old)
				if !set {
					os.Unsetenv(name)
				}
			})
			os.Setenv(name, value)
		}
		file, err := os.CreateTemp("", "each-")
		check(err)
		os.Remove(file.Name())
		os.Args, os.Stdout, os.Stderr = append([]string{"fbus"}, words...), file, file
		status := commands.Main()
		for _, f := range slices.Backward(restore) {
			f()
		}
		output, err := io.ReadAll(io.NewSectionReader(file, 0, math.MaxInt64))
		check(err)
		file.Close()
		fmt.Fprintf(stdout, "%s: %d\n", label, status)
		for line := range strings.Lines(string(output)) {
			fmt.Fprintf(stdout, "\t%s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	return 0
}
