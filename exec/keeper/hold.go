package keeper

import (
	"fmt"
	"os"
	ossignal "os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holder is the keeper process itself: it runs one program at a time and is, as
// a subreaper, the parent of everything that the program leaves behind. It works
// on one thread with blocking calls, since every hand-over between threads would
// be on the caller's path.
type holder struct {
	ctl   receiver
	setup Setup
}

// keep is a keeper's main function. It returns when the worker is gone or has
// closed the socket.
func keep() int {
	runtime.LockOSThread()
	closeOnExec()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1
	}
	catchSignals()
	h := &holder{ctl: receiver{fd: controlFD}}
	h.send(&report{kind: msgReady})
	for {
		t, payload, fds, err := h.ctl.next()
		if err != nil {
			closeAll(fds)
			return 0
		}
		switch t {
		case msgSetup:
			if unpack(payload, &h.setup) != nil {
				return 1
			}
			unix.Prctl(unix.PR_SET_TIMERSLACK, h.setup.slack, 0, 0, 0) // programs inherit it
		case msgRun:
			if !h.run(payload, fds) {
				return 0
			}
		default: // a cancel that came too late
			closeAll(fds)
		}
	}
}

// closeOnExec keeps every descriptor beyond 0-2 from programs, including those
// that the worker itself inherited.
func closeOnExec() {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, n := range names {
		if fd, err := strconv.Atoi(n.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// catchSignals lets the keeper survive signals that are meant for its worker.
// Caught and not ignored: ignoring is inherited by programs, catching is not.
// What the worker inherited as ignored is reset for programs by the same means.
func catchSignals() {
	never := make(chan os.Signal, 1)
	ossignal.Notify(never, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	for sig := syscall.Signal(1); sig < 32; sig++ {
		if ossignal.Ignored(sig) {
			ossignal.Notify(never, sig)
		}
	}
}

// run runs one program to the end of its tree. False: the keeper must not be
// used again.
func (h *holder) run(payload []byte, fds []int) bool {
	var o order
	if unpack(payload, &o) != nil {
		closeAll(fds)
		return false
	}
	if len(fds) < o.descriptors() { // the kernel drops those for which there is no room
		closeAll(fds)
		h.send(&report{kind: msgFailed, number: o.number, errno: int(unix.EMFILE)})
		return true
	}
	t := &tree{h: h, number: o.number, pidfd: -1, cgroup: -1, self: os.Getpid()}
	if o.cgroup {
		t.cgroup = fds[len(fds)-1]
		fds = fds[:len(fds)-1]
	}
	err := t.start(&o, fds)
	closeAll(fds)
	defer t.close()
	if err != nil {
		errno, ok := err.(syscall.Errno)
		if !ok {
			errno = unix.EIO
		}
		h.send(&report{kind: msgFailed, number: o.number, errno: int(errno)})
		return true
	}
	if o.Tell {
		h.send(&report{kind: msgBegun, number: o.number})
	}
	return t.hold()
}

// start executes the program. It retries ETXTBSY for a moment: another thread's
// fork may hold a just written program open (golang/go 22315).
func (t *tree) start(o *order, fds []int) error {
	s := &t.h.setup
	argv := o.Argv
	if argv == nil {
		argv = s.Argv
	}
	files := []uintptr{uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2])}
	if o.Extra > 0 {
		for len(files) < o.Extra {
			files = append(files, ^uintptr(0))
		}
		files = append(files, uintptr(fds[3]))
	}
	attr := &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   append(s.Env[:len(s.Env):len(s.Env)], o.Env...),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &t.pidfd},
	}
	if t.cgroup >= 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, t.cgroup
	}
	for pause := time.Millisecond; ; pause *= 2 {
		var err error
		if s.Memory > 0 {
			t.pid, err = forkLimited(s.Memory, s.Path, argv, attr)
		} else {
			t.pid, err = syscall.ForkExec(s.Path, argv, attr)
		}
		if err != unix.ETXTBSY || pause > 100*time.Millisecond {
			return err
		}
		time.Sleep(pause)
	}
}

