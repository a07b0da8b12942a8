package testscripts

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Addresses of the machines: RFC 5737.
const (
	nodeAddress  = "192.0.2.1"
	movedAddress = "192.0.2.2"
	farAddress   = "192.0.2.3"
)

// far is a node and a worker on one machine, and callers and a worker on another,
// whose only way to it is a cable.
type far struct {
	t         *testing.T
	dir       string
	near, far *machine
	toNode    *line
	toFar     *line
	worker    *said // on the far machine
	giveUp    time.Duration
}

// newFar makes it, with peers that may be silent for so long.
func newFar(t *testing.T, giveUp time.Duration) *far {
	f := &far{t: t, giveUp: giveUp, dir: t.TempDir(), near: newMachine(t, nodeAddress), far: newMachine(t, farAddress)}
	c := connect(t, f.far, f.near)
	f.toNode, f.toFar = &c.there, &c.back
	f.serve()
	ticket := f.command(f.near, "invite", "-q", "--reusable", "--name", "far", "--call", "*", "--offer", "*",
		"--address", nodeAddress+":10101", "--address", movedAddress+":10101", "-o", f.path("ticket"))
	if out, err := ticket.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f.offer(f.near, "near")
	f.worker = f.offer(f.far, "far")
	return f
}

func (f *far) path(name string) string { return filepath.Join(f.dir, name) }

// command is fbus as it is run on one of the machines.
func (f *far) command(m *machine, args ...string) *exec.Cmd {
	cmd := exec.Command("fbus", args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "FBUS_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	if m == f.far {
		cmd.Env = append(cmd.Env, "FBUS_HOME="+f.path("far-home"), "FBUS_TICKET="+f.path("ticket"))
		cmd.Args = slices.Insert(cmd.Args, 2, "--keepalive", f.giveUp.String())
	} else {
		cmd.Env = append(cmd.Env, "FBUS_HOME="+f.path("home"), "FBUS_NODE="+f.path("bus.sock"))
	}
	cmd.Env = append(cmd.Env, "FBUS_STATE="+f.path("state"), "DIR="+f.dir)
	return cmd
}

// said is a command that runs, and what it says.
type said struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  bytes.Buffer
	err  *os.File
	done chan struct{} // closed when it has ended
	took time.Duration
}

// begin starts a command on a machine until the test ends.
func (f *far) begin(m *machine, cmd *exec.Cmd) *said {
	f.t.Helper()
	s := &said{t: f.t, cmd: cmd, done: make(chan struct{})}
	var err error
	if s.err, err = os.CreateTemp(f.dir, "stderr-"); err != nil {
		f.t.Fatal(err)
	}
	cmd.Stderr = s.err
	if cmd.Stdout == nil {
		cmd.Stdout = &s.out
	}
	began := time.Now()
	if err := m.start(cmd); err != nil {
		f.t.Fatal(err)
	}
	go func() { // ends with the command
		cmd.Wait()
		s.took = time.Since(began)
		close(s.done)
	}()
	f.t.Cleanup(func() {
		if !s.ended() {
			cmd.Process.Signal(syscall.SIGCONT)
			cmd.Process.Signal(syscall.SIGINT)
			time.AfterFunc(100*time.Millisecond, func() { cmd.Process.Signal(syscall.SIGINT) })
			<-s.done
		}
		if f.t.Failed() {
			f.t.Logf("%v: %v after %v: %s", cmd.Args[1:], cmd.ProcessState, s.took.Round(time.Millisecond), s.stderr())
		}
		s.err.Close()
	})
	return s
}

func (s *said) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *said) stderr() string {
	text, _ := os.ReadFile(s.err.Name())
	return string(text)
}

// eventually waits for an event.
func (f *far) eventually(what string, test func() bool) {
	f.t.Helper()
	for end := time.Now().Add(2 * patience); !test(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("waited %s: %s", 2*patience, what)
		}
	}
}

func (f *far) serve() {
	f.t.Helper()
	s := f.begin(f.near, f.command(f.near, "serve", "-v", "--socket", f.path("bus.sock"), "--keepalive", f.giveUp.String(), "--network", "far"))
	f.eventually("the node is ready", func() bool { return strings.Contains(s.stderr(), "is ready at") })
}

