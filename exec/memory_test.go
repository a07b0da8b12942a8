package exec

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMemoryLimit(t *testing.T) {
	f := offer(t, Spec{Argv: []string{"perl", "-e", `$x = "a" x ($ARGV[0] << 20); print length $x`, "{1}"}, Memory: 64 << 20})
	if by := f.MemoryBy(); by != "rlimit" && by != "cgroup" {
		t.Errorf("limited by %q", by)
	}
	check(t, runCall(t.Context(), f, list(t, "1")), programExit(0), "1048576")
	if got := runCall(t.Context(), f, list(t, "200")); got.Status == 0 || got.out != "" {
		t.Errorf("%+v", got)
	}
}

// A keeper starts its program in the cgroup that it is handed, and ends what is
// in there. No memory controller is needed for that.
func TestKeeperCgroup(t *testing.T) {
	dir := ""
	for _, base := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		d := fmt.Sprintf("%s/fbus-test-%d", base, os.Getpid())
		if _, err := os.Stat(base + "/cgroup.procs"); err == nil && os.Mkdir(d, 0o755) == nil {
			dir = d
			break
		}
	}
	if dir == "" {
		t.Skip("no cgroups can be made here")
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := &leaf{path: dir, fd: fd}
	k, err := startKeeper(&setup{path: "/bin/sh", argv: []string{"sh", "-c", "trap '' TERM; sleep 1000 & cat /proc/self/cgroup"}, grace: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer k.end()
	r, w, _ := os.Pipe()
	if err := k.run(&order{cgroup: true}, []int{0, int(w.Fd()), 2, fd}); err != nil {
		t.Fatal(err)
	}
	for {
		rep, err := k.next()
		if err != nil || rep.kind == msgFailed {
			t.Fatal(rep, err)
		}
		if rep.kind == msgGone {
			break
		}
	}
	w.Close()
	out, _ := io.ReadAll(r)
	r.Close()
	if !strings.Contains(string(out), "0::/"+filepath.Base(dir)+"\n") {
		t.Errorf("%s", out)
	}
	l.remove()
	if _, err := os.Stat(dir); err == nil {
		t.Error("the cgroup is still there")
	}
}

func TestNoMemoryController(t *testing.T) {
	if _, err := newLeaf(t.TempDir()+"/none/leaf", 1<<20); err == nil {
		t.Error("made a leaf in a directory that does not exist")
	}
	if dir := usableCgroup(t.TempDir()); dir != "" {
		t.Errorf("%s is no cgroup", dir)
	}
}
