package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/paths"
	"fbus/bus/wire"
	"fbus/exec"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// function describes a program as a function: the flags of fbus offer, or a table in
// the file of fbus up.
type function struct {
	name        string
	argv        []string
	slots       countValue
	args        string
	encoding    string
	options     bool
	takes       string
	timeout     durationValue
	grace       durationValue
	dir         string
	env         []string
	envFiles    []string
	fileEnv     []string // the variables of these files
	idempotent  bool
	description string
	maxOutput   int64
	memory      int64
	noNode      bool
	warm        countValue
	resident    string
	pipeline    countValue
	calls       int // at once; set by check
	replyFD     countValue
	progressFD  countValue
	maxCalls    countValue
	maxIdle     durationValue
	schemaFile  string
	attrs       []string
	attributes  map[string]string // read from attrs
	schema      string            // the contents of the file

	part  *part       // its table in a file, or nil
	files []fileStamp // files on the command line of a warm or resident program
}

func newFunction() *function { return &function{grace: durationValue{d: exec.DefaultGrace}} }

// flags returns the options of a function, on the command line or in a file.
func (f *function) flags() []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{Name: "slots", Usage: "take `N` calls at once, a process each; default: the number of CPUs", Value: &f.slots},
		&cli.StringFlag{Name: "args", Usage: "pass arguments on `stdin|argv`", Destination: &f.args},
		&cli.StringFlag{Name: "encoding", Usage: "encode arguments on stdin as `json|msgpack|lines|nul`", DefaultText: "json", Destination: &f.encoding},
		&cli.BoolFlag{Name: "allow-options", Usage: "allow arguments on the command line that begin with -", Destination: &f.options, DisableDefaultText: true},
		&cli.StringFlag{Name: "takes", Usage: "refuse calls with anything but `input|args|both`: input on stdin, or arguments", DefaultText: "both", Destination: &f.takes},
		&cli.GenericFlag{Name: "warm", Usage: "keep `N` processes started ahead, each for one call", Value: &f.warm},
		&cli.StringFlag{Name: "resident", Usage: "keep processes for many calls: `lines|json`, a line or a JSON-RPC message each", Destination: &f.resident},
		&cli.GenericFlag{Name: "pipeline", Usage: "send each resident json process `N` calls at once; the function then takes slots × N", Value: &f.pipeline},
		&cli.GenericFlag{Name: "reply-fd", Usage: "read the replies of a resident process from descriptor `N` (3 to 9), not from stdout", Value: &f.replyFD},
		&cli.GenericFlag{Name: "progress-fd", Usage: "PROGRAM writes lines about its progress to descriptor `N` (3 to 9): DONE TOTAL [TEXT], or TEXT", Value: &f.progressFD},
		&cli.GenericFlag{Name: "max-calls", Usage: "replace a resident process after `N` calls", Value: &f.maxCalls},
		&cli.GenericFlag{Name: "max-idle", Usage: "replace a resident process after `D` without a call", Value: &f.maxIdle},
		&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end a call after `D`", Value: &f.timeout},
		&cli.GenericFlag{Name: "grace", Usage: "`D` between TERM and KILL", Value: &f.grace},
		&cli.StringFlag{Name: "chdir", Aliases: []string{"C"}, Usage: "run PROGRAM in `DIR`", Destination: &f.dir},
		&cli.GenericFlag{Name: "env", Aliases: []string{"e"}, Usage: "add `K=V` to PROGRAM's environment; again for more", Value: &listValue{list: &f.env}},
		&cli.GenericFlag{Name: "env-file", Usage: "add the NAME=VALUE lines of `FILE` to PROGRAM's environment; again for more", Value: &listValue{list: &f.envFiles}},
		&cli.BoolFlag{Name: "idempotent", Usage: "run a call again when its worker is lost", Destination: &f.idempotent, DisableDefaultText: true},
		&cli.StringFlag{Name: "description", Usage: "`TEXT` for fbus ls and describe", Destination: &f.description},
		&cli.StringFlag{Name: "schema", Usage: "a JSON Schema of the arguments in `FILE`, for fbus describe", Destination: &f.schemaFile},
		&cli.GenericFlag{Name: "attr", Usage: "tell companions `NAME[=VALUE]`, where VALUE may be @FILE; again for more: tool, read-only, destructive, output-type, output-schema, or a name with a dot", Value: &listValue{list: &f.attrs}},
		&cli.GenericFlag{Name: "max-output", Usage: "end a call that prints more than `SIZE` on stdout or on stderr", Value: setSize(&f.maxOutput)},
		&cli.GenericFlag{Name: "memory", Usage: "let PROGRAM use at most `SIZE` of memory", Value: setSize(&f.memory)},
		&cli.BoolFlag{Name: "no-node", Usage: "do not set FBUS_NODE for PROGRAM", Destination: &f.noNode, DisableDefaultText: true},
	}
}

