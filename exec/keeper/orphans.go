package keeper

import (
	"bytes"
	"os"
	ossignal "os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reaping is true in a subreaper: orphans become this process's children.
var reaping atomic.Bool

// children lists this process's own children. Others are orphans of a dead keeper.
var children = childSet{known: make(map[int]struct{})}

type childSet struct {
	mu    sync.Mutex // guards known; held while a child is started, so that none is unknown
	known map[int]struct{}
}

// BecomeReaper makes this process a child subreaper (prctl(2)), so that it can
// find and kill what a killed keeper leaves behind. A worker calls it once,
// before NewPool.
//
// It changes what happens to children that this package does not know. The
// orphans of any child of this process become children of this process. When a
// keeper dies, and in EndOrphans, every child that is neither a keeper nor was
// started by Adopt is taken for an orphan: it is killed with all its descendants,
// and reaped. So a program that calls BecomeReaper must start its other
// processes, also those of os/exec, by Adopt.
func BecomeReaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	reaping.Store(true)
	return nil
}

// Adopt starts a child of this process that is not a keeper, and protects it when
// a dead keeper's orphans are killed. start returns the child's pid. Call forget
// after the child was waited for.
func Adopt(start func() (pid int, err error)) (forget func(), err error) {
	children.mu.Lock()
	defer children.mu.Unlock()
	pid, err := start()
	if err != nil {
		return func() {}, err
	}
	children.known[pid] = struct{}{}
	return func() { children.forget(pid) }, nil
}

// WithoutFork calls ask while no child is being started. A child that is being
// started holds copies of all our descriptors for a moment.
func WithoutFork(ask func() bool) bool {
	children.mu.Lock()
	defer children.mu.Unlock()
	return ask()
}

func (c *childSet) forget(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, pid)
}

// reap waits for a keeper to end. Only when it is reaped have its orphans surely
// become ours; only then may its number be forgotten.
func (c *childSet) reap(pid int) {
	IgnoringEINTR(func() error {
		_, err := unix.Wait4(pid, nil, 0, nil)
		return err
	})
	c.forget(pid)
}

// sweep kills and reaps the orphans of a dead keeper that began at start, until
// none is left that can be killed.
func (c *childSet) sweep(start uint64) {
	if !reaping.Load() {
		return
	}
	giveUp := time.Now().Add(refusedAfter)
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		left, refused := c.sweepOnce(start, unix.SIGKILL)
		if left == 0 || (refused == left && time.Now().After(giveUp)) {
			return
		}
		time.Sleep(pause)
	}
}

// EndOrphans ends what children started by Adopt left behind when they ended:
// TERM, then KILL when grace is over. Without BecomeReaper it does nothing.
func EndOrphans(grace time.Duration) {
	if !reaping.Load() {
		return
	}
	sig := unix.SIGTERM
	for until := time.Now().Add(grace); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if left, _ := children.sweepOnce(0, sig); left == 0 {
			return
		}
		sig = 0 // once is enough
	}
	children.sweep(0)
}

// sweepOnce signals and reaps orphans. It looks at all processes: a child that
// exits stays in that list until it is reaped here, so none is missed.
func (c *childSet) sweepOnce(start uint64, sig syscall.Signal) (left, refused int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	self := os.Getpid()
	for _, s := range scanProcs() {
		if _, ours := c.known[s.pid]; ours || s.ppid != self || s.start < start {
			continue
		}
		left++
		err := unix.Kill(s.pid, sig)
		if sig == unix.SIGTERM {
			unix.Kill(s.pid, unix.SIGCONT) // a stopped one would not see it
		}
		if err == unix.EPERM && s.state != 'Z' {
			refused++
		}
		walkFrom(s.pid, -1, 1, func(fd int, d procStat) { signal(fd, d.pid, sig) })
		unix.Wait4(s.pid, nil, unix.WNOHANG, nil)
	}
	return left, refused
}

// strangerAge is how long a zombie that this package does not know is left to whoever may wait
// for it, such as os/exec.
var strangerAge = 200 * time.Millisecond

