package exec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// keeper is the worker's hand on one keeper process. It knows nothing of what
// programs are for: it runs them one after another and says how each ended.
// One goroutine runs and listens; tell may be called beside it.
type keeper struct {
	pid    int
	start  uint64 // when it began, in the kernel's ticks: its orphans are younger
	file   *os.File
	conn   syscall.RawConn
	number uint64
	idle   int64 // since when, see pool
	buf    [512]byte
}

// keeperEnv is a keeper's own environment; programs get setup's. One thread
// works and little memory is used, so a collection is hardly ever due.
var keeperEnv = []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=16MiB"}

func startKeeper(s *setup) (*keeper, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	k := &keeper{}
	k.pid, err = kids.startKeeper(pair[1])
	unix.Close(pair[1])
	if err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	if st, ok := readStat(k.pid); ok {
		k.start = st.start
	}
	if err = unix.SetNonblock(pair[0], true); err == nil {
		k.file = os.NewFile(uintptr(pair[0]), "keeper")
		if k.conn, err = k.file.SyscallConn(); err == nil {
			err = k.send(s.pack(), nil)
		}
	}
	if err != nil {
		k.end()
		return nil, err
	}
	return k, nil
}

// forkKeeper executes this binary as a keeper with its control socket.
func forkKeeper(control int) (int, error) {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(null)
	return syscall.ForkExec(selfExe, []string{keeperName}, &syscall.ProcAttr{
		Env:   keeperEnv,
		Files: []uintptr{uintptr(null), uintptr(null), 2, uintptr(control)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// run starts a program. An error means that the keeper was dead before: the
// program did not start.
func (k *keeper) run(o *order, fds []int) error {
	k.number++
	o.number = k.number
	return k.send(o.pack(), unix.UnixRights(fds...))
}

// tell sends msgCancel or msgKill for a run. A stopped keeper is woken first.
func (k *keeper) tell(t msgType, number uint64) {
	p := packer{byte(t)}
	p.uint(number)
	k.send(p, nil) // if it fails the keeper is dead, and its listener knows
	unix.Kill(k.pid, unix.SIGCONT)
}

func (k *keeper) send(msg, rights []byte) error {
	return packets(msg, rights, func(packet, rights []byte) error {
		var err error
		werr := k.conn.Write(func(fd uintptr) bool {
			err = ignoringEINTR(func() error {
				return unix.Sendmsg(int(fd), packet, rights, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			})
			return err != unix.EAGAIN
		})
		return errors.Join(werr, err)
	})
}

// next waits for the keeper to say something. io.EOF: it is dead.
// os.ErrDeadlineExceeded: the wait was broken off, and it has said nothing.
func (k *keeper) next() (r report, err error) {
	var n int
	try := func(fd uintptr) bool {
		n, err = readFD(int(fd), k.buf[:])
		return err != unix.EAGAIN
	}
	rerr := k.conn.Read(try)
	if errors.Is(rerr, os.ErrDeadlineExceeded) {
		if cerr := k.conn.Control(func(fd uintptr) { try(fd) }); cerr != nil || err != unix.EAGAIN {
			rerr = cerr
		}
	}
	switch {
	case rerr != nil:
		return r, rerr
	case err != nil:
		return r, err
	case n == 0:
		return r, io.EOF
	}
	return r, r.unpack(k.buf[1:n])
}

// end lets an idle keeper go and waits until it has.
func (k *keeper) end() {
	if k.file != nil {
		k.file.Close()
	}
	kids.reap(k.pid)
}

// bury cleans up behind a keeper that died, or no longer makes sense, in the
// middle of a run: it and all that it held are dead when bury returns.
func (k *keeper) bury() {
	unix.Kill(k.pid, unix.SIGKILL)
	k.end()
	kids.sweep(k.start)
}
