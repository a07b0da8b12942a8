package keeper

import (
	"os"
	ossignal "os/signal"
	"runtime"
	"strconv"
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
	for {
		t, payload, fds, err := h.ctl.next()
		if err != nil {
			closeAll(fds)
			return 0
		}
		switch t {
		case msgSetup:
			if h.setup.unpack(payload) != nil {
				return 1
			}
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
	if o.unpack(payload) != nil || len(fds) != o.descriptors() {
		closeAll(fds)
		return false
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
	return t.hold()
}

// start executes the program. It retries ETXTBSY for a moment: another thread's
// fork may hold a just written program open (golang/go 22315).
func (t *tree) start(o *order, fds []int) error {
	s := &t.h.setup
	argv := o.argv
	if argv == nil {
		argv = s.Argv
	}
	files := []uintptr{uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2])}
	if o.extra > 0 {
		for len(files) < o.extra {
			files = append(files, ^uintptr(0))
		}
		files = append(files, uintptr(fds[3]))
	}
	attr := &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   append(s.Env[:len(s.Env):len(s.Env)], o.env...),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &t.pidfd},
	}
	if t.cgroup >= 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, t.cgroup
	}
	for pause := time.Millisecond; ; pause *= 2 {
		var err error
		if s.limit > 0 {
			t.pid, err = forkLimited(s.limit, s.Path, argv, attr)
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
	msg := append(make([]byte, 1, 65), r.pack()...)
	IgnoringEINTR(func() error { return unix.Sendmsg(h.ctl.fd, msg, nil, nil, unix.MSG_NOSIGNAL) })
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
