package keeper

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

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