// offer offers a function that copies its input, or, told so, says where it runs
// and stays.
func (f *far) offer(m *machine, name string) *said {
	f.t.Helper()
	program := `case $1 in '') exec cat;; hold) echo $$ >"$DIR/$2"; exec sleep 600;; flood) echo $$ >"$DIR/$2"; exec cat /dev/zero;; *) echo $1;; esac`
	s := f.begin(m, f.command(m, "offer", name, "--worker", name, "--slots", "8", "--args", "argv", "--", "sh", "-c", program, "sh"))
	f.eventually(name+" is offered", func() bool { return strings.Contains(s.stderr(), "offering") })
	return s
}

// hold begins a call of a function on one machine that does not end by itself, and
// waits until its program runs.
func (f *far) hold(m *machine, function string, flags ...string) (call *said, pid func() int) {
	f.t.Helper()
	return f.run(m, function, "hold", flags)
}

func (f *far) run(m *machine, function, what string, flags []string) (call *said, pid func() int) {
	f.t.Helper()
	file := fmt.Sprintf("pid-%d", rand.Uint64())
	call = f.begin(m, f.command(m, append(append([]string{"call"}, flags...), function, what, file)...))
	read := func() int {
		pid := 0
		text, _ := os.ReadFile(f.path(file))
		fmt.Sscan(string(text), &pid)
		return pid
	}
	f.eventually("the program of "+function+" runs", func() bool { return read() > 0 || call.ended() })
	return call, read
}

// ends waits for a command, which has to end with that status and message.
func (f *far) ends(s *said, status int, message string) {
	f.t.Helper()
	select {
	case <-s.done:
	case <-time.After(2 * patience):
		f.t.Fatalf("%v does not end", s.cmd.Args[1:])
	}
	if got := s.cmd.ProcessState.ExitCode(); got != status || !strings.Contains(s.stderr(), message) {
		f.t.Errorf("%v ends with %d: %s; want %d: %s", s.cmd.Args[1:], got, s.stderr(), status, message)
	}
}

// answers makes a small call, which has to succeed, waiting for the function.
func (f *far) answers(m *machine, function string) {
	f.t.Helper()
	s := f.begin(m, f.command(m, "call", "-w", "40s", function, "word"))
	f.ends(s, 0, "")
	if s.out.String() != "word\n" {
		f.t.Errorf("%s answers %q", function, s.out.String())
	}
}

// copying is a call that sends random bytes through a function.
type copying struct {
	*said
	sent hash.Hash
	got  *counted
}

// counted hashes and counts what is written to it.
type counted struct {
	hash.Hash
	n atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.Hash.Write(p)
}

// copying begins such a call.
func (f *far) copying(m *machine, function string, size int, flags ...string) *copying {
	f.t.Helper()
	cmd := f.command(m, append(append([]string{"call"}, flags...), function)...)
	c := &copying{sent: sha256.New(), got: &counted{Hash: sha256.New()}}
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), int64(size)), c.sent)
	cmd.Stdout = c.got
	c.said = f.begin(m, cmd)
	return c
}

// whole waits until all has come back, as it was.
func (c *copying) whole(f *far) {
	f.t.Helper()
	f.ends(c.said, 0, "")
	if !bytes.Equal(c.sent.Sum(nil), c.got.Sum(nil)) {
		f.t.Errorf("%v: %d bytes came back, others than were sent", c.cmd.Args[1:], c.got.n.Load())
	}
}