// ReapStrangers reaps what nobody else does until stop is called: orphans of other processes, which
// become children of process 1 of a container, and of a subreaper. In other processes it does
// nothing.
func ReapStrangers() (stop func()) {
	if os.Getpid() != 1 && !reaping.Load() {
		return func() {}
	}
	exits, done, age := make(chan os.Signal, 1), make(chan struct{}), strangerAge
	ossignal.Notify(exits, unix.SIGCHLD)
	go func() { // ends with stop
		var seen map[int]uint64
		look := time.After(0) // some may be there already
		for {
			select {
			case <-exits:
				if look == nil {
					look = time.After(age)
				}
			case <-look:
				look = nil
				if seen = children.reapStrangers(seen); len(seen) > 0 {
					look = time.After(age)
				}
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		ossignal.Stop(exits)
		close(done)
	})
}

// reapStrangers reaps the zombies that were seen before, and returns the others, each with its start.
func (c *childSet) reapStrangers(seen map[int]uint64) map[int]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := map[int]uint64{}
	self := os.Getpid()
	for _, s := range scanProcs() {
		if _, ours := c.known[s.pid]; ours || s.ppid != self || s.state != 'Z' {
			continue
		}
		if start, before := seen[s.pid]; before && start == s.start {
			unix.Wait4(s.pid, nil, unix.WNOHANG, nil)
		} else {
			left[s.pid] = s.start
		}
	}
	return left
}

// procStat holds the fields of /proc/PID/stat that are needed.
type procStat struct {
	pid, ppid, pgrp int
	state           byte
	start           uint64 // clock ticks since boot
}

// readStat reads /proc/PID/stat. The command's name may hold anything, also
// ")", so fields are counted from the last one.
func readStat(pid int) (procStat, bool) {
	buf, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, false
	}
	return parseStat(pid, buf)
}

func parseStat(pid int, buf []byte) (procStat, bool) {
	i := bytes.LastIndexByte(buf, ')')
	if i < 0 {
		return procStat{}, false
	}
	fields := bytes.Fields(buf[i+1:])
	if len(fields) < 20 { // field 22 of the file is number 19 after the name
		return procStat{}, false
	}
	s := procStat{pid: pid, state: fields[0][0]}
	s.ppid, _ = strconv.Atoi(string(fields[1]))
	s.pgrp, _ = strconv.Atoi(string(fields[2]))
	s.start, _ = strconv.ParseUint(string(fields[19]), 10, 64)
	return s, true
}

// childrenOf lists pid's children. The list is a snapshot and, while processes
// exit, can miss one: to find all, repeat until wait4 returns ECHILD.
func childrenOf(pid int) []int {
	base := "/proc/" + strconv.Itoa(pid) + "/task"
	tasks, err := os.ReadDir(base)
	if err != nil {
		return nil
	}
	var pids []int
	for _, t := range tasks {
		buf, err := os.ReadFile(filepath.Join(base, t.Name(), "children"))
		if os.IsNotExist(err) && !hasChildrenFile() {
			return scanChildren(pid)
		}
		for _, f := range bytes.Fields(buf) {
			if n, err := strconv.Atoi(string(f)); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// hasChildrenFile distinguishes a kernel without CONFIG_PROC_CHILDREN from a thread
// that has just ended.
func hasChildrenFile() bool {
	_, err := os.Stat("/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/children")
	return err == nil
}

// scanChildren finds pid's children in the list of all processes: slower, but
// complete, since a child that exits stays listed until pid reaps it.
func scanChildren(pid int) []int {
	var pids []int
	for _, s := range scanProcs() {
		if s.ppid == pid {
			pids = append(pids, s.pid)
		}
	}
	return pids
}

func scanProcs() []procStat {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var all []procStat
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, ok := readStat(pid); ok {
			all = append(all, s)
		}
	}
	return all
}

// maxDepth bounds the descriptors that walk holds. What is deeper surfaces
// once its ancestors are dead.
const maxDepth = 256

// walk calls visit for every descendant of pid that it can find, parents
// before children, with a pidfd that surely is that process: a descendant's
// number can be given to a stranger at any time, so each is pinned first and
// its parenthood checked afterwards. Nobody else may reap pid's children.
func walk(pid int, visit func(pidfd int, s procStat)) {
	walkFrom(pid, -1, 0, visit)
}

func walkFrom(parent, parentFD, depth int, visit func(pidfd int, s procStat)) {
	if depth == maxDepth {
		return
	}
	for _, pid := range childrenOf(parent) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil && depth > 0 {
			continue
		}
		s, ok := readStat(pid)
		// The parent must still be the same process when its child names it.
		if ok && s.ppid == parent && (parentFD < 0 || unix.PidfdSendSignal(parentFD, 0, nil, 0) == nil) {
			visit(fd, s)
			if fd >= 0 {
				walkFrom(pid, fd, depth+1, visit)
			}
		}
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// signal sends sig to a process that walk found. Only an own child comes
// without a pidfd (Linux before 5.3), and its number cannot be reused.
func signal(pidfd int, pid int, sig unix.Signal) error {
	if pidfd < 0 {
		return unix.Kill(pid, sig)
	}
	return unix.PidfdSendSignal(pidfd, sig, nil, 0)
}
