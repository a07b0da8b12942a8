package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// differs is what may differ between two runs of a script.
var differs = regexp.MustCompile(`"(call|seconds|worker_id)":("[^"]*"|[0-9.e-]+)|[0-9A-HJKMNP-TV-Z]{26}|call: \S+`)

// TestSameElsewhere: a function that is only at another node behaves as one that is here. A script
// is run with both, and prints the same. FBUS_SOAK=1 has it send more, and try all statuses.
func TestSameElsewhere(t *testing.T) {
	t.Parallel()
	size, step := 12<<20, "5"
	if os.Getenv("FBUS_SOAK") != "" {
		size, step = 64<<20, "1"
	}
	script, err := filepath.Abs("testdata/same.sh")
	if err != nil {
		t.Fatal(err)
	}
	program, err := filepath.Abs("testdata/f.sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("env", "--default-signal=INT", "setsid", "true").Run(); err != nil {
		t.Skip("it needs setsid, and env with --default-signal: ", err)
	}
	big := filepath.Join(t.TempDir(), "big")
	seed := [32]byte{14}
	data := make([]byte, size)
	rand.NewChaCha8(seed).Read(data)
	if err := os.WriteFile(big, data, 0o600); err != nil {
		t.Fatal(err)
	}
	outputs := make([]string, 2)
	t.Run("both", func(t *testing.T) {
		for i, there := range []string{"a", "b"} {
			t.Run(there, func(t *testing.T) {
				t.Parallel()
				d := newProcesses(t, "a", "b")
				on, here := "w", 4
				if there == "b" {
					on, here = "@b", 0
				}
				files := filepath.Join(d.dir, "files")
				work := filepath.Join(d.dir, "work")
				for _, dir := range []string{files, work} {
					if err := os.Mkdir(dir, 0o700); err != nil {
						t.Fatal(err)
					}
				}
				common := []string{"offer", "-q", "--slots", "4", "--worker", "w", "--grace", "300ms"}
				for name, words := range map[string][]string{
					"f":      {"--args", "argv", "--progress-fd", "3", "--", "sh", program},
					"cat":    {"--", "cat"},
					"yes":    {"--", "yes"},
					"follow": {"--", "sh", "-c", "cat >$1.new; mv $1.new $1", "sh", filepath.Join(files, "follow")},
				} {
					d.begin(there, append(append(common[:len(common):len(common)], name), words...)...)
				}
				for _, name := range []string{"f", "cat", "yes", "follow"} {
					d.slots("a", name, here, 4-here)
				}
				cmd := d.command("a")
				cmd.Path, cmd.Args, cmd.Dir = "/bin/sh", []string{"sh", script}, work
				cmd.Env = append(cmd.Env, "ON="+on, "THERE="+d.sockets[there], "FILES="+files, "BIG="+big, "STEP="+step)
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				text := differs.ReplaceAllString(string(out), "*")
				text = strings.ReplaceAll(text, d.dir, "DIR")
				uid := fmt.Sprint("uid:", os.Getuid())
				text = strings.ReplaceAll(text, uid+"/@a/"+uid, uid) // who the caller is
				outputs[i] = strings.ReplaceAll(strings.ReplaceAll(text, "@b/w", "w"), "@b", "w")
			})
		}
	})
	here, there := strings.Split(outputs[0], "\n"), strings.Split(outputs[1], "\n")
	section := ""
	for i := range max(len(here), len(there)) {
		var a, b string
		if i < len(here) {
			a = here[i]
		}
		if i < len(there) {
			b = there[i]
		}
		if strings.HasPrefix(a, "== ") {
			section = a
		}
		if a != b {
			t.Fatalf("%s: here\n\t%s\nelsewhere\n\t%s", section, a, b)
		}
	}
}
