// Package commands is the command line of fbus: one file for each command, its
// flags read into a struct, then one function that does the job.
package commands

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"fbus/bus/args"
	"fbus/exec/keeper"

	"github.com/urfave/cli/v2"
)

// Version is the program's; a release build sets it with -ldflags -X.
var Version = "0.1.0"

// Main runs the command line of this process and returns its exit status.
func Main() int {
	if status, ok := keeper.Dispatch(); ok {
		return status
	}
	if len(os.Args) > 1 && !oneOf("serve up run", os.Args[1]) { // up may be a node; run passes QUIT on
		quitAtOnce()
		if os.Args[1] != "offer" { // its programs may leave their own
			leaveNoCore()
		}
	}
	if os.Getpid() == 1 { // of a container, whatever the command
		defer keeper.ReapStrangers()()
	}
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	status := report(os.Stderr, err)
	if sig, ok := errors.AsType[*interrupted](err); ok {
		sig.die()
	}
	return status
}

// run runs one command line.
func run(line []string, stdout, stderr io.Writer) error {
	out := &checkedWriter{w: stdout}
	commands, words, err := prepare(line)
	if err != nil {
		return err
	}
	if words[0] == "--version" {
		fmt.Fprintf(out, "fbus %s\n", Version)
	} else if err := execute(newApp(commands, out, stderr), words); err != nil {
		if out.err != nil && errors.Is(err, out.err) {
			err = outputError(out.err)
		}
		if i := slices.Index(words, "--"); i > 0 && slices.Contains(words[:i], "--quiet") {
			return hintless{err}
		}
		return err
	}
	if out.err != nil {
		return outputError(out.err)
	}
	return nil
}

// execute runs a command whose words are in the order that prepare makes. It does not
// use the app's own Run: setting up every flag, given or not, took half a millisecond of
// each call.
func execute(app *cli.App, words []string) error {
	end := slices.Index(words, "--")
	if end < 0 {
		printHelp(app.Writer, appHelp, app)
		return nil
	}
	cmd := app.Commands[0]
	if slices.Contains(words[:end], "--help") {
		printHelp(app.Writer, commandHelp, cmd)
		return nil
	}
	ctx, err := parse(app, cmd, words[1:])
	if err != nil {
		return err
	}
	return cmd.Action(ctx)
}

// parse sets up and reads the flags of a command that are in normalized words.
func parse(app *cli.App, cmd *cli.Command, words []string) (*cli.Context, error) {
	set := flag.NewFlagSet(cmd.Name, flag.ContinueOnError)
	table, end := tableOf(cmd.Flags), slices.Index(words, "--")
	for _, w := range words[:end] {
		name, value, ok := strings.Cut(w[2:], "=")
		if !ok {
			value = "true"
		}
		if set.Lookup(name) == nil {
			if err := table[name].Apply(set); err != nil {
				return nil, err
			}
		}
		if err := set.Set(name, value); err != nil {
			return nil, usage("%s", valueError("--"+name, value, err)).WithHint("fbus %s --help", cmd.Name)
		}
	}
	ctx := cli.NewContext(app, set, nil)
	ctx.Command = cmd
	return ctx, set.Parse(words[end:])
}

// valueError returns the message for a bad value of an option. It does not repeat a value
// that the reason quotes.
func valueError(name, value string, err error) string {
	quoted, why := strconv.Quote(value), err.Error()
	if why == "parse error" { // of package flag
		why = "must be a whole number"
	}
	if strings.Contains(why, quoted) {
		return name + ": " + why
	}
	return fmt.Sprintf("%s %s: %s", name, strings.Trim(quoted, `"`), why)
}

// hintless is an error whose hint is not printed, because of -q.
type hintless struct{ error }

// Unwrap returns the error.
func (h hintless) Unwrap() error { return h.error }

// checkedWriter remembers the first write error, so that no command loses output and
// exits with 0.
type checkedWriter struct {
	w   io.Writer
	err error
}

