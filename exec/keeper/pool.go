package keeper

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Setup describes what all programs of a Pool have in common.
type Setup struct {
	Path   string   // the program, absolute
	Argv   []string // its command line, where an Order has no other
	Env    []string
	Dir    string        // "" is the worker's own directory
	Grace  time.Duration // from TERM to KILL
	Memory int64         // bytes that one program may use; 0 is no limit

	slack uintptr // timer slack of programs, in nanoseconds: the worker's own
}

// Order starts one program.
type Order struct {
	Argv  []string // nil: the setup's
	Env   []string // added to the setup's
	Extra int      // a further descriptor that the program gets, by its number there; 0 is none
	Tell  bool     // report that the program was executed: see Process.Executed
}

// idleAfter is how long keepers are kept that no program needs.
var idleAfter = 30 * time.Second

// Pool holds one function's keepers. Its methods may be used from several
// goroutines.
type Pool struct {
	setup  Setup
	memory *memory

	mu     sync.Mutex // guards what follows
	idle   []*keeper  // the last used is last
	trim   *time.Timer
	closed bool
}

// NewPool starts a first keeper: the first call need not pay for that, and what
// prevents keepers from starting shows when the function is offered.
func NewPool(s Setup) (*Pool, error) {
	p := &Pool{setup: s, memory: newMemory(s.Memory)}
	if slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err == nil {
		p.setup.slack = uintptr(slack)
	}
	if p.memory.dir != "" {
		p.setup.Memory = 0 // keepers have nothing to limit
	}
	k, err := startKeeper(&p.setup)
	if err != nil {
		return nil, err
	}
	if err := k.awaitReady(); err != nil {
		k.discard()
		return nil, err
	}
	p.idle = []*keeper{k}
	return p, nil
}

// Probe returns an error if no keeper could be started now.
func (p *Pool) Probe() error {
	k, err := p.take()
	if err != nil {
		return err
	}
	if err := k.awaitReady(); err != nil {
		k.discard()
		return err
	}
	p.put(k)
	return nil
}

// MemoryBy names what limits the programs' memory: "cgroup", "rlimit", or ""
// without a limit.
func (p *Pool) MemoryBy() string {
	switch {
	case p.memory.bytes <= 0:
		return ""
	case p.memory.dir != "":
		return "cgroup"
	}
	return "rlimit"
}

// Start has a keeper start a program with descriptors 0, 1 and 2, and the extra
// one as the fourth if the order has one. They stay the caller's to close. An
// error means that no keeper could be started; that the program cannot be
// executed is in its End.
func (p *Pool) Start(o Order, fds ...int) (*Process, error) {
	g, err := p.memory.group()
	if err != nil {
		return nil, err
	}
	msg := order{Order: o, cgroup: g != nil}
	if g != nil {
		fds = append(fds[:len(fds):len(fds)], g.fd)
	}
	for try := 0; ; try++ {
		k, err := p.take()
		if err == nil {
			err = k.awaitReady()
		}
		if err == nil {
			if err = k.run(&msg, fds); err == nil {
				return &Process{pool: p, k: k, number: msg.number, group: g}, nil
			}
		}
		if k != nil {
			k.discard() // it was killed while it was idle, so the program has not started
		}
		if k == nil || try == 3 {
			g.remove()
			return nil, err
		}
	}
}

func (p *Pool) take() (*keeper, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		k := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return k, nil
	}
	p.mu.Unlock()
	return startKeeper(&p.setup)
}

func (p *Pool) put(k *keeper) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.idle = time.Now().UnixNano()
	p.idle = append(p.idle, k)
	if len(p.idle) > 1 && p.trim == nil && !p.closed {
		p.trim = time.AfterFunc(idleAfter, p.endIdle)
	}
}

// endIdle ends keepers that were idle for long, except the last used one.
func (p *Pool) endIdle() {
	p.mu.Lock()
	p.trim = nil
	before := time.Now().Add(-idleAfter).UnixNano()
	n := 0
	for n < len(p.idle)-1 && p.idle[n].idle <= before {
		n++
	}
	if len(p.idle)-n > 1 && !p.closed {
		p.trim = time.AfterFunc(idleAfter, p.endIdle)
	}
	p.endFirst(n)
}