// countValue is the whole number of a flag, and whether it was given.
type countValue struct {
	n   int
	set bool
}

// Set implements flag.Value.
func (v *countValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil {
		return errors.New("must be a whole number")
	}
	v.n, v.set = n, true
	return nil
}

func (v *countValue) String() string { return "" }

// check refuses options that are wrong for any program, reads the schema and computes
// the number of calls at once.
func (f *function) check() error {
	switch {
	case !args.ValidName(f.name):
		return usage("invalid function name %q: use at most 128 letters, digits, _ . and -, not . or - first", f.name)
	case strings.HasPrefix(f.name, "fbus."):
		return fail(args.CodeDenied, "%s: names that begin with fbus. belong to the node", f.name)
	}
	for _, kv := range f.env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			if strings.Trim(kv, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" { // no name: a secret
				return usage("-e: an entry must be NAME=VALUE")
			}
			return usage("-e %s: must be NAME=VALUE", kv)
		}
	}
	for _, c := range []struct {
		flag  string
		v     countValue
		least int
	}{{"slots", f.slots, 1}, {"warm", f.warm, 1}, {"pipeline", f.pipeline, 1}, {"reply-fd", f.replyFD, 3}, {"progress-fd", f.progressFD, 3}, {"max-calls", f.maxCalls, 1}} {
		if c.v.set && c.v.n < c.least {
			return usage("--%s must be at least %d", c.flag, c.least)
		}
	}
	for _, d := range []struct {
		flag string
		v    durationValue
	}{{"timeout", f.timeout}, {"max-idle", f.maxIdle}} {
		if d.v.set && d.v.d <= 0 {
			return unlimited("--" + d.flag)
		}
	}
	processes := max(f.warm.n, runtime.NumCPU())
	if f.slots.set {
		processes = f.slots.n
	}
	const over = maxSlots + 1 // so that no product overflows
	if f.calls = min(processes, over) * min(max(1, f.pipeline.n), over); f.calls > maxSlots {
		return usage("%s: too many calls at once (limit %d)", f.sizes(), maxSlots)
	}
	f.fileEnv = nil
	for _, file := range f.envFiles {
		env, err := readEnvFile(file)
		if err != nil {
			return err
		}
		f.fileEnv = append(f.fileEnv, env...)
	}
	var err error
	if f.attributes, err = readAttributes(f.attrs); err != nil {
		return err
	}
	return f.readSchema()
}

// sizes returns the given flags that decide how many calls run at once.
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

// maxSlots is the largest number of calls at once for an offer.
const maxSlots = 1 << 20

// spec returns the function in the form that package exec needs.
func (f *function) spec(log func(string, ...any)) (exec.Spec, error) {
	spec := exec.Spec{
		Name: f.name, Argv: f.argv, Dir: f.dir, Env: slices.Concat(f.fileEnv, f.env), ArgsSet: f.args != "", AllowOptions: f.options,
		Timeout: f.timeout.d, Grace: max(f.grace.d, time.Nanosecond), // 0s means at once, not the default
		MaxOutput: f.maxOutput, Memory: f.memory, Slots: f.calls, Log: log,
		Warm: f.warm.n, Pipeline: f.pipeline.n, ReplyFD: f.replyFD.n, ProgressFD: f.progressFD.n, MaxCalls: f.maxCalls.n, MaxIdle: f.maxIdle.d,
	}
	var err error
	if f.args != "" {
		if spec.Args, err = exec.ParseArgMode(f.args); err != nil {
			return spec, usage("--args must be stdin or argv, not %q", f.args)
		}
	}
	if f.encoding != "" {
		if spec.Encoding, err = args.ParseEncoding(f.encoding); err != nil {
			return spec, usage("--encoding must be json, msgpack, lines or nul, not %q", f.encoding)
		}
	}
	if f.takes != "" {
		if spec.Takes, err = exec.ParseTakes(f.takes); err != nil {
			return spec, usage("--takes must be input, args or both, not %q", f.takes)
		}
	}
	if f.resident != "" {
		if spec.Resident, err = exec.ParseProtocol(f.resident); err != nil {
			return spec, usage("--resident must be lines or json, not %q", f.resident)
		}
	}
	return spec, nil
}