func (c *checkedWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err != nil && c.err == nil {
		c.err = err
	}
	return n, err
}

// report prints an error for a person and returns the exit status.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if only, ok := errors.AsType[statusOnly](err); ok {
		return int(only)
	}
	if sig, ok := errors.AsType[*interrupted](err); ok {
		return exitSignal + int(sig.signal)
	}
	f := explain(err)
	for _, message := range messages(f) {
		say(stderr, message)
	}
	if f.Hint != "" && !errors.As(err, new(hintless)) {
		say(stderr, "hint: "+f.Hint)
	}
	return f.Status()
}

// messages returns the message of an error, or that of each problem in a file.
func messages(f *args.Error) []string {
	if errors.As(f.Err, new(problems)) {
		return strings.Split(f.Message, "\n")
	}
	return []string{f.Message}
}

// say prints a message as one line, whatever foreign texts are in it, without secrets.
func say(w io.Writer, msg string) {
	fmt.Fprintf(w, "fbus: %s\n", strings.TrimRight(args.OneLine(args.HideSecrets(msg)), " "))
}

// commandTable lists the commands, and how each mixes flags and operands. Only the
// command that runs is made, because making the others would cost every call.
var commandTable = []tableEntry{
	{"serve", serveCommand, interleaved},
	{"offer", offerCommand, nameThenProgram},
	{"up", upCommand, interleaved},
	{"call", callCommand, flagsFirst},
	{"map", mapCommand, flagsFirst},
	{"post", postCommand, flagsFirst},
	{"result", resultCommand, interleaved},
	{"wait", waitCommand, interleaved},
	{"jobs", jobsCommand, interleaved},
	{"retry", retryCommand, interleaved},
	{"purge", purgeCommand, interleaved},
	{"hold", holdCommand, interleaved},
	{"release", releaseCommand, interleaved},
	{"pipe", pipeCommand, interleaved},
	{"import", importCommand, interleaved},
	{"run", runCommand, programOnly},
	{"ls", lsCommand, interleaved},
	{"describe", describeCommand, interleaved},
	{"ps", psCommand, interleaved},
	{"cancel", cancelCommand, interleaved},
	{"status", statusCommand, interleaved},
	{"doctor", doctorCommand, interleaved},
	{"invite", inviteCommand, interleaved},
	{"join", joinCommand, interleaved},
	{"tickets", ticketsCommand, interleaved},
	{"revoke", revokeCommand, interleaved},
	{"log", logCommand, interleaved},
	{"unit", unitCommand, untilDashDash},
	{"example", exampleCommand, interleaved},
}

type tableEntry struct {
	name string
	make func() *cli.Command
	mix  mixing
}

// command makes the command.
func (e tableEntry) command() *cli.Command {
	cmd := e.make()
	cmd.Name = e.name
	return cmd
}

func allCommands() []*cli.Command {
	var list []*cli.Command
	for _, c := range commandTable {
		list = append(list, c.command())
	}
	return list
}

