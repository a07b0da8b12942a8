package commands

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports holds the direction of imports: main → commands → {bus/…, exec},
// where exec may import of bus only bus/args and bus/jsonrpc, and heavy or special
// packages only where they belong.
func TestImports(t *testing.T) {
	const ours = "fbus/"
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	list := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list", "-tags", "urfave_cli_no_docs"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	direct := map[string][]string{}
	for _, line := range list("-f", `{{.ImportPath}} {{join .Imports " "}}`, "fbus/...") {
		words := strings.Fields(line)
		direct[words[0]] = words[1:]
	}
	only := map[string][]string{ // who may import it
		"github.com/urfave/cli/v2":     {"fbus/commands"},
		"github.com/mattn/go-isatty":   {"fbus/commands"},
		"github.com/vmihailenco/":      {"fbus/bus/args", "fbus/bus/wire"},
		ours + "exec":                  {"fbus/commands", "fbus/exec"},
		ours + "bus":                   {"fbus/commands", "fbus/bus", "fbus/bus/"},
		ours + "commands":              {"fbus"},
		"github.com/kballard/":         {"fbus/bus/args", "fbus/commands", "fbus/exec"},
		"github.com/xrash/smetrics":    {"fbus/commands"},
		"github.com/pelletier/go-toml": {"fbus/commands"},
		"github.com/rogpeppe/":         {},
		"github.com/coreos/":           {"fbus/commands"},
		"github.com/google/go-cmp/cmp": {},
		"go.etcd.io/bbolt":             {"fbus/bus/jobs"},
		"github.com/oklog/ulid":        {"fbus/bus/jobs"},
	}
	for pkg, imports := range direct {
		for _, imp := range imports {
			for prefix, allowed := range only {
				if !strings.HasPrefix(imp, prefix) {
					continue
				}
				if pkg == ours+"exec" && (imp == ours+"bus/args" || imp == ours+"bus/jsonrpc") {
					continue // all that bus and exec share
				}
				ok := slices.ContainsFunc(allowed, func(a string) bool {
					return pkg == a || strings.HasSuffix(a, "/") && strings.HasPrefix(pkg, a)
				})
				if !ok {
					t.Errorf("%s imports %s", pkg, imp)
				}
			}
		}
	}
	for _, dep := range list("-deps", "fbus/exec") { // all that exec and bus share
		if strings.HasPrefix(dep, "fbus/bus") && dep != "fbus/bus/args" && dep != "fbus/bus/jsonrpc" {
			t.Errorf("fbus/exec depends on %s", dep)
		}
	}
	for _, dep := range list("-deps", "fbus") {
		if dep == "net/http" {
			t.Errorf("fbus links %s: every call would pay for its start", dep)
		}
	}
}
