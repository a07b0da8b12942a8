package testscripts

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMapOnATerminal looks at the screen when fbus map has ended: each result and
// each line of the function's stderr stands there once and whole, and of the
// progress bar nothing is left.
func TestMapOnATerminal(t *testing.T) {
	t.Parallel()
	const items = 10
	s := newBus(t, []string{"f", "--slots", "1", "--args", "argv", "--",
		"sh", "-c", `sleep 0.1; echo "result $1"; echo "warning $1" >&2`, "x"}) // long enough for a bar
	for name, command := range map[string]string{
		"results on the terminal": `"$FBUS" map -j1 $ITEMS`,
		"results by a filter":     `"$FBUS" map -j1 $ITEMS | cat`,
		"results in a file":       `"$FBUS" map -j1 $ITEMS >"$RESULTS"; cat "$RESULTS"`,
		"a narrow terminal":       `"$FBUS" map -j1 $ITEMS >"$RESULTS"; cat "$RESULTS"`,
	} {
		t.Run(name, func(t *testing.T) {
			columns := 80
			if name == "a narrow terminal" {
				columns = 40
			}
			words := "f"
			for i := range items {
				words += " " + strconv.Itoa(i)
			}
			cmd := exec.Command("sh", "-c", strings.ReplaceAll(command, "$ITEMS", words))
			cmd.Env = append(os.Environ(), "TERM=xterm", "FBUS="+s.fbus, "FBUS_NODE="+s.socket,
				"RESULTS="+filepath.Join(t.TempDir(), "results"))
			written := onTerminal(t, cmd, columns)
			if strings.Contains(command, ">") && !strings.Contains(written, "/"+strconv.Itoa(items)) {
				t.Error("no progress was shown")
			}
			screen := screenAfter(t, columns, written)
			for i := range items {
				for _, word := range []string{"result", "warning"} {
					line, in := fmt.Sprintf("\n%s %d\n", word, i), screen
					if name == "results by a filter" { // what that writes can not be kept off the bar's line
						line, in = strings.TrimSpace(line), strings.ReplaceAll(screen, "\n", "")
					}
					if n := strings.Count(in, line); n != 1 {
						t.Errorf("%q is %d times on the screen", line, n)
					}
				}
			}
			if name != "results by a filter" && strings.Contains(screen, "running") {
				t.Error("a progress bar is left on the screen")
			}
			if t.Failed() {
				t.Log(screen)
			}
		})
	}
}

// onTerminal runs a command on a terminal of its own, tall enough not to scroll,
// and returns what was written to it.
func onTerminal(t *testing.T, cmd *exec.Cmd, columns int) string {
	t.Helper()
	return typedOnTerminal(t, cmd, columns, "")
}

// typedOnTerminal is onTerminal for a command that finds a text typed there.
func typedOnTerminal(t *testing.T, cmd *exec.Cmd, columns int, text string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer master.Close()
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 500, Col: uint16(columns)}); err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if _, err := master.WriteString(text); err != nil {
		t.Fatal(err)
	}
	err = cmd.Start()
	terminal.Close()
	if err != nil {
		t.Fatal(err)
	}
	written, _ := io.ReadAll(master) // ends with EIO when nobody has the terminal any more
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %q", err, written)
	}
	return string(written)
}

var controlSequence = regexp.MustCompile(`^\x1b\[([0-9]*)([A-Za-z])`)

// screenAfter is what stands on a terminal after text was written to it, each line
// between newlines.
func screenAfter(t *testing.T, columns int, text string) string {
	t.Helper()
	lines, row, col := [][]rune{nil}, 0, 0
	for text != "" {
		if seq := controlSequence.FindStringSubmatch(text); seq != nil {
			text = text[len(seq[0]):]
			n, _ := strconv.Atoi(seq[1])
			switch seq[2] {
			case "A":
				row = max(0, row-max(1, n))
			case "J": // from here to the end
				lines[row], lines = lines[row][:min(col, len(lines[row]))], lines[:row+1]
			case "K":
				if n == 2 {
					lines[row] = nil
				}
				lines[row] = lines[row][:min(col, len(lines[row]))]
			case "G":
				col = max(1, n) - 1
			default:
				t.Fatalf("this terminal does not know %q", seq[0])
			}
			continue
		}
		r := []rune(text)[0]
		text = text[len(string(r)):]
		switch r {
		case '\r':
			col = 0
		case '\n':
			if row++; row == len(lines) {
				lines = append(lines, nil)
			}
		default:
			if col == columns { // too long a line goes on in the next
				row, col = row+1, 0
				if row == len(lines) {
					lines = append(lines, nil)
				}
			}
			for len(lines[row]) <= col {
				lines[row] = append(lines[row], ' ')
			}
			lines[row][col] = r
			col++
		}
	}
	screen := "\n"
	for _, line := range lines {
		screen += strings.TrimRight(string(line), " ") + "\n"
	}
	return screen
}
