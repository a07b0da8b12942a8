// Package testbus starts what the tests of the companions need: their programs, testscripts, and nodes.
package testbus

import (
	"cmp"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/jobs"
	"fbus/bus/node"
	"fbus/commands"
	"fbus/exec/keeper"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience bounds every wait for an event: a test that reaches it has failed.
const patience = 30 * time.Second

// Main is TestMain: it runs the tests, and the test binary is also fbus and the given programs, which are on PATH.
func Main(m *testing.M, programs map[string]func()) {
	if status, ok := keeper.Dispatch(); ok { // keepers are this binary
		os.Exit(status)
	}
	flag.Set("test.parallel", "8") // scripts wait more than they compute
	programs["fbus"] = func() { os.Exit(commands.Main()) }
	testscript.Main(m, programs)
}

// Scripts runs the scripts of this directory, each with directories of its own for all that fbus writes.
// The settings are variables of their environment.
func Scripts(t *testing.T, condition func(name string) (bool, error), settings ...string) {
	testscript.Run(t, testscript.Params{
		Dir:         ".",
		WorkdirRoot: t.TempDir(),
		Condition:   condition,
		Setup: func(env *testscript.Env) error {
			for name, dir := range map[string]string{"HOME": "home", "TMPDIR": "tmp", "FBUS_HOME": "fbus-home", "FBUS_STATE": "fbus-state"} {
				path := filepath.Join(env.WorkDir, dir)
				env.Setenv(name, path)
				if err := os.MkdirAll(path, 0o700); err != nil {
					return err
				}
			}
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a race-built process sleeps a second before its exit
			env.Vars = append(env.Vars, settings...)
			return nil
		},
	})
}

// Node is a node at a unix socket, until Stop or the end of the test.
type Node struct {
	*node.Node
	Path string // of its socket
	Stop func() // stops it; another can start at its socket
	t    testing.TB
}

// Start starts a node. By default its network is t, and its socket is in a directory of its own.
func Start(t testing.TB, cfg node.Config) *Node {
	t.Helper()
	cfg.Network = cmp.Or(cfg.Network, "t")
	if cfg.Address == "" {
		cfg.Address = filepath.Join(Dir(t), "s")
	}
	n, err := node.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := node.Listen(cfg.Address, false)
	if err != nil {
		t.Fatal(err)
	}
	go n.Serve(l) // ends when the node is closed
	x := &Node{Node: n, Path: cfg.Address, t: t, Stop: func() {
		l.Close()
		n.Close()
	}}
	t.Cleanup(x.Stop)
	return x
}

// Dial connects to the node until the end of the test.
func (x *Node) Dial(o *bus.Options) *bus.Client {
	x.t.Helper()
	c, err := bus.Dial(x.t.Context(), bus.Unix(x.Path), o)
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { c.Close() })
	return c
}

// Jobs opens a store of jobs that does not wait for the disk. It is open until the end of the test.
func Jobs(t testing.TB) *jobs.Manager {
	t.Helper()
	m, err := jobs.Open(jobs.Config{Dir: filepath.Join(Dir(t), "jobs"), Volatile: true, Warn: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// Dir makes a directory whose path is short enough for sockets.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fbus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Until waits for what no event tells of.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// Await returns the next value of a channel.
func Await[T any](t testing.TB, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatalf("never came: %s", what)
	}
	return v
}
