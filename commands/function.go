package commands

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/exec"

	"github.com/urfave/cli/v2"
)

// function describes one program as a function: what fbus offer's flags say, and
// a table of fbus up's file.
type function struct {
	name        string
	argv        []string
	slots       countValue
	args        string
	encoding    string
	options     bool
	timeout     durationValue
	grace       durationValue
	dir         string
	env         []string
	idempotent  bool
	description string
	maxOutput   sizeValue
	memory      sizeValue
	noNode      bool
	warm        countValue
	resident    string
	pipeline    countValue
	calls       int // taken at once: set by check
	replyFD     countValue
	maxCalls    countValue
	maxIdle     durationValue
	schemaFile  string
	schema      string // what the file holds

	where  string            // the file and place that declare it, if one does
	places map[string]string // of its options there
	files  []fileStamp       // on the command line of a program whose processes are kept
}

// newFunction is a function with its defaults.
func newFunction() *function { return &function{grace: durationValue{d: exec.DefaultGrace}} }

// flags are what can be said about a function, on the command line or in a file.
func (f *function) flags() []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{Name: "slots", Usage: "take `N` calls at once, a process each; default: the number of CPUs", Value: &f.slots},
		&cli.StringFlag{Name: "args", Usage: "where arguments go: `stdin|argv`", Destination: &f.args},
		&cli.StringFlag{Name: "encoding", Usage: "of arguments on stdin: `json|msgpack|lines|nul`", DefaultText: "json", Destination: &f.encoding},
		&cli.BoolFlag{Name: "allow-options", Usage: "let arguments on the command line begin with -", Destination: &f.options, DisableDefaultText: true},
		&cli.GenericFlag{Name: "warm", Usage: "keep `N` processes started ahead, each for one call", Value: &f.warm},
		&cli.StringFlag{Name: "resident", Usage: "keep processes for many calls: `lines|json`, a line or a JSON-RPC message each", Destination: &f.resident},
		&cli.GenericFlag{Name: "pipeline", Usage: "give each resident json process `N` calls at once: takes slots times N", Value: &f.pipeline},
		&cli.GenericFlag{Name: "reply-fd", Usage: "take a resident process's replies from descriptor `N`, 3 to 9, not from stdout", Value: &f.replyFD},
		&cli.GenericFlag{Name: "max-calls", Usage: "replace a resident process after `N` calls", Value: &f.maxCalls},
		&cli.GenericFlag{Name: "max-idle", Usage: "replace a resident process after `D` without a call", Value: &f.maxIdle},
		&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end a call after `D`", Value: &f.timeout},
		&cli.GenericFlag{Name: "grace", Usage: "`D` between TERM and KILL", Value: &f.grace},
		&cli.StringFlag{Name: "chdir", Aliases: []string{"C"}, Usage: "run PROGRAM in `DIR`", Destination: &f.dir},
		&cli.GenericFlag{Name: "env", Aliases: []string{"e"}, Usage: "add `K=V` to PROGRAM's environment; again for more", Value: &listValue{&f.env}},
		&cli.BoolFlag{Name: "idempotent", Usage: "a call may be run again when its worker is lost", Destination: &f.idempotent, DisableDefaultText: true},
		&cli.StringFlag{Name: "description", Usage: "`TEXT` for fbus ls and describe", Destination: &f.description},
		&cli.StringFlag{Name: "schema", Usage: "a JSON Schema of the arguments in `FILE`, for fbus describe", Destination: &f.schemaFile},
		&cli.GenericFlag{Name: "max-output", Usage: "end a call that prints more than `SIZE`", Value: &f.maxOutput},
		&cli.GenericFlag{Name: "memory", Usage: "let PROGRAM use at most `SIZE` of memory", Value: &f.memory},
		&cli.BoolFlag{Name: "no-node", Usage: "do not set FBUS_NODE for PROGRAM", Destination: &f.noNode, DisableDefaultText: true},
	}
}

// countValue is a flag's whole number that knows whether it was given.
type countValue struct {
	n   int
	set bool
}

// Set implements flag.Value.
func (v *countValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil {
		return errors.New("a whole number is due")
	}
	v.n, v.set = n, true
	return nil
}

// String implements flag.Value.
func (v *countValue) String() string { return "" }

