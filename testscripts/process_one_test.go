package testscripts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestProcessOne: a node or a worker that is process 1 of a container reaps the orphans of other
// processes there.
func TestProcessOne(t *testing.T) {
	for _, tool := range []string{"unshare", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	if out, err := exec.Command("unshare", "-pf", "--mount-proc", "true").CombinedOutput(); err != nil {
		t.Skipf("no container can be made here: %s", out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "fbus")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-pf", "--mount-proc", filepath.Join(dir, "fbus"), "serve", "--no-tcp", "--socket", filepath.Join(dir, "bus.sock"))
	cmd.Env = append(os.Environ(), "FBUS_HOME="+dir, "FBUS_STATE="+dir)
	until(t, cmd, "is ready")
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	pid := strings.TrimSpace(string(children))
	if err != nil || pid == "" {
		t.Skipf("the children of a process cannot be found here: %v", err)
	}
	t.Cleanup(func() { // unshare does not pass signals on
		var n int
		fmt.Sscan(pid, &n)
		syscall.Kill(n, syscall.SIGTERM)
	})
	out, err := exec.Command("nsenter", "-t", pid, "-p", "-m", "sh", "-c", `sh -c 'sleep 0.01 & echo $!'`).Output()
	orphan := strings.TrimSpace(string(out))
	if err != nil || orphan == "" {
		t.Skipf("nsenter: %v", err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if err := exec.Command("nsenter", "-t", pid, "-p", "-m", "test", "-e", "/proc/"+orphan).Run(); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the orphan is still there")
		}
	}
}
