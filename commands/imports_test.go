package commands

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports holds the direction of imports: main → commands → {bus/…, exec},
// and heavy or special packages only where they belong.
func TestImports(t *testing.T) {
	const ours = "fbus/"
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	list := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
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
		"github.com/vmihailenco/":      {"fbus/bus/args", "fbus/bus/wire", "fbus/bus/vectors"},
		ours + "exec":                  {"fbus/commands", "fbus/exec"},
		ours + "bus":                   {"fbus/commands", "fbus/bus", "fbus/bus/"},
		ours + "commands":              {"fbus"},
		"github.com/kballard/":         {"fbus/bus/args", "fbus/bus/fanout", "fbus/commands", "fbus/exec"},
		"github.com/xrash/smetrics":    {"fbus/commands"},
		"github.com/pelletier/go-toml": {"fbus/commands"},
		"github.com/rogpeppe/":         {},
		"github.com/coreos/":           {"fbus/commands"},
		"github.com/google/go-cmp/cmp": {},
		"go.etcd.io/bbolt":             {"fbus/bus/jobs/store"},
		"github.com/oklog/ulid":        {"fbus/bus/jobs/store"},
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
				if !within(pkg, allowed) {
					t.Errorf("%s imports %s", pkg, imp)
				}
			}
		}
	}
	closed := map[string][]string{ // what a package links of ours, if that is bounded
		"fbus/exec":        {"fbus/exec", "fbus/exec/", "fbus/bus/args", "fbus/bus/jsonrpc"},
		"fbus/bus/args":    {"fbus/bus/args"},
		"fbus/bus/jsonrpc": {"fbus/bus/args", "fbus/bus/jsonrpc"},
		"fbus/bus/wire":    {"fbus/bus/args", "fbus/bus/wire"},
		"fbus/bus/vectors": {"fbus/bus/testdata", "fbus/bus/vectors"}, // it judges the others
		"fbus/bus/find":    {"fbus/bus/args", "fbus/bus/find", "fbus/bus/paths", "fbus/bus/trust", "fbus/bus/wire"},
		"fbus/bus":         {"fbus/bus", "fbus/bus/args", "fbus/bus/find", "fbus/bus/paths", "fbus/bus/trust", "fbus/bus/wire"},
		"fbus/bus/fanout":  {"fbus/bus", "fbus/bus/args", "fbus/bus/fanout", "fbus/bus/find", "fbus/bus/paths", "fbus/bus/trust", "fbus/bus/wire"},
	}
	for pkg, allowed := range closed {
		for _, dep := range list("-deps", pkg) {
			switch ok := within(dep, allowed); {
			case strings.HasPrefix(dep, ours) && !ok:
				t.Errorf("%s links %s", pkg, dep)
			case strings.HasPrefix(dep, "github.com/urfave/"), strings.HasPrefix(dep, "go.etcd.io/"), dep == "net/http":
				t.Errorf("%s links %s: a companion would too", pkg, dep)
			}
		}
	}
	for _, dep := range list("-deps", "fbus") {
		if dep == "net/http" {
			t.Errorf("fbus links %s: every call would pay for its start", dep)
		}
	}
}

// within reports whether a package is one of those, or below one that ends in a slash.
func within(pkg string, list []string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		return pkg == a || strings.HasSuffix(a, "/") && strings.HasPrefix(pkg, a)
	})
}