// reports says whether the program can report its progress.
func (f *function) reports() bool { return f.progressFD.set || f.resident == "json" }

// mode describes the processes that are kept, "" if there are none.
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

// readSchema reads the JSON Schema of the arguments. The offer carries it for callers.
// Calls are not validated: a library for that would cost every start of fbus, with or
// without a schema. fbus --version takes 0.90 million instructions in user mode. With
// google/jsonschema-go linked it takes 1.26, 40 more page faults and 8 % more time; with
// santhosh-tekuri/jsonschema v5 14.6 million, and with v6 23.3 million.
func (f *function) readSchema() error {
	if f.schemaFile == "" {
		return nil
	}
	data, err := readSmall(f.schemaFile)
	if err != nil {
		return usage("--schema %s: %v", f.schemaFile, err)
	}
	f.schema, err = compactSchema(data)
	if err != nil {
		return usage("--schema %s%v", f.schemaFile, err)
	}
	return nil
}

// compactSchema checks that text can be a JSON Schema and removes its spaces. The error
// begins with a colon.
func compactSchema(text []byte) (string, error) {
	text = args.WithoutBOM(text)
	if err := args.CheckJSON(text); err != nil {
		return "", fmt.Errorf(": %w", err)
	}
	var out bytes.Buffer
	json.Compact(&out, text)
	switch c := out.Bytes()[0]; {
	case c != '{' && c != 't' && c != 'f':
		return "", errors.New(": not a JSON Schema: it must be an object, true or false")
	case out.Len() > wire.MaxSchema:
		return "", fmt.Errorf(": the schema has %d bytes (limit %d)", out.Len(), wire.MaxSchema)
	}
	return out.String(), nil
}

// ownAttributes are the attributes that fbus defines, and whether each has a value.
var ownAttributes = map[string]bool{"tool": false, "read-only": false, "destructive": false, "output-type": true, "output-schema": true}

// readAttributes reads NAME, NAME=VALUE and NAME=@FILE.
func readAttributes(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	attributes := map[string]string{}
	for _, word := range list {
		name, value, hasValue := strings.Cut(word, "=")
		if file, ok := strings.CutPrefix(value, "@"); ok {
			text, err := readSmall(file)
			if err != nil {
				return nil, usage("--attr %s: %s: %v", name, file, err)
			}
			value = string(args.WithoutBOM(text))
		}
		wants, ours := ownAttributes[name]
		_, twice := attributes[name]
		switch {
		case twice:
			return nil, usage("--attr %s is given twice", name)
		case !ours && !strings.Contains(name, "."):
			e := usage("--attr %s: unknown attribute: names without a dot are fbus's own", name)
			if near := nearest(name, ownNames()); near != "" {
				return nil, e.WithHint("did you mean %s?", near)
			}
			return nil, e.WithHint("fbus knows %s; your own need a dot, as in x.%s", strings.Join(ownNames(), ", "), name)
		case ours && wants && value == "":
			return nil, usage("--attr %s needs a value: --attr %s=VALUE, or =@FILE", name, name)
		case ours && !wants && hasValue:
			return nil, usage("--attr %s takes no value", name)
		case name == "output-type" && !strings.Contains(strings.Trim(value, "/"), "/"):
			return nil, usage("--attr output-type: %q is not a media type", args.Shown(value)).WithHint("one has a type and a subtype: text/plain, image/png, application/json")
		case name == "output-schema":
			schema, err := compactSchema([]byte(value))
			if err != nil {
				return nil, usage("--attr output-schema%v", err)
			}
			value = schema
		}
		attributes[name] = value
	}
	if err := args.CheckAttributes(attributes); err != nil {
		return nil, usage("--attr: %v", err)
	}
	return attributes, nil
}

