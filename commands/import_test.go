package commands

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"fbus/bus/args"
)

// TestImportReserved asks the shells that are here for their reserved words and
// builtins: none of those that bash and dash have may be imported.
func TestImportReserved(t *testing.T) {
	path, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash")
	}
	out, err := exec.Command(path, "--norc", "-c", "compgen -k; compgen -b").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		if args.ValidName(name) && unfit(name) == "" {
			t.Errorf("%s can be imported", name)
		}
	}
	if zsh, err := exec.LookPath("zsh"); err == nil {
		out, err := exec.Command(zsh, "-fc", "zmodload zsh/parameter; print -l $reswords").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(string(out)) {
			if args.ValidName(name) && unfit(name) == "" {
				t.Errorf("%s can be imported, and zsh has it as a reserved word", name)
			}
		}
	}
}

func TestImportLists(t *testing.T) {
	if !slices.IsSorted(strings.Fields(builtins)) {
		t.Error("the builtins are not in order")
	}
	for _, list := range []string{reservedWords, specialBuiltins, builtins} {
		for _, name := range strings.Fields(list) {
			if unfit(name) == "" || !args.ValidName(name) {
				t.Errorf("%s", name)
			}
		}
	}
	for _, name := range []string{"wc", "shout", "bus_test", "log", "a.b", "7z"} {
		if why := unfit(name); why != "" {
			t.Errorf("%s: %s", name, why)
		}
	}
}
