package keeper

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// memory limits what programs use: by a cgroup for each program where the system
// lets this user make them, which counts the whole tree; otherwise by RLIMIT_DATA,
// which counts each process alone.
type memory struct {
	bytes int64
	dir   string // of the programs' cgroups; "" means RLIMIT_DATA
	count atomic.Uint64
}

func newMemory(bytes int64) *memory {
	m := &memory{bytes: bytes}
	if bytes > 0 {
		m.dir = delegatedCgroup()
	}
	return m
}

// group is one program's cgroup.
type group struct {
	path string
	fd   int
}

// group makes a program's cgroup; nil if cgroups are not what limits memory.
func (m *memory) group() (*group, error) {
	if m.dir == "" {
		return nil, nil
	}
	path := filepath.Join(m.dir, fmt.Sprintf("fbus-%d-%d", os.Getpid(), m.count.Add(1)))
	return newGroup(path, m.bytes)
}

func newGroup(path string, bytes int64) (*group, error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	g := &group{path: path, fd: -1}
	err := os.WriteFile(filepath.Join(path, "memory.max"), []byte(strconv.FormatInt(bytes, 10)), 0)
	if err == nil {
		// One process out of memory ends the whole program. Swap would make the
		// limit a matter of time; not every kernel counts it.
		err = os.WriteFile(filepath.Join(path, "memory.oom.group"), []byte("1"), 0)
		os.WriteFile(filepath.Join(path, "memory.swap.max"), []byte("0"), 0)
	}
	if err == nil {
		g.fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		g.remove()
		return nil, err
	}
	return g, nil
}

// oom reports whether the kernel killed this program for its memory.
func (g *group) oom() bool {
	if g == nil {
		return false
	}
	events, _ := os.ReadFile(filepath.Join(g.path, "memory.events"))
	for line := range strings.Lines(string(events)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}

// remove kills whatever is still in the group, also what a dead keeper left,
// and removes it. The kernel refuses for a moment while a process exits.
func (g *group) remove() {
	if g == nil {
		return
	}
	if g.fd >= 0 {
		killCgroup(g.fd)
		unix.Close(g.fd)
	}
	for pause := 100 * time.Microsecond; pause < 50*time.Millisecond; pause *= 2 {
		if err := os.Remove(g.path); err == nil || os.IsNotExist(err) {
			return
		}
		time.Sleep(pause)
	}
}

// delegatedCgroup finds the cgroup v2 directory under which this process may
// make groups with a memory limit; "" if there is none.
func delegatedCgroup() string {
	buf, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(buf)) {
		if rel, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return usableCgroup(filepath.Join("/sys/fs/cgroup", rel))
		}
	}
	return ""
}

func usableCgroup(dir string) string {
	if !holdsWord(filepath.Join(dir, "cgroup.controllers"), "memory") || unix.Access(dir, unix.W_OK) != nil {
		return ""
	}
	if !holdsWord(filepath.Join(dir, "cgroup.subtree_control"), "memory") && !enableMemory(dir) {
		return ""
	}
	return dir
}

// enableMemory passes the memory controller on to dir's children. A group with
// processes in it may not do that, so this one moves down a step first, if it
// is alone there.
func enableMemory(dir string) bool {
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	self := strconv.Itoa(os.Getpid())
	if err != nil || strings.TrimSpace(string(procs)) != self {
		return false
	}
	own := filepath.Join(dir, "fbus-worker-"+self)
	if err := os.Mkdir(own, 0o755); err != nil && !os.IsExist(err) {
		return false
	}
	if os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte(self), 0) == nil &&
		os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0) == nil {
		return true
	}
	os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(self), 0)
	os.Remove(own)
	return false
}

func holdsWord(file, word string) bool {
	buf, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	return slices.Contains(strings.Fields(string(buf)), word)
}

// forkLimited is ForkExec with a step between, a process of this binary that
// sets the limit on itself: no thread of the keeper may ever run under it.
func forkLimited(limit int64, path string, argv []string, attr *syscall.ProcAttr) (int, error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer syscall.Close(fds[0])
	n := len(attr.Files)
	args := append([]string{limitName, strconv.FormatInt(limit, 10), strconv.Itoa(n), path}, argv...)
	limited := *attr
	limited.Files = append(attr.Files[:n:n], uintptr(fds[1]))
	if !slices.ContainsFunc(attr.Env, func(kv string) bool { return strings.HasPrefix(kv, "GOTRACEBACK=") }) { // for the step; it does not pass it on
		limited.Env = append([]string{noTraceback}, attr.Env...)
	}
	pid, err := syscall.ForkExec(selfExe, args, &limited)
	syscall.Close(fds[1])
	if err != nil {
		return 0, err
	}
	// The step writes a byte when it runs, and a number if it cannot execute the program.
	var report [5]byte
	got := 0
	for got < len(report) {
		n, _ := ReadFD(fds[0], report[got:])
		if n <= 0 {
			break
		}
		got += n
	}
	if got == 1 {
		return pid, nil
	}
	IgnoringEINTR(func() error {
		_, err := unix.Wait4(pid, nil, 0, nil)
		return err
	})
	if got == 0 { // there was no room for its threads
		return 0, unix.EAGAIN
	}
	return 0, syscall.Errno(binary.NativeEndian.Uint32(report[1:]))
}

// noTraceback keeps the runtime of a process that cannot start from printing stacks.
const noTraceback = "GOTRACEBACK=none"

// execLimited becomes the program under the limit. If it cannot, it writes the
// error number to report, a descriptor that the program does not get.
func execLimited(limit uint64, report int, path string, argv []string) int {
	unix.CloseOnExec(report)
	unix.Write(report, []byte{0})
	err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: limit, Max: limit})
	env := os.Environ()
	if len(env) > 0 && env[0] == noTraceback {
		env = env[1:]
	}
	if err == nil {
		err = syscall.Exec(path, argv, env)
	}
	errno, ok := err.(syscall.Errno)
	if !ok {
		errno = unix.EIO
	}
	unix.Write(report, binary.NativeEndian.AppendUint32(nil, uint32(errno)))
	return 126
}