// check finds what makes no sense whatever the program is, reads the schema and
// fills in how many slots there are.
func (f *function) check() error {
	switch {
	case !args.ValidName(f.name):
		return usage("%q is no function name: letters, digits, _ . - are due, at most 128, not . or - first", f.name)
	case strings.HasPrefix(f.name, "fbus."):
		return fail(args.CodeDenied, "%s: names that begin with fbus. are the node's own", f.name)
	}
	for _, kv := range f.env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return usage("-e %s: NAME=VALUE is due", kv)
		}
	}
	for _, c := range []struct {
		flag  string
		v     countValue
		least int
	}{{"slots", f.slots, 1}, {"warm", f.warm, 1}, {"pipeline", f.pipeline, 1}, {"reply-fd", f.replyFD, 3}, {"max-calls", f.maxCalls, 1}} {
		if c.v.set && c.v.n < c.least {
			return usage("--%s %d: at least %d is due", c.flag, c.v.n, c.least)
		}
	}
	for _, d := range []struct {
		flag string
		v    durationValue
	}{{"timeout", f.timeout}, {"max-idle", f.maxIdle}} {
		if d.v.set && d.v.d <= 0 {
			return usage("--%s %s: more than nothing is due", d.flag, formatDuration(d.v.d))
		}
	}
	if f.calls = f.slotsOf() * min(max(1, f.pipeline.n), maxSlots+1); f.calls > maxSlots {
		return usage("%s: at most %d calls at once can be offered", f.sizes(), maxSlots)
	}
	return f.readSchema()
}

// sizes are the flags that say how many calls are taken at once, as they were given.
func (f *function) sizes() string {
	var given []string
	for _, c := range []struct {
		flag string
		v    countValue
	}{{"slots", f.slots}, {"warm", f.warm}, {"pipeline", f.pipeline}} {
		if c.v.set {
			given = append(given, fmt.Sprintf("--%s %d", c.flag, c.v.n))
		}
	}
	return strings.Join(given, ", ")
}

// maxSlots is how many calls an offer may take at once.
const maxSlots = 1 << 20

// slotsOf is how many processes may run: what was said, or one for each CPU.
func (f *function) slotsOf() int {
	n := max(f.warm.n, runtime.NumCPU())
	if f.slots.set {
		n = f.slots.n
	}
	return min(n, maxSlots+1) // and no product overflows
}

// spec is the function as package exec takes it.
func (f *function) spec(log func(string, ...any)) (exec.Spec, error) {
	spec := exec.Spec{
		Name: f.name, Argv: f.argv, Dir: f.dir, Env: f.env, ArgsSet: f.args != "", AllowOptions: f.options,
		Timeout: f.timeout.d, Grace: max(f.grace.d, time.Nanosecond), // 0s is at once, not the default
		MaxOutput: f.maxOutput.n, Memory: f.memory.n, Slots: f.calls, Log: log,
		Warm: f.warm.n, Pipeline: f.pipeline.n, ReplyFD: f.replyFD.n, MaxCalls: f.maxCalls.n, MaxIdle: f.maxIdle.d,
	}
	var err error
	if f.args != "" {
		if spec.Args, err = exec.ParseArgMode(f.args); err != nil {
			return spec, usage("--args %s: stdin or argv is due", f.args)
		}
	}
	if f.encoding != "" {
		if spec.Encoding, err = args.ParseEncoding(f.encoding); err != nil {
			return spec, usage("--encoding %s: json, msgpack, lines or nul is due", f.encoding)
		}
	}
	if f.resident != "" {
		if spec.Resident, err = exec.ParseProtocol(f.resident); err != nil {
			return spec, usage("--resident %s: lines or json is due", f.resident)
		}
	}
	return spec, nil
}

// mode says which processes are kept, "" if none are.
func (f *function) mode() string {
	switch {
	case f.warm.set:
		return plural(f.warm.n, "process") + " warm"
	case f.pipeline.n > 1:
		return fmt.Sprintf("resident %s, %d calls a process", f.resident, f.pipeline.n)
	case f.resident != "":
		return "resident " + f.resident
	}
	return ""
}

func plural(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "s"):
		what += "e"
	}
	return fmt.Sprintf("%d %ss", n, what)
}