// TestFarBreaks: when the way between node and far machine breaks during calls,
// each ends by its deadline, or when the peer is given up, with the status that
// says so; nothing runs on for nobody; and when the way is there again the worker
// is, too.
func TestFarBreaks(t *testing.T) {
	t.Parallel()
	for _, broken := range []struct {
		name        string
		begin, mend func(f *far)
	}{
		{"link down",
			func(f *far) { f.far.setLink(f.t, interfaceName, false) },
			func(f *far) { f.far.setLink(f.t, interfaceName, true) }},
		{"nothing gets to the node",
			func(f *far) { f.toNode.cut.Store(true) },
			func(f *far) { f.toNode.cut.Store(false) }},
		{"nothing gets back",
			func(f *far) { f.toFar.cut.Store(true) },
			func(f *far) { f.toFar.cut.Store(false) }},
		{"the node has another address",
			func(f *far) { f.near.setAddress(f.t, movedAddress) },
			func(f *far) {}},
	} {
		t.Run(broken.name, func(t *testing.T) {
			if broken.name != "link down" {
				long(t)
			}
			t.Parallel()
			f := newFar(t, 5*time.Second)
			fromFar, runsNear := f.hold(f.far, "near")
			fromFarTimed, _ := f.hold(f.far, "near", "-t", "2s")
			fromNear, runsFar := f.hold(f.near, "far")
			fromNearTimed, _ := f.hold(f.near, "far", "-t", "2s")
			broken.begin(f)
			f.ends(fromFarTimed, 124, "deadline of 2s exceeded")
			f.ends(fromNearTimed, 124, "deadline of 2s exceeded")
			f.ends(fromNear, 74, "worker far was lost: the call may have run")
			f.ends(fromFar, 255, "may have run")
			f.eventually("the programs of lost calls are ended", func() bool { return !running(runsNear()) && !running(runsFar()) })
			broken.mend(f)
			f.answers(f.near, "far")
			f.answers(f.far, "near")
		})
	}
}

// TestFarStopped: who is stopped is silent, but not dead: its machine answers. Its
// calls go on when it does, however long that was.
func TestFarStopped(t *testing.T) {
	long(t)
	t.Parallel()
	f := newFar(t, 6*time.Second)
	const size = 32 << 20
	caller := f.copying(f.far, "near", size)
	worker := f.copying(f.near, "far", size)
	f.eventually("bytes come", func() bool { return caller.got.n.Load() > 0 && worker.got.n.Load() > 0 })
	pids := []int{caller.cmd.Process.Pid, f.worker.cmd.Process.Pid}
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGSTOP)
	}
	time.Sleep(3 * f.giveUp / 2) // nothing is to happen
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGCONT)
	}
	caller.whole(f)
	worker.whole(f)
}

// TestFarStoppedThenGone: a stopped peer whose machine answers no more is dead.
func TestFarStoppedThenGone(t *testing.T) {
	long(t)
	t.Parallel()
	f := newFar(t, 6*time.Second)
	caller, pid := f.run(f.far, "near", "flood", []string{"-o", os.DevNull})
	caller.cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(3 * f.giveUp / 2) // it is kept as long as its machine answers
	if !running(pid()) {
		t.Fatal("a stopped caller was given up")
	}
	f.toNode.cut.Store(true)
	f.eventually("its program is ended", func() bool { return !running(pid()) })
}

// TestFarBad: over a way that loses packets, or takes its time, bytes are exact,
// and calls end as they do elsewhere.
func TestFarBad(t *testing.T) {
	t.Parallel()
	for _, bad := range []struct {
		name  string
		begin func(l *line)
	}{
		{"one packet in ten is lost", func(l *line) { l.lossy.Store(true) }},
		{"200 ms later", func(l *line) { l.delay.Store(int64(200 * time.Millisecond)) }},
	} {
		t.Run(bad.name, func(t *testing.T) {
			if bad.name != "one packet in ten is lost" {
				long(t)
			}
			t.Parallel()
			f := newFar(t, 10*time.Second)
			bad.begin(f.toNode)
			bad.begin(f.toFar)
			const size = 1 << 20
			copies := []*copying{
				f.copying(f.far, "near", size, "-w", "30s"),
				f.copying(f.near, "far", size, "-w", "30s"),
			}
			timed := f.begin(f.far, f.command(f.far, "call", "-w", "30s", "-t", "9s", "near", "hold", "pid-far"))
			timedFar, _ := f.hold(f.near, "far", "-t", "2s")
			f.answers(f.far, "near")
			f.answers(f.near, "far")
			for _, c := range copies {
				c.whole(f)
			}
			f.ends(timed, 124, "deadline of 9s exceeded")
			f.ends(timedFar, 124, "deadline of 2s exceeded")
			if f.toNode.passed.Load() == 0 || f.toFar.passed.Load() == 0 {
				t.Error("the cable was not used")
			}
		})
	}
}
