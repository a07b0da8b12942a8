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

// TestProcessOne: a command that is process 1 of a container reaps the orphans of other processes
// there, a node as well as a client that waits.
func TestProcessOne(t *testing.T) {
	for name, words := range map[string][]string{
		"node": {"serve", "--no-tcp", "--socket", "bus.sock"},
		"call": {"call", "-n", "-w", "forever", "--node", "./none.sock", "f"},
	} {
		t.Run(name, func(t *testing.T) { processOne(t, words) })
	}
}

func processOne(t *testing.T, words []string) {
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
	cmd := exec.Command("unshare", append([]string{"-pf", "--mount-proc", filepath.Join(dir, "fbus")}, words...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "FBUS_HOME="+dir, "FBUS_STATE="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := ""
	t.Cleanup(func() { // unshare does not pass signals on
		var n int
		fmt.Sscan(pid, &n)
		syscall.Kill(n, syscall.SIGKILL)
		cmd.Wait()
	})
	for end := time.Now().Add(patience); pid == ""; time.Sleep(5 * time.Millisecond) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil || time.Now().After(end) {
			cmd.Process.Kill()
			t.Skipf("the children of a process cannot be found here: %v", err)
		}
		pid = strings.TrimSpace(string(children))
		if line, _ := os.ReadFile("/proc/" + pid + "/cmdline"); !strings.Contains(string(line), "/fbus\x00"+words[0]) {
			pid = "" // it has not mounted /proc yet
		}
	}
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
