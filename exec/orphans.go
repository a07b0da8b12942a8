package exec

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// reaping says that this process is a subreaper: orphans come to it.
var reaping atomic.Bool

// kids knows this process's own children, so that a dead keeper's orphans can
// be told from them.
var kids = family{known: make(map[int]struct{})}

type family struct {
	mu    sync.Mutex // guards known; held while a child is started, so that none is unknown
	known map[int]struct{}
}

// Adopt starts a child process of this process that is no keeper, and lets it
// live when a dead keeper's orphans are killed: a worker that starts processes
// by other means than this package starts them so. start returns the child's
// pid. Call forget once the child has been waited for.
func Adopt(start func() (pid int, err error)) (forget func(), err error) {
	kids.mu.Lock()
	defer kids.mu.Unlock()
	pid, err := start()
	if err != nil {
		return func() {}, err
	}
	kids.known[pid] = struct{}{}
	return func() { kids.forget(pid) }, nil
}

func (f *family) startKeeper(control int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	pid, err := forkKeeper(control)
	if err == nil {
		f.known[pid] = struct{}{}
	}
	return pid, err
}

// still asks something while no child is being started, which for a moment
// holds copies of all our descriptors.
func (f *family) still(ask func() bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return ask()
}

func (f *family) forget(pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, pid)
}

// reap waits for a keeper to end. Only when it is reaped have its orphans
// surely become ours; only then may its number be forgotten.
func (f *family) reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	f.forget(pid)
}

// sweep kills and reaps the orphans of a dead keeper that began at start,
// until none is left that can be killed.
func (f *family) sweep(start uint64) {
	if !reaping.Load() {
		return
	}
	giveUp := time.Now().Add(refusedAfter)
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		left, refused := f.sweepOnce(start, unix.SIGKILL)
		if left == 0 || (refused == left && time.Now().After(giveUp)) {
			return
		}
		time.Sleep(pause)
	}
}

// EndOrphans ends what programs have left behind that this process started by
// Adopt and that have ended: TERM, then KILL when grace is over. Without
// BecomeReaper it does nothing.
func EndOrphans(grace time.Duration) {
	if !reaping.Load() {
		return
	}
	sig := unix.SIGTERM
	for until := time.Now().Add(grace); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if left, _ := kids.sweepOnce(0, sig); left == 0 {
			return
		}
		sig = 0 // once is enough
	}
	kids.sweep(0)
}

// sweepOnce looks at all processes: a child that exits stays in that list
// until it is reaped here, so a look that finds none has missed none.
func (f *family) sweepOnce(start uint64, sig unix.Signal) (left, refused int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	self := os.Getpid()
	for _, s := range scanProcs() {
		if _, ours := f.known[s.pid]; ours || s.ppid != self || s.start < start {
			continue
		}
		left++
		err := unix.Kill(s.pid, sig)
		if sig == unix.SIGTERM {
			unix.Kill(s.pid, unix.SIGCONT) // or a stopped one never hears of it
		}
		if err == unix.EPERM && s.state != 'Z' {
			refused++
		}
		walkFrom(s.pid, -1, 1, func(fd int, d procStat) { signal(fd, d.pid, sig) })
		unix.Wait4(s.pid, nil, unix.WNOHANG, nil)
	}
	return left, refused
}
