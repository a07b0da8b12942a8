package find

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Elsewhere returns a further hint for a socket that is missing here although a node may have made
// it, because the node or this process has a /tmp of its own; "" if nothing suggests that.
// path is the socket, empty for that of any node.
func Elsewhere(path string) string {
	if path != "" && filepath.Dir(path) != SocketDir {
		return ""
	}
	const shared = "in a directory that both see, such as /run/fbus"
	sockets, _ := os.ReadFile("/proc/net/unix")
	if hidden := hiddenSockets(string(sockets), path); len(hidden) > 0 {
		return fmt.Sprintf("a node listens at %s in another %s (that of a service with PrivateTmp=yes, or of a container), or its file was removed: "+
			"fbus serve --socket PATH, %s", hidden[0], SocketDir, shared)
	}
	if pid := hiddenNode("/proc"); pid != "" {
		return fmt.Sprintf("process %s is a node with a %s of its own (a service with PrivateTmp=yes, or a container): if its socket is there, it needs --socket PATH, %s", pid, SocketDir, shared)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if privateTmp(string(mounts)) {
		return fmt.Sprintf("this process has a %s of its own (PrivateTmp=yes): a node outside needs --socket PATH, %s", SocketDir, shared)
	}
	for _, mark := range []string{"/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Stat(mark); err == nil {
			return "a node outside of this container needs --socket PATH " + shared + ", or a ticket"
		}
	}
	return ""
}

// hiddenSockets lists the listening sockets in /proc/net/unix that have the path, or the
// name of a node's socket if it is empty, and are not in the file system of this process.
func hiddenSockets(table, path string) (hidden []string) {
	for line := range strings.Lines(table) {
		f := strings.Fields(line) // Num RefCount Protocol Flags Type St Inode Path
		if len(f) != 8 || f[3] != "00010000" {
			continue
		}
		named, _ := filepath.Match(filepath.Join(SocketDir, SocketPrefix+"*"+SocketSuffix), f[7])
		if named && path == "" || f[7] == path {
			if _, err := os.Lstat(f[7]); errors.Is(err, os.ErrNotExist) {
				hidden = append(hidden, f[7])
			}
		}
	}
	slices.Sort(hidden)
	return slices.Compact(hidden)
}

// hiddenNode returns the process id of a node that has another view of the file system, ""
// if none is known. Those of other users are seen by root only.
func hiddenNode(proc string) string {
	own, err := os.Readlink(filepath.Join(proc, "self/ns/mnt"))
	if err != nil {
		return ""
	}
	processes, _ := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	for _, dir := range processes {
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		if string(comm) != "fbus\n" {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		words := strings.Split(string(line), "\x00")
		if len(words) < 2 || words[1] != "serve" && words[1] != "up" {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err == nil && ns != own {
			return filepath.Base(dir)
		}
	}
	return ""
}

// privateTmp reports whether systemd has mounted a private directory at /tmp.
func privateTmp(mountinfo string) bool {
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line) // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …
		if len(f) > 4 && f[4] == SocketDir && strings.Contains(f[3], "systemd-private-") {
			return true
		}
	}
	return false
}
