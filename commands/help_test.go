package commands

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"fbus/bus/args"
)

// runs runs a command line as the process would, in this process.
func runs(args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = report(&errs, run(args, &out, &errs))
	return status, out.String(), errs.String()
}

var (
	// Examples mention flags of other programs.
	elsewhereInHelp = regexp.MustCompile(`(?m) -- .*$| \| .*$|\$\(.*$`)
	flagInHelp      = regexp.MustCompile(`(?m)(?:^|[^A-Za-z0-9-])(--?[A-Za-z][A-Za-z-]*)`)
)

// TestHelp checks that each command has help with an example, also behind operands,
// that its help mentions no flag that it lacks, and that -q and -v are flags of each but three, which have little to report.
func TestHelp(t *testing.T) {
	for _, c := range commandTable {
		lines := [][]string{{c.name, "--help"}, {c.name, "-h"}, {"help", c.name}}
		if c.mix != flagsFirst {
			lines = append(lines, []string{c.name, "some", "thing else", "-h"}, []string{c.name, "some", "thing else", "--help"})
		}
		var help string
		for _, line := range lines {
			status, stdout, stderr := runs(line...)
			if status != 0 || stderr != "" || !strings.Contains(stdout, "\nUsage: fbus "+c.name) {
				t.Errorf("%q: status %d, %.40q, %q", line, status, stdout, stderr)
			}
			help = stdout
		}
		_, examples, _ := strings.Cut(help, "\nUsage: fbus ")
		if !regexp.MustCompile(`(?m)fbus ` + c.name + `( |$)`).MatchString(examples) {
			t.Errorf("the help of %s has no example", c.name)
		}
		table := tableOf(append(c.make().Flags, cli.HelpFlag))
		mentioned := flagInHelp.FindAllStringSubmatch(elsewhereInHelp.ReplaceAllString(help, ""), -1)
		if len(mentioned) == 0 {
			t.Errorf("the help of %s mentions no flag", c.name)
		}
		for _, m := range mentioned {
			name := strings.TrimLeft(m[1], "-")
			if !strings.HasPrefix(m[1], "--") && len(name) > 1 {
				continue // several in one word
			}
			if table[name] == nil {
				t.Errorf("the help of %s mentions %s, which it lacks", c.name, m[1])
			}
		}
		if short := c.name == "example" || c.name == "join" || c.name == "unit"; !short && (table["q"] == nil || table["v"] == nil) {
			t.Errorf("%s lacks -q or -v", c.name)
		}
	}
}

// TestKeepaliveBound checks that each command with --keepalive refuses less than 3 s,
// which would give up a peer for a short pause, before it looks for a node.
func TestKeepaliveBound(t *testing.T) {
	found := 0
	for _, c := range commandTable {
		if tableOf(c.make().Flags)["keepalive"] == nil {
			continue
		}
		found++
		for _, d := range []string{"1s", "2999ms", "0s"} {
			status, _, stderr := runs(c.name, "--keepalive", d, "f", "--", "x")
			if status != args.StatusOf(args.CodeUsage) || !strings.HasPrefix(stderr, "fbus: --keepalive ") {
				t.Errorf("%s: status %d: %s", c.name, status, stderr)
			}
		}
	}
	if found < 7 {
		t.Errorf("%d commands have --keepalive", found)
	}
}

// TestHelpGroups checks that each command and each flag has one group, and that no group
// lists a name that does not exist.
func TestHelpGroups(t *testing.T) {
	unused := map[string]bool{"help": false}
	for _, groups := range [][]group{commandGroups, flagGroups} {
		seen := map[string]bool{}
		for _, g := range groups {
			for _, name := range strings.Fields(g.names) {
				if seen[name] {
					t.Errorf("%s is in two groups", name)
				}
				seen[name], unused[name] = true, name != "help"
			}
		}
	}
	for _, c := range commandTable {
		if groupOf(commandGroups, c.name) == "" {
			t.Errorf("command %s has no group: add it to commandGroups", c.name)
		}
		delete(unused, c.name)
		for _, f := range c.make().Flags {
			name, _ := namesOf(f)
			if groupOf(flagGroups, c.name+"/"+name, name) == "" {
				t.Errorf("flag --%s of %s has no group: add it to flagGroups", name, c.name)
			}
			delete(unused, c.name+"/"+name)
			delete(unused, name)
		}
	}
	for name, is := range unused {
		if is {
			t.Errorf("%s is in a group, but is no command and no flag", name)
		}
	}
	_, help, _ := runs("--help")
	_, call, _ := runs("call", "--help")
	_, ls, _ := runs("ls", "--help")
	for want, text := range map[string]string{
		"\n\nCall functions:\n  call ": help, "\n\nWhat is sent:\n  --data ": call, "\n\nMessages:\n  --quiet": call, "\nFlags:\n  --json": ls,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

// TestElsewhere checks that verbs which people try first lead to commands that exist, with
// flags that they have.
func TestElsewhere(t *testing.T) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(source), "func elsewhere(")
	body, _, _ = strings.Cut(body, "\n}\n")
	verbs := regexp.MustCompile(`"([a-z]+)"(?:,|:\n)`).FindAllStringSubmatch(body, -1)
	if len(verbs) < 40 {
		t.Errorf("%d verbs", len(verbs))
	}
	tables := map[string]flagTable{}
	for _, c := range commandTable {
		tables[c.name] = tableOf(c.make().Flags)
	}
	for _, v := range verbs {
		if tables[v[1]] != nil {
			t.Errorf("%s is a command", v[1])
		}
		for _, line := range strings.Split(elsewhere(v[1]), "; fbus ") {
			words := strings.Fields(line)
			if len(words) == 0 || tables[words[0]] == nil {
				t.Errorf("%s leads to %q", v[1], line)
				continue
			}
			for _, w := range words {
				if flag, is := strings.CutPrefix(w, "--"); is && flag != "" && tables[words[0]][flag] == nil {
					t.Errorf("%s leads to %q, which has no %s", v[1], line, w)
				}
			}
		}
	}
}
