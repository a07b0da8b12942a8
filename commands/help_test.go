package commands

import (
	"bytes"
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
