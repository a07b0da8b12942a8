//go:build linux

package main

import (
	"os"
	"path/filepath"
	"testing"

	"fbus/commands"
	"fbus/exec/keeper"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	if status, ok := keeper.Dispatch(); ok { // keepers are this binary
		os.Exit(status)
	}
	testscript.Main(m, map[string]func(){
		"fbus":     func() { os.Exit(commands.Main()) },
		"fbus-mcp": main,
	})
}

// TestScripts runs fbus mcp as its users do.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:         ".",
		WorkdirRoot: t.TempDir(),
		Setup: func(env *testscript.Env) error {
			for name, dir := range map[string]string{"HOME": "home", "TMPDIR": "tmp", "FBUS_HOME": "fbus-home", "FBUS_STATE": "fbus-state"} {
				path := filepath.Join(env.WorkDir, dir)
				env.Setenv(name, path)
				if err := os.MkdirAll(path, 0o700); err != nil {
					return err
				}
			}
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a race-built process sleeps a second before its exit
			return nil
		},
	})
}