func ownNames() []string { return slices.Sorted(maps.Keys(ownAttributes)) }

// attributeText formats an attribute for people.
func attributeText(name, value string) string {
	if value == "" {
		return name
	}
	return fmt.Sprintf("%s=%s", name, args.Shorten(value))
}

// maxSmallFile bounds a file of variables, a schema and the value of an attribute: neither an
// environment nor an offer has room for more.
const maxSmallFile = 1 << 20

// readEnvFile reads NAME=VALUE lines. Blank lines and those that begin with # or ; are skipped, as is
// the word export. A value in matching quotes loses them; nothing else in it is special. Errors
// name the line and not its text, which may be a secret.
func readEnvFile(path string) ([]string, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, usage("--env-file %s: %v", path, err)
	}
	var env []string
	number := 0
	for line := range strings.Lines(string(args.WithoutBOM(data))) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if rest, ok := strings.CutPrefix(line, "export "); ok {
			line = strings.TrimSpace(rest)
		}
		name, value, ok := strings.Cut(line, "=")
		value = strings.TrimSpace(value)
		switch {
		case !ok:
			return nil, usage("--env-file %s:%d: a line must be NAME=VALUE", path, number)
		case !isVariable(name):
			return nil, usage("--env-file %s:%d: invalid name before =", path, number)
		case strings.ContainsRune(value, 0):
			return nil, usage("--env-file %s:%d: a NUL byte", path, number)
		}
		if n := len(value); n >= 2 && value[0] == value[n-1] && (value[0] == '"' || value[0] == '\'') {
			value = value[1 : n-1]
		}
		env = append(env, name+"="+value)
	}
	return env, nil
}

// readSmall reads a file that the user named, up to maxSmallFile: a device such as /dev/zero
// has no end. It may be a FIFO, as <(…) is. The error is without the path.
func readSmall(path string) ([]byte, error) {
	f, err := paths.Open(path)
	if err != nil {
		return nil, args.WithoutPath(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSmallFile+1))
	if err == nil && len(data) > maxSmallFile {
		err = fmt.Errorf("longer than %d bytes", maxSmallFile)
	}
	return data, args.WithoutPath(err)
}

// isVariable reports whether a name is usual for a variable.
func isVariable(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || c == '.' || c == '-' && i > 0 || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !letter && (c < '0' || c > '9' || i == 0) {
			return false
		}
	}
	return name != ""
}

// What a program at work takes of the worker's limits, and what the worker itself does.
const (
	filesEach   = 4  // its stdin, stdout and stderr, and its keeper
	filesKept   = 1  // more, for one that is kept
	filesOther  = 24 // the connection, the runtime, and a program that is being started
	threadsEach = 8  // a keeper's, and its program
	threadsOwn  = 16
)

// warnOfLimits warns if the slots of all functions need more than the limits allow. The
// functions work all the same, with as many programs at once as there is room for.
func warnOfLimits(list []*function, log func(string, ...any)) {
	slots, files := 0, 0
	for _, f := range list {
		processes := f.calls / max(1, f.pipeline.n)
		slots += processes
		each := filesEach
		if f.resident != "" || f.warm.set {
			each += filesKept
		}
		if f.replyFD.set || f.progressFD.set {
			each++
		}
		files += processes * each
	}
	name := "all functions"
	if len(list) == 1 {
		name = list[0].name
	}
	for _, l := range []struct {
		resource int
		need     int
		what     string
		hint     string
	}{
		{unix.RLIMIT_NOFILE, files + filesOther, "open files", "ulimit -n, or LimitNOFILE= of a service, sets it"},
		{unix.RLIMIT_NPROC, slots*threadsEach + threadsOwn, "processes and threads", "ulimit -u, or LimitNPROC= of a service, sets it"},
	} {
		var limit unix.Rlimit
		if l.resource == unix.RLIMIT_NPROC && os.Geteuid() == 0 { // it does not bind root
			continue
		}
		if unix.Getrlimit(l.resource, &limit) == nil && uint64(l.need) > limit.Cur {
			log("%s: %s may need %d %s, and the limit is %d", name, plural(slots, "slot"), l.need, l.what, limit.Cur)
			log("hint: fewer --slots, or a higher limit: %s", l.hint)
		}
	}
}