// elsewhere returns the fbus command for a verb that people try first, or "". It is a
// switch because a map would be filled at the start of every call.
func elsewhere(verb string) string {
	switch verb {
	case "list", "functions", "workers":
		return "ls"
	case "exec", "invoke", "request", "req", "rpc":
		return "call NAME"
	case "submit", "enqueue", "queue", "send":
		return "post NAME; fbus call NAME waits for the result"
	case "xargs", "parallel", "foreach", "each":
		return "map NAME"
	case "publish", "pub":
		return "offer NAME -- PROGRAM; fbus post NAME for a call that nobody waits for"
	case "register", "reply", "worker", "subscribe", "sub", "listen":
		return "offer NAME -- PROGRAM"
	case "server", "start", "daemon", "node":
		return "serve"
	case "systemd", "service":
		return "unit serve"
	case "kill", "stop":
		return "cancel ID"
	case "rerun", "requeue":
		return "retry ID"
	case "clean", "clear", "prune", "delete", "rm":
		return "purge"
	case "pause", "suspend", "disable":
		return "hold NAME; fbus release NAME ends it"
	case "resume", "unpause", "unhold", "continue", "enable":
		return "release NAME"
	case "schedule", "cron", "at", "later":
		return "post --at TIME NAME"
	case "output", "fetch":
		return "result ID"
	case "follow", "attach":
		return "result --follow ID; fbus log --follow shows calls"
	case "batch", "batches":
		return "post --each arg --batch NAME FUNCTION; fbus wait --batch NAME waits for it"
	case "watch", "monitor":
		return "jobs --watch; fbus log --follow shows calls"
	case "logs", "tail", "history":
		return "log --follow"
	case "login", "connect", "enter":
		return "join TICKET"
	case "ticket", "token", "grant":
		return "invite --call NAME"
	case "whoami", "nodes":
		return "status"
	case "show", "info", "inspect":
		return "describe NAME"
	case "check", "diagnose", "ping", "why":
		return "doctor"
	}
	return ""
}

// prepare finds the command and puts its words in order.
func prepare(args []string) ([]*cli.Command, []string, error) {
	switch {
	case len(args) == 0, args[0] == "-h", args[0] == "--help", args[0] == "help" && len(args) == 1:
		return allCommands(), []string{"--help"}, nil
	case args[0] == "--version", args[0] == "version" && len(args) == 1:
		return nil, []string{"--version"}, nil
	case args[0] == "help":
		args = []string{args[1], "--help"}
	}
	name := args[0]
	if strings.HasPrefix(name, "-") {
		if name == "-V" || name == "-v" && len(args) == 1 {
			return nil, nil, usage("fbus has no flag %s", name).WithHint("fbus --version; fbus COMMAND -v reports more")
		}
		for i, w := range args {
			if slices.ContainsFunc(commandTable, func(c tableEntry) bool { return c.name == w }) {
				return nil, nil, usage("flag %s before the command", name).WithHint("%s", join("fbus", w, args[:i], args[i+1:]))
			}
		}
		return nil, nil, usage("flag %s before the command", name).WithHint("flags follow the command: fbus COMMAND %s …; fbus --help lists the commands", name)
	}
	for _, c := range commandTable {
		if c.name != name {
			continue
		}
		cmd := c.command()
		words, err := normalize(name, append(cmd.Flags, cli.HelpFlag), c.mix, args[1:])
		return []*cli.Command{cmd}, append([]string{name}, words...), err
	}
	if err := runCompanion(name, args[1:]); err != nil {
		return nil, nil, err
	}
	return nil, nil, noCommand(name, args[1:])
}

func noCommand(name string, words []string) error {
	f := usage("unknown command %s", name)
	if ours := elsewhere(name); ours != "" {
		first, more, _ := strings.Cut(ours, ";")
		for _, operand := range []string{" NAME", " ID"} {
			if before, ok := strings.CutSuffix(first, operand); ok && len(words) > 0 {
				first = before + " " + join(operands(words))
			}
		}
		if more != "" {
			first += ";" + more
		}
		return f.WithHint("fbus %s", first)
	}
	words = slices.DeleteFunc(words, func(w string) bool { return w == "-h" || w == "--help" }) // fbus NAME --help
	names := slices.Collect(maps.Keys(companions()))
	for _, c := range commandTable {
		names = append(names, c.name)
	}
	if near := nearest(name, names); near != "" {
		return f.WithHint("did you mean fbus %s?", near)
	}
	return f.WithHint("fbus --help lists the commands; to call a function: %s", join("fbus", "call", operands(append([]string{name}, words...))))
}

// newApp returns the command tree.
func newApp(commands []*cli.Command, stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name: "fbus", Usage: "publish functions from the shell, and call them",
		Writer: stdout, ErrWriter: stderr, Commands: commands, ExtraInfo: companions,
	}
}

func init() {
	cli.HelpFlag = &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show this help", DisableDefaultText: true}
}
