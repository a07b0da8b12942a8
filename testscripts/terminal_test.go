package testscripts

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a new terminal: what is written to keyboard is typed there, and what
// programs print on tty is read from keyboard.
func terminal(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no terminal can be made here: %v", err)
	}
	keyboard = os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { keyboard.Close() })
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skipf("no terminal can be made here: %v", err)
	}
	t.Cleanup(func() { tty.Close() })
	return keyboard, tty
}

// atTerminal runs fbus at a terminal. When the output has a text, or at once if it is empty,
// the keys are typed. It returns the whole output.
func atTerminal(t *testing.T, when, keys string, words ...string) string {
	t.Helper()
	keyboard, tty := terminal(t)
	self, err := exec.LookPath("fbus")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, words...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.Env = append(os.Environ(), "FBUS_HOME="+t.TempDir(), "FBUS_STATE="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	var out bytes.Buffer
	for buf := make([]byte, 4096); ; {
		if keys != "" && strings.Contains(out.String(), when) {
			io.WriteString(keyboard, keys)
			keys = ""
		}
		n, err := keyboard.Read(buf)
		out.Write(buf[:n])
		if err != nil { // EIO, when nobody has the terminal any more
			break
		}
	}
	cmd.Wait()
	return out.String()
}

// TestTyped checks that commands which wait for somebody to type report that, and
// how to end it.
func TestTyped(t *testing.T) {
	t.Parallel()
	const ends = ": Ctrl-D ends "
	for _, c := range []struct{ what, keys, want, line string }{
		{"the input", "a b c\n\x04", "3", "call wc"},
		{"the input", "a b c\n\x04", "3", "call -i - wc"},
		{"the input", "a b c\n\x04", "3", "call --all wc"},
		{"the arguments, JSON,", "[1,2]\n\x04", "1", "call -d @- wc"},
		{"the input", "a b c\n\x04", "", "post wc"},
		{"requests", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"wc\",\"input\":\"a b\"}\n\x04", `"result":2`, "pipe"},
		{"the ticket", "none\n\x04", "not a ticket", "join -"},
	} {
		t.Run(c.line, func(t *testing.T) {
			t.Parallel()
			words := append([]string{"run", "--offer", "wc=wc -w", "--", "fbus"}, strings.Fields(c.line)...)
			out := atTerminal(t, ends, c.keys, words...)
			_, after, _ := strings.Cut(out, "fbus: reading "+c.what+" from the terminal"+ends)
			if !strings.Contains(after, c.want) || after == "" {
				t.Errorf("%q", out)
			}
		})
	}
	t.Run("quiet", func(t *testing.T) {
		t.Parallel()
		if out := atTerminal(t, "", "a b\n\x04", "run", "--offer", "wc=wc -w", "--", "fbus", "post", "-q", "wc"); strings.Contains(out, "terminal") {
			t.Errorf("%q", out)
		}
	})
}

// TestPrettyPrompt checks that the prompt of the shell does not follow the last brace.
func TestPrettyPrompt(t *testing.T) {
	t.Parallel()
	out := atTerminal(t, "", "", "run", "--offer", `j=printf {\"a\":1}`, "--", "fbus", "call", "-pn", "j")
	if want := "{\r\n  \"a\": 1\r\n}\r\n"; out != want {
		t.Errorf("%q, not %q", out, want)
	}
}