// endFirst ends the n keepers that have been idle for longest. It unlocks p.mu.
func (p *Pool) endFirst(n int) {
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.mu.Unlock()
	for _, k := range old {
		k.end()
	}
}

// Trim ends idle keepers at once, except the last used one: they take descriptors and threads.
func (p *Pool) Trim() {
	p.mu.Lock()
	p.endFirst(max(0, len(p.idle)-1))
}

// Close ends all keepers. No process may be left.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	if p.trim != nil {
		p.trim.Stop()
	}
	p.endFirst(len(p.idle))
}

// Process is a program that a keeper holds, with everything that it has started.
type Process struct {
	// Executed, if set before Wait, is called there when the program was executed, and its
	// Order has Tell.
	Executed func()

	pool   *Pool
	number uint64 // of the keeper's run
	group  *group // nil: cgroups do not limit its memory

	mu sync.Mutex // guards k
	k  *keeper    // nil once nothing of the program is left: the keeper may hold another
}

// End describes how a program ended. The zero End means that its keeper was
// killed before the program's exit was known.
type End struct {
	Errno       syscall.Errno // not 0: the program could not be executed
	Exited      bool          // the program exited, with Status
	Status      syscall.WaitStatus
	Asked       bool   // Cancel or Kill came before the program exited
	OutOfMemory bool   // the kernel killed it for its memory limit
	Survivors   string // what could not be killed, in words
}

// Cancel ends the process tree: TERM, the grace, KILL. It does nothing once the
// tree is gone.
func (p *Process) Cancel() { p.signal(msgCancel) }

// Kill kills the process tree, also one that a Cancel is ending.
func (p *Process) Kill() { p.signal(msgKill) }

func (p *Process) signal(t msgType) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.k == nil {
		return
	}
	p.k.send(pack(t, &order{number: p.number}), nil) // if it fails the keeper is dead, and Wait sees it
	unix.Kill(p.k.pid, unix.SIGCONT)                 // a stopped keeper has to wake
}

// Running reports whether nothing is known of the program's end, nor of its keeper's.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 1
	if p.k != nil {
		p.k.conn.Control(func(fd uintptr) {
			n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		})
	}
	return n == 0
}

// Wait returns when nothing is left of the process tree. If exited is not nil it
// is called when the program itself has exited, before what it left behind is
// ended. Only one goroutine may wait.
func (p *Process) Wait(exited func(End)) (end End) {
	for {
		rep, err := p.k.next()
		switch {
		case err != nil:
			p.release(&end, true)
			return end
		case rep.number != p.number:
			continue
		case rep.kind == msgBegun:
			if p.Executed != nil {
				p.Executed()
			}
			continue
		case rep.kind == msgFailed:
			end.Errno = syscall.Errno(rep.errno)
		case rep.kind == msgExited:
			end.Exited, end.Status, end.Asked = true, syscall.WaitStatus(rep.status), rep.ended
			end.OutOfMemory = p.group.oom()
			if exited != nil {
				exited(end)
			}
			if !rep.gone {
				continue
			}
		case rep.kind == msgGone:
			end.Survivors = rep.survivors
		}
		p.release(&end, false)
		return end
	}
}

// release returns the keeper to the pool, or ends it, or cleans up after a dead
// one: it and all that it held are dead when release returns.
func (p *Process) release(end *End, dead bool) {
	p.mu.Lock()
	k := p.k
	p.k = nil
	p.mu.Unlock()
	switch {
	case dead:
		k.discard()
		end.OutOfMemory = end.OutOfMemory || p.group.oom()
	case end.Survivors != "":
		k.end()
	default:
		p.pool.put(k)
	}
	p.group.remove()
}

// keeper is the worker's side of one keeper process, which runs programs one
// after another and reports how each ended. One goroutine runs and listens; send
// may be called at the same time.
type keeper struct {
	pid    int
	start  uint64 // when it began, in the kernel's ticks: its orphans are younger
	file   *os.File
	conn   syscall.RawConn
	number uint64
	ready  bool   // it has said so
	words  []byte // what it wrote on stderr: it crashes
	idle   int64  // since when, see Pool
	buf    [512]byte
}

// Env is a keeper's own environment; programs get Setup's. One thread works and
// little memory is used, so a collection is hardly ever needed.
var Env = []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=16MiB", noTraceback}

