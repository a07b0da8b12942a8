package find

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Elsewhere returns a hint for a socket that is missing here although a node may have made
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
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if privateTmp(string(mounts)) {
		return fmt.Sprintf("fbus serve starts a node; this process has a %s of its own (PrivateTmp=yes): a node outside needs --socket PATH, %s", SocketDir, shared)
	}
	for _, mark := range []string{"/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Stat(mark); err == nil {
			return "fbus serve starts a node; one outside of this container needs --socket PATH " + shared + ", or a ticket"
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
