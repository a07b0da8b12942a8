package find

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestHiddenSockets checks which lines of /proc/net/unix are sockets of nodes that this
// process cannot see.
func TestHiddenSockets(t *testing.T) {
	here := filepath.Join(t.TempDir(), "here.sock")
	l, err := net.Listen("unix", here)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const hidden = "/tmp/functionbus.test-hidden.sock"
	line := func(flags, path string) string {
		return "0000000000000000: 00000002 00000000 " + flags + " 0001 01 12345 " + path + "\n"
	}
	table := "Num       RefCount Protocol Flags    Type St Inode Path\n" + line("00010000", hidden) + line("00010000", hidden) +
		line("00000000", "/tmp/functionbus.test-connected.sock") + line("00010000", "/tmp/other.sock") + line("00010000", "@/tmp/functionbus.1.sock") +
		line("00010000", here) + "0: 2 0 00010000 0001 01 1\n"
	for path, want := range map[string][]string{"": {hidden}, "/tmp/other.sock": {"/tmp/other.sock"}, here: nil, hidden: {hidden}, "/tmp/none.sock": nil} {
		if got := hiddenSockets(table, path); !slices.Equal(got, want) {
			t.Errorf("%q: %q, not %q", path, got, want)
		}
	}
	// The kernel's own table has the format that is expected.
	data, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Skip(err)
	}
	os.Rename(here, here+".moved")
	if got := hiddenSockets(string(data), here); !slices.Equal(got, []string{here}) {
		t.Errorf("%q", got)
	}
}

func TestPrivateTmp(t *testing.T) {
	const private = "700 600 8:1 /tmp/systemd-private-0123-fbus.service-abc/tmp /tmp rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
	const plain = "700 600 0:33 / /tmp rw,nosuid - tmpfs tmpfs rw\n"
	if !privateTmp(plain+private) || privateTmp(plain) || privateTmp(strings.Replace(private, " /tmp rw", " /var/tmp rw", 1)) {
		t.Error("it is not recognized")
	}
}

// TestHiddenNode checks which processes are nodes with another view of the file system.
func TestHiddenNode(t *testing.T) {
	proc := t.TempDir()
	add := func(pid, comm, cmdline, ns string) {
		t.Helper()
		dir := filepath.Join(proc, pid)
		if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o700); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, "comm"), []byte(comm+"\n"), 0o600)
		os.WriteFile(filepath.Join(dir, "cmdline"), []byte(strings.ReplaceAll(cmdline, " ", "\x00")+"\x00"), 0o600)
		os.Symlink("mnt:["+ns+"]", filepath.Join(dir, "ns/mnt"))
	}
	add("self", "fbus", "fbus ls", "1")
	add("10", "fbus", "fbus serve", "1")
	add("11", "fbus", "fbus call f", "2")
	add("12", "bash", "fbus serve", "2")
	if got := hiddenNode(proc); got != "" {
		t.Errorf("process %s", got)
	}
	add("13", "fbus", "/usr/bin/fbus serve --no-tcp", "2")
	if got := hiddenNode(proc); got != "13" {
		t.Errorf("process %q", got)
	}
	if hiddenNode(filepath.Join(proc, "none")) != "" {
		t.Error("without /proc there is one")
	}
}
