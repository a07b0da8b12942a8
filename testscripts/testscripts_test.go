// Package testscripts runs the fbus command as its users do: each *.txtar here
// is one promise, made in its first line.
package testscripts

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"fbus/commands"
	"fbus/exec/keeper"

	"github.com/rogpeppe/go-internal/testscript"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// Keepers are this binary, executed again.
	if status, ok := keeper.Dispatch(); ok {
		// Not os.Exit: a race-built keeper, whose environment is its own, would
		// sleep a second in it.
		unix.Exit(status)
	}
	// Scripts wait for events far more than they compute.
	flag.Set("test.parallel", "10")
	if filepath.Base(os.Args[0]) == "fbus" {
		shiftClock()
		os.Exit(commands.Main())
	}
	testscript.Main(withFbus{m}, map[string]func(){
		"served":   func() { os.Exit(serveRequests()) },
		"manager":  func() { os.Exit(manage(os.Args[1:])) },
		"impostor": func() { os.Exit(impostor()) },
		"each":     func() { os.Exit(each()) },
	})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	p := params(t)
	p.Dir = "."
	testscript.Run(t, p)
}

// params is what all scripts are run with.
func params(t *testing.T) testscript.Params {
	root := t.TempDir() // testscript's own would stay behind when -run leaves scripts out
	// Other users have parts in some scripts.
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	return testscript.Params{
		Setup:              setup,
		WorkdirRoot:        root,
		Condition:          condition,
		RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fbus":     fbusLine,
			"node":     node,
			"offer":    offer,
			"up":       up,
			"bg":       background,
			"ended":    ended,
			"status":   status,
			"within":   within,
			"overruns": overruns,
			"signal":   sendSignal,
			"waitfor":  waitFor,
			"gone":     gone,
			"alive":    alive,
			"bytes":    countBytes,
			"same":     same,
			"forge":    forge,
			"knock":    knock,
		},
	}
}

// setup gives a script a home, an address for its node, and an end that leaves
// nothing behind.
func setup(env *testscript.Env) error {
	script, err := os.ReadFile(strings.TrimPrefix(filepath.Base(env.WorkDir), "script-") + ".txtar")
	if err != nil {
		return err
	}
	if tool := lacking(script); tool != "" {
		env.T().Skip("needs " + tool)
	}
	for _, dir := range []string{"home", "tmp", "fbus-home"} {
		if err := os.MkdirAll(filepath.Join(env.WorkDir, dir), 0o700); err != nil {
			return err
		}
	}
	env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("TMPDIR", filepath.Join(env.WorkDir, "tmp"))
	env.Setenv("FBUS_HOME", filepath.Join(env.WorkDir, "fbus-home"))
	env.Setenv("FBUS_STATE", filepath.Join(env.WorkDir, "fbus-state"))
	env.Setenv("FBUS_NODE", filepath.Join(env.WorkDir, "bus.sock"))
	if path, err := exec.LookPath("fbus"); err == nil {
		env.Setenv("FBUS", path)
	}
	// Patterns of who a caller is to the node, and of where that is.
	env.Setenv("CALLER", `uid:\d+`)
	env.Setenv("AT", regexp.QuoteMeta(env.Getenv("FBUS_NODE")))
	env.Setenv("PYTHON", python())
	env.Setenv("LC_ALL", "C.UTF-8")
	// A race-built process would sleep a second before each exit.
	env.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	r := &runner{work: env.WorkDir, started: map[string]*process{}, names: []string{"FBUS_TICKET"}, stdin: readsStdin.Match(script)}
	for _, kv := range env.Vars {
		name, _, _ := strings.Cut(kv, "=")
		r.names = append(r.names, name)
	}
	for _, m := range sets.FindAllSubmatch(script, -1) {
		r.names = append(r.names, string(m[1]))
	}
	env.Values[runnerKey{}] = r
	stop := r.bound(5 * patience)
	env.Defer(func() { stop(); r.finish(env.T()) })
	return nil
}

// extras are the programs that scripts use and that a plain machine may lack, whether it
// has the coreutils or busybox.
var extras = regexp.MustCompile(`\b(awk|cksum|cmp|diff|find|getconf|grep|install|openssl|perl|python3|sed|setsid|unshare|xargs)\b`)

// builtins are lines of scripts that name an extra and do not run it.
var builtins = regexp.MustCompile(`(?m)^(#|!? ?(cmp|grep|stdout|stderr) |waitfor !? ?grep ).*$`)

// lacking returns a program that a script uses and this machine does not have. Where
// the script itself asks for the program, as in [exec:perl], it decides alone.
func lacking(script []byte) string {
	for _, tool := range extras.FindAllString(string(builtins.ReplaceAll(script, nil)), -1) {
		if _, err := exec.LookPath(tool); err != nil && !bytes.Contains(script, []byte("exec:"+tool+"]")) {
			return tool
		}
	}
	return ""
}

// condition knows what a script may need that is not everywhere.
func condition(name string) (bool, error) {
	kind, module, _ := strings.Cut(name, ":")
	switch kind {
	case "root":
		return os.Getuid() == 0, nil
	case "setpriv": // of util-linux: busybox has one that cannot change the user
		return exec.Command("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "true").Run() == nil, nil
	case "unshare":
		return exec.Command("unshare", "-m", "sh", "-c", "mount --bind / /").Run() == nil, nil
	case "netns":
		return exec.Command("unshare", "-n", "-m", "ip", "link", "set", "lo", "up").Run() == nil, nil
	case "ipv6":
		l, err := net.Listen("tcp6", "[::1]:0")
		if err == nil {
			l.Close()
		}
		return err == nil, nil
	case "perl":
		return exec.Command("perl", "-M"+module, "-e1").Run() == nil, nil
	case "python":
		return python() != "", nil
	}
	return false, fmt.Errorf("unknown condition %s", name)
}

// python is a Python that has msgpack: the first on PATH may be another than
// the one that the system's packages belong to, and a script that chooses one.
var python = sync.OnceValue(func() string {
	for _, path := range []string{"python3", "/usr/bin/python3"} {
		if out, err := exec.Command(path, "-c", "import sys; from msgpack import packb; print(sys.executable)").Output(); err == nil {
			return strings.TrimSpace(string(out))
		}
	}
	return ""
})