func startKeeper(s *Setup) (*keeper, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	k := &keeper{}
	_, err = Adopt(func() (pid int, err error) { // reap forgets it
		k.pid, err = forkKeeper(pair[1], s.slack)
		return k.pid, err
	})
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
			if err = k.send(pack(msgSetup, s), nil); err == unix.EPIPE || err == unix.ECONNRESET {
				err = nil // awaitReady finds out why
			}
		}
	}
	if err != nil {
		k.end()
		return nil, err
	}
	return k, nil
}

// monitorSlack is the timer slack of the threads of a keeper, other than the one that works. The monitor
// thread of the runtime would look 20 µs after 20 µs whether the program is executed yet, which took more of
// the processor than the keeper itself.
const monitorSlack = 10 * time.Millisecond

// forkKeeper executes this binary as a keeper with its control socket. That is its stderr
// too, to which the runtime writes when it cannot go on, for lack of threads perhaps.
func forkKeeper(control int, slack uintptr) (int, error) {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(null)
	if slack > 0 { // 0: a real-time thread, which has none
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(monitorSlack), 0, 0, 0)
		defer unix.Prctl(unix.PR_SET_TIMERSLACK, slack, 0, 0, 0)
	}
	return syscall.ForkExec(selfExe, []string{keeperName}, &syscall.ProcAttr{
		Env:   Env,
		Files: []uintptr{uintptr(null), uintptr(null), uintptr(control), uintptr(control)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// run starts a program. An error means that the keeper was dead before: the
// program did not start.
func (k *keeper) run(o *order, fds []int) error {
	k.number++
	o.number = k.number
	return k.send(pack(msgRun, o), unix.UnixRights(fds...))
}

// send cuts a message into packets. The descriptors come with the last.
func (k *keeper) send(msg, rights []byte) error {
	for {
		n := min(len(msg), packetSize)
		packet, with := append([]byte{1}, msg[:n]...), []byte(nil)
		if msg = msg[n:]; len(msg) == 0 {
			packet[0], with = 0, rights
		}
		var err error
		werr := k.conn.Write(func(fd uintptr) bool {
			err = IgnoringEINTR(func() error {
				return unix.Sendmsg(int(fd), packet, with, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			})
			return err != unix.EAGAIN
		})
		if err = cmp.Or(werr, err); err != nil || len(msg) == 0 {
			return err
		}
	}
}

// awaitReady returns when a keeper can start programs, or an error that says why not.
func (k *keeper) awaitReady() error {
	for !k.ready {
		if _, err := k.next(); err != nil {
			words, _, _ := bytes.Cut(k.words, []byte("\n"))
			if len(words) == 0 {
				words = []byte("it ended at once")
			}
			return fmt.Errorf("start keeper: %w: %s", unix.EAGAIN, words)
		}
	}
	return nil
}

// maxWords bounds what is kept of a keeper's stderr.
const maxWords = 1 << 10

// next waits for a report. io.EOF: the keeper is dead.
func (k *keeper) next() (r report, err error) {
	for {
		var n int
		rerr := k.conn.Read(func(fd uintptr) bool {
			n, err = ReadFD(int(fd), k.buf[:])
			return err != unix.EAGAIN
		})
		switch err = cmp.Or(rerr, err); {
		case err == unix.ECONNRESET: // it died and had not read all: what it wrote comes after this
			continue
		case err != nil:
			return r, err
		case n == 0:
			return r, io.EOF
		case k.buf[0] > 1: // no packet of ours
			k.words = append(k.words, k.buf[:min(n, maxWords-len(k.words))]...)
			continue
		case n < 2:
			return r, io.EOF
		}
		r.kind = msgType(k.buf[1])
		k.ready = k.ready || r.kind == msgReady
		return r, unpack(k.buf[2:n], &r)
	}
}

// end closes an idle keeper's socket and waits until it has exited.
func (k *keeper) end() {
	if k.file != nil {
		k.file.Close()
	}
	children.reap(k.pid)
}

// discard cleans up after a keeper that died, or whose reports make no sense: it
// and all that it held are dead when discard returns.
func (k *keeper) discard() {
	unix.Kill(k.pid, unix.SIGKILL)
	k.end()
	children.sweep(k.start)
}
