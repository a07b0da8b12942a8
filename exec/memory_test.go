package exec

import (
	"os"
	"testing"
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

// The leaf is made, used and removed where this user may make cgroups; the
// memory controller is another question.
func TestLeaf(t *testing.T) {
	base := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(dir + "/cgroup.procs"); err == nil && os.Mkdir(dir+"/fbus-test", 0o755) == nil {
			base = dir + "/fbus-test"
			defer os.Remove(base)
			break
		}
	}
	if base == "" {
		t.Skip("no cgroups can be made here")
	}
	f := sh(t, "setsid sleep 1000 & cat /proc/self/cgroup")
	f.memory = &memory{bytes: 64 << 20, dir: base}
	if !holdsWord(base+"/cgroup.controllers", "memory") {
		if _, err := f.memory.leaf(); err == nil {
			t.Error("a leaf without a memory limit")
		}
		return
	}
	got := runCall(t.Context(), f, &Call{})
	if got.Result != programExit(0) {
		t.Errorf("%+v", got)
	}
}
