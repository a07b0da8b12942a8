package testscripts

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/commands"

	"github.com/rogpeppe/go-internal/testscript"

	"golang.org/x/sys/unix"
)

// To start fbus takes most of the time of a script. The command lines of scripts that
// need no process of their own are therefore run in few: one runs a line at a time, with
// the environment, the directory and the files that a process of its own would have.

// alone are the commands that need a process of their own: they start programs, or run
// for long.
var alone = []string{"serve", "offer", "up", "run", "bench", "echo", "plain", "wait", "limit"}

// server is a process that runs command lines.
type server struct {
	cmd      *exec.Cmd
	requests *json.Encoder
	statuses *json.Decoder
}

// request is a command line to run.
type request struct {
	Args, Env        []string
	Dir, Out, Errors string
}

// idle holds the servers that nobody uses. They end with the test.
var idle = make(chan *server, 100)

// serveRequests runs the command lines that arrive on descriptor 3, and writes their
// statuses to 4.
func serveRequests() int {
	requests, statuses := json.NewDecoder(os.NewFile(3, "requests")), json.NewEncoder(os.NewFile(4, "statuses"))
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	for {
		var r request
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return 0
		} else {
			check(err)
		}
		os.Clearenv()
		for _, kv := range r.Env {
			name, value, _ := strings.Cut(kv, "=")
			check(os.Setenv(name, value))
		}
		check(os.Chdir(r.Dir))
		for fd, path := range []string{os.DevNull, r.Out, r.Errors} {
			file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
			check(err)
			check(unix.Dup3(int(file.Fd()), fd, 0))
			file.Close()
		}
		os.Args = append([]string{"fbus"}, r.Args...)
		status := commands.Main()
		check(os.Chdir("/")) // no part of the script's any more
		check(statuses.Encode(status))
	}
}

// startServer starts a server.
func startServer() (*server, error) {
	in, requests, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	statuses, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command("served")
	cmd.ExtraFiles = []*os.File{in, out}
	cmd.Dir = "/"
	return &server{cmd: cmd, requests: json.NewEncoder(requests), statuses: json.NewDecoder(statuses)}, cmd.Start()
}

// serveLine runs a command line of fbus for a script, and returns its status.
func serveLine(ts *testscript.TestScript, words []string) int {
	var s *server
	select {
	case s = <-idle:
	default:
		var err error
		s, err = startServer()
		ts.Check(err)
	}
	r := request{Args: words, Env: runnerOf(ts).environ(ts), Dir: ts.MkAbs(".")}
	var files [2]*os.File
	for i, path := range []*string{&r.Out, &r.Errors} {
		file, err := os.CreateTemp("", "line-")
		ts.Check(err)
		defer os.Remove(file.Name())
		defer file.Close()
		files[i], *path = file, file.Name()
	}
	late := time.AfterFunc(2*patience, func() { s.cmd.Process.Kill() })
	defer late.Stop()
	var status int
	if err := errors.Join(s.requests.Encode(r), s.statuses.Decode(&status)); err != nil {
		status = -1
	}
	for i, w := range []io.Writer{ts.Stdout(), ts.Stderr()} {
		data, err := io.ReadAll(files[i])
		ts.Check(err)
		w.Write(data)
		if len(data) > 0 {
			ts.Logf("[%s]\n%s", []string{"stdout", "stderr"}[i], data)
		}
	}
	if status < 0 {
		s.cmd.Wait()
		ts.Fatalf("fbus %s ended the process that it ran in: %v", strings.Join(words, " "), s.cmd.ProcessState)
	}
	idle <- s
	return status
}

// served reports whether a line of a script can be run by a server.
func (r *runner) served(ts *testscript.TestScript, words []string, status string) bool {
	// --status-fd needs a descriptor of the script's, FBUS_TEST_CLOCK a clock of its own.
	if len(words) == 0 || r.stdin || slices.Contains(words, "--status-fd") || ts.Getenv("FBUS_TEST_CLOCK") != "" {
		return false
	}
	return status == "64" || !slices.Contains(alone, words[0])
}

// fbusLine is the command fbus of scripts.
func fbusLine(ts *testscript.TestScript, neg bool, args []string) {
	failed := false
	if runnerOf(ts).served(ts, args, "") {
		failed = serveLine(ts, args) != 0
	} else {
		failed = ts.Exec("fbus", args...) != nil
	}
	if failed != neg {
		ts.Fatalf("fbus %s: failed: %t", strings.Join(args, " "), failed)
	}
}

// sets matches the variables that a script sets, readsStdin a script that has input for
// command lines.
var (
	sets       = regexp.MustCompile(`(?m)^(?:\[.*\] )?env (\w+)=`)
	readsStdin = regexp.MustCompile(`(?m)^(?:\[.*\] )?stdin `)
)

// environ is the script's whole environment.
func (r *runner) environ(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range r.names {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return append(env, "PWD="+ts.MkAbs("."))
}

// withFbus puts fbus on PATH when the tests are run, where it is no command of scripts.
type withFbus struct{ m *testing.M }

func (w withFbus) Run() int {
	self, err := os.Executable()
	check(err)
	path := filepath.Join(filepath.SplitList(os.Getenv("PATH"))[0], "fbus")
	if os.Link(self, path) != nil {
		data, err := os.ReadFile(self)
		check(err)
		check(os.WriteFile(path, data, 0o755))
	}
	return w.m.Run()
}