// send reports to the worker. It fails when the worker is gone, which the next
// poll shows as well.
func (h *holder) send(r *report) {
	msg := append(make([]byte, 1, 65), pack(r.kind, r)...)
	IgnoringEINTR(func() error { return unix.Sendmsg(h.ctl.fd, msg, nil, nil, unix.MSG_NOSIGNAL) })
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// refusedAfter is added to the grace before processes that a keeper may not kill (they
// changed their uid) are left alone.
const refusedAfter = 2 * time.Second

// tree is a program and everything that it started, from the start until
// nothing is left. Its stages only go forward.
type tree struct {
	h      *holder
	self   int    // the keeper
	number uint64 // of the run
	pid    int    // of the program
	pidfd  int    // of the program; -1 if the kernel gives none
	cgroup int    // the run's own directory, or -1

	stage    stage
	exited   bool // the program is reaped
	ended    bool // the worker asked for the end before that
	orphaned bool // the worker is gone

	signalled map[int]bool // processes that got TERM: none gets it twice
	killAt    time.Time    // end of the grace
	giveUpAt  time.Time    // end of trying to kill what refuses
	refused   []string     // what refused last
	pause     time.Duration
}

type stage int

const (
	stageRunning stage = iota
	stageTerm          // TERM was sent, grace runs
	stageKill
)

// hold waits for the program, then for its tree. False: the keeper must not be
// used again.
func (t *tree) hold() bool {
	t.pause = time.Second
	for {
		asked := t.poll()
		// The program first: its own exit wins over a cancel that came with it.
		if t.reap() {
			return !t.orphaned
		}
		if asked {
			t.listen()
		}
		if !t.advance() {
			return false
		}
	}
}

// poll waits for the program's exit, a message of the worker, or t.pause.
func (t *tree) poll() (asked bool) {
	fds := [2]unix.PollFd{{Fd: -1}, {Fd: -1}}
	if !t.orphaned {
		fds[0] = unix.PollFd{Fd: int32(t.h.ctl.fd), Events: unix.POLLIN}
	}
	if !t.exited && t.pidfd >= 0 {
		fds[1] = unix.PollFd{Fd: int32(t.pidfd), Events: unix.POLLIN}
	}
	wait := t.pause
	if t.stage == stageTerm {
		wait = min(wait, max(time.Until(t.killAt), 0))
	}
	if t.pidfd < 0 {
		wait = min(wait, 5*time.Millisecond) // nothing else shows the exit
	}
	ts := unix.NsecToTimespec(int64(wait))
	n, err := unix.Ppoll(fds[:], &ts, nil)
	return err == nil && n > 0 && fds[0].Revents != 0
}

// reap collects children that died, and reports the program's exit. done: nothing
// is left, and that was reported.
func (t *tree) reap() (done bool) {
	var status unix.WaitStatus
	exited := false
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECHILD:
			done = true
		case pid == t.pid && !t.exited:
			t.exited, exited, status = true, true, ws
			continue
		case pid > 0:
			delete(t.signalled, pid)
			if t.stage == stageRunning {
				t.pause = time.Second // there are orphans: look often
			}
			continue
		}
		break
	}
	if exited {
		t.h.send(&report{kind: msgExited, number: t.number, status: uint32(status), ended: t.ended, gone: done})
		if !done {
			t.term()
		}
	} else if done {
		t.h.send(&report{kind: msgGone, number: t.number})
	}
	return done
}

// listen takes one message from the worker.
func (t *tree) listen() {
	kind, payload, fds, err := t.h.ctl.next()
	closeAll(fds)
	if err != nil {
		t.orphaned = true
		t.kill()
		return
	}
	var o order
	if unpack(payload, &o) != nil || o.number != t.number {
		return
	}
	switch kind {
	case msgCancel:
		t.ended = t.ended || !t.exited
		if t.stage == stageRunning {
			t.term()
		}
	case msgKill:
		t.ended = t.ended || !t.exited
		t.kill()
	}
}

