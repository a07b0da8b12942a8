package testscripts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTerminalInBackground: a command in the background of a terminal waits until it may read
// it. It is never stopped: in a shell without job control only KILL could end that.
func TestTerminalInBackground(t *testing.T) {
	t.Parallel()
	s := newBus(t, []string{"f", "--args", "argv", "--", "echo", "got"}, []string{"cat", "--", "cat"})
	for what, command := range map[string]string{
		"map": "map f", "map of a file": "map -a /dev/tty f", "post of items": "post --each arg f",
		"join": "join -", "pipe": "pipe", "call of arguments": "call -o out -d @- f",
		"call": "call cat", "call of a file": "call -i /dev/tty cat", "post": "post cat",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			// With set -m, stdin of a command in the background is not /dev/null. Either the
			// command is stopped, or it ignores the signal that would stop it, bit 20.
			screen := onTerminal(t, s.shell(t, `set -m; "$FBUS" $COMMAND & pid=$!
				until grep -qE '^(State:.[TZ]|SigIgn:.*[13579bdf].....$)' /proc/$pid/status; do sleep 0.01; done
				kill $pid; wait $pid; echo "ended with $?"`, command), 80)
			if !strings.Contains(screen, "ended with 143") {
				t.Errorf("%q", screen)
			}
		})
	}
	t.Run("without job control", func(t *testing.T) {
		t.Parallel()
		if _, err := exec.LookPath("timeout"); err != nil {
			t.Skip(err)
		}
		screen := onTerminal(t, s.shell(t, `timeout 2 "$FBUS" $COMMAND; echo "ended with $?"`, "call cat"), 80)
		if !strings.Contains(screen, "the input will be read from the terminal") || !strings.Contains(screen, "-n sends none") || !strings.Contains(screen, "ended with 124") {
			t.Errorf("%q", screen)
		}
	})
	t.Run("foreground", func(t *testing.T) {
		screen := typedOnTerminal(t, s.shell(t, `set -m; "$FBUS" $COMMAND & pid=$!
			until grep -qE '^(State:.[TZ]|SigIgn:.*[13579bdf].....$)' /proc/$pid/status; do sleep 0.01; done
			fg`, "map f"), 80, "typed\n\x04")
		if !strings.Contains(screen, "got typed") {
			t.Errorf("%q", screen)
		}
	})
}

// shell returns a shell that runs a script with fbus in $FBUS, and words for it in $COMMAND.
func (s *bus) shell(t *testing.T, script, command string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "FBUS="+s.fbus, "FBUS_NODE="+s.socket, "COMMAND="+command, "FBUS_HOME="+filepath.Join(cmd.Dir, "home"))
	return cmd
}
