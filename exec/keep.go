package exec

import (
	"os"
	ossignal "os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holder is the keeper's own side: a process that runs one program at a time
// and is, as a subreaper, the parent of all that the program leaves behind.
// It works on one thread with blocking calls, since every hand-over between
// threads would be on the caller's path.
type holder struct {
	ctl   receiver
	setup setup
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

// closeOnExec keeps every descriptor beyond 0-2 from programs, also those
// that whoever started the worker left open in it.
func closeOnExec() {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, n := range names {
		if fd, ok := atoi(n.Name()); ok && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// catchSignals makes the keeper outlive what is meant for its worker. Caught
// and not ignored: ignoring is inherited by programs, catching is not. What
// the worker inherited as ignored is reset for programs by the same means.
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

// start executes the program. Text file busy is passed over for a moment:
// another thread's fork may hold a just written program open (golang/go
// 22315).
func (t *tree) start(o *order, fds []int) error {
	s := &t.h.setup
	argv := o.argv
	if argv == nil {
		argv = s.argv
	}
	attr := &syscall.ProcAttr{
		Dir:   s.dir,
		Env:   append(s.env[:len(s.env):len(s.env)], o.env...),
		Files: files(o.extra, fds),
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &t.pidfd},
	}
	if t.cgroup >= 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, t.cgroup
	}
	for pause := time.Millisecond; ; pause *= 2 {
		var err error
		if s.limit > 0 {
			t.pid, err = forkLimited(s.limit, s.path, argv, attr)
		} else {
			t.pid, err = syscall.ForkExec(s.path, argv, attr)
		}
		if err != unix.ETXTBSY || pause > 100*time.Millisecond {
			return err
		}
		time.Sleep(pause)
	}
}

// files is the program's table of descriptors.
func files(extra int, fds []int) []uintptr {
	table := []uintptr{uintptr(fds[0]), uintptr(fds[1]), uintptr(fds[2])}
	if extra > 0 {
		for len(table) < extra {
			table = append(table, ^uintptr(0))
		}
		table = append(table, uintptr(fds[3]))
	}
	return table
}

// send tells the worker. A failure means that it is gone, which the next poll
// shows as well.
func (h *holder) send(r *report) {
	msg := append(make([]byte, 1, 65), r.pack()...)
	for {
		if err := unix.Sendmsg(h.ctl.fd, msg, nil, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return
		}
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// atoi reads a non-negative number.
func atoi(s string) (n int, ok bool) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || n > 1<<30 {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, s != ""
}