// advance does one step of the stage after each wait. False: give up.
func (t *tree) advance() bool {
	switch t.stage {
	case stageRunning: // look for orphans that died: often while there are some, seldom when there are none
		t.pause = min(2*t.pause, 8*time.Second)
	case stageTerm:
		if !time.Now().Before(t.killAt) {
			t.kill()
			break
		}
		if t.exited {
			t.termOrphans()
		}
		t.pause = min(2*t.pause, 50*time.Millisecond)
	case stageKill:
		t.killAll()
		t.pause = min(2*t.pause, 20*time.Millisecond)
		if len(t.refused) > 0 && time.Now().After(t.giveUpAt) {
			return t.giveUp()
		}
	}
	return true
}

// term sends TERM to everything, once. A stopped process gets it when it
// continues, so CONT follows.
func (t *tree) term() {
	if t.stage != stageRunning {
		return
	}
	t.stage = stageTerm
	t.killAt = time.Now().Add(t.h.setup.Grace)
	t.pause = 500 * time.Microsecond
	t.signalled = make(map[int]bool)
	group := 0
	if !t.exited {
		// As a terminal does it, to the whole group at once. Not reaped, so
		// the group's number is still its own.
		group = t.pid
		unix.Kill(-group, unix.SIGTERM)
		unix.Kill(-group, unix.SIGCONT)
	}
	walk(t.self, func(fd int, s procStat) {
		if s.pgrp != group {
			signal(fd, s.pid, unix.SIGTERM)
			signal(fd, s.pid, unix.SIGCONT)
		}
		t.signalled[s.pid] = true
	})
}

// termOrphans sends TERM to processes that have become ours since. Only to ours:
// what a process that handles TERM starts in order to clean up shall finish.
func (t *tree) termOrphans() {
	for _, pid := range childrenOf(t.self) {
		if !t.signalled[pid] {
			t.signalled[pid] = true
			unix.Kill(pid, unix.SIGTERM)
			unix.Kill(pid, unix.SIGCONT)
		}
	}
}

func (t *tree) kill() {
	if t.stage == stageKill {
		return
	}
	t.stage = stageKill
	t.giveUpAt = time.Now().Add(t.h.setup.Grace + refusedAfter)
	t.pause = 100 * time.Microsecond
	t.killAll()
}

// killAll kills every process that it finds. One forked in between is found next time.
func (t *tree) killAll() {
	if t.cgroup >= 0 {
		killCgroup(t.cgroup)
	}
	// Own children first and without reading their state: their numbers are safe,
	// and a process that forks and exits all the time would be gone by then.
	for _, pid := range childrenOf(t.self) {
		unix.Kill(pid, unix.SIGKILL)
	}
	var refused []string
	alive := 0
	walk(t.self, func(fd int, s procStat) {
		if s.state == 'Z' {
			return
		}
		alive++
		if signal(fd, s.pid, unix.SIGKILL) == unix.EPERM {
			refused = append(refused, fmt.Sprintf("process %d", s.pid))
		}
	})
	if len(refused) < alive {
		refused = nil // some are still dying, and may leave orphans
	}
	t.refused = refused
}

// giveUp reports the survivors and retires the keeper.
func (t *tree) giveUp() bool {
	if !t.exited {
		t.h.send(&report{kind: msgExited, number: t.number, status: uint32(unix.SIGKILL), ended: true})
	}
	t.h.send(&report{kind: msgGone, number: t.number,
		survivors: strings.Join(t.refused[:min(len(t.refused), 10)], ", ")})
	return false
}

func (t *tree) close() {
	for _, fd := range []int{t.pidfd, t.cgroup} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// killCgroup ends a whole group in one step, which even a fork storm cannot
// outrun. Before Linux 5.14 there is no such file, and walking must do.
func killCgroup(dir int) {
	fd, err := unix.Openat(dir, "cgroup.kill", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "cgroup.kill")
	f.Write([]byte("1"))
	f.Close()
}
