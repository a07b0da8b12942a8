package commands

import (
	"cmp"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// importOptions are the flags of fbus import.
type importOptions struct {
	lookOptions
	names   []string
	prefix  string
	noCheck bool
}

func importCommand() *cli.Command {
	o := &importOptions{lookOptions: lookOptions{nodeOptions: nodeOptions{wait: durationValue{allow: true}}}}
	return &cli.Command{
		Usage:     "print shell functions that call functions of the bus",
		UsageText: "import [flags] NAME…",
		Description: `Prints functions for bash, zsh and other shells, so that NAME is called like a command.
Its words are the arguments, also those that begin with -; without words, stdin is the
input. A name that the shell needs itself is refused: use a prefix. Only bash and zsh
allow names with . or -. After an error nothing is printed.

  eval "$(fbus import wc shout)"
  eval "$(fbus import --prefix bus_ test)"; bus_test -x word

The functions always call the node that --node or FBUS_NODE names now.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "prefix", Usage: "`P` before each name in the shell", Destination: &o.prefix},
			nodeFlag(&o.node),
			&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node and the functions", Value: &o.wait},
			&cli.BoolFlag{Name: "no-check", Usage: "do not check that the functions are offered", Destination: &o.noCheck, DisableDefaultText: true},
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "print the node"),
		},
		Action: func(ctx *cli.Context) error {
			o.names = ctx.Args().Slice()
			return importFunctions(o, ctx.App.Writer)
		},
	}
}

// reservedWords cannot be commands in some shell.
const reservedWords = `if then else elif fi for while until do done case esac in select function time
	coproc repeat foreach end nocorrect always`

// specialBuiltins take precedence over functions in POSIX, or end a script that fails to
// define them.
const specialBuiltins = `break continue eval exec exit export readonly return set shift times trap unset`

// builtins are those of bash, dash and zsh that scripts, prompts and completions need.
const builtins = `alias autoload bg bind bindkey builtin caller cd chdir command compgen complete compopt
	declare dirs disable disown echo emulate enable false fc fg float functions getopts hash help history integer
	jobs kill let local logout mapfile noglob popd print printf private pushd pwd read readarray rehash setopt shopt
	source suspend test true type typeset ulimit umask unalias unfunction unhash unlimit unsetopt wait whence where
	which zcompile zle zmodload zparseopts zstyle`

// oneOf reports whether a word is in a list of words. The lists are split here and not
// at the start of the program, where that would cost every call.
func oneOf(list, word string) bool { return slices.Contains(strings.Fields(list), word) }

// check refuses names that no shell function can have.
func (o *importOptions) check() error {
	if len(o.names) == 0 {
		return usage("fbus import needs a name").WithHint(`eval "$(fbus import NAME…)"; fbus ls shows what is offered`)
	}
	if o.prefix != "" && !args.ValidName(o.prefix) {
		return usage("invalid --prefix %q: use letters, digits, _ . and -", o.prefix)
	}
	for _, name := range o.names {
		if !args.ValidName(name) {
			return usage("invalid function name %q", name)
		}
		if why := unfit(o.prefix + name); why != "" {
			return usage("%s: %s", o.prefix+name, why).WithHint("under another name: %s", join("fbus", "import", "--prefix", "bus_"+o.prefix, name))
		}
	}
	return nil
}

// unfit returns why a shell function may not have a name, "" if it may.
func unfit(name string) string {
	switch {
	case oneOf(reservedWords, name):
		return "it is a reserved word of the shell"
	case oneOf(specialBuiltins, name):
		return "it is a special builtin of the shell"
	case oneOf(builtins, name):
		return "it is a builtin of the shell that scripts rely on"
	case name == "fbus":
		return "it would hide this program"
	case strings.Trim(name, "0123456789") == "":
		return "a number cannot be a command"
	}
	return ""
}

// importFunctions prints all definitions, or nothing.
func importFunctions(o *importOptions, stdout io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if !o.noCheck {
		if err := o.offered(); err != nil {
			return err
		}
	}
	addr, err := o.address()
	if err != nil {
		return err
	}
	command := []string{"fbus", "call"}
	if _, err := osexec.LookPath("fbus"); err != nil {
		if self, err := os.Executable(); err == nil {
			command[0] = self
		}
	}
	if addr != "" {
		command = append(command, "--node="+addr)
	}
	var text strings.Builder
	done := map[string]bool{}
	for _, name := range o.names {
		if !done[name] {
			text.WriteString(definition(o.prefix+name, command, name))
			done[name] = true
		}
	}
	_, err = io.WriteString(stdout, text.String())
	return err
}

// definition returns the text of a shell function. An alias of its name would replace
// the name in the definition, so it must be removed before the shell reads that. zsh
// reads the whole argument of eval first; the inner eval is for them.
func definition(name string, command []string, function string) string {
	body := fmt.Sprintf(`%s() { command %s -- "$@"; }`, name, join(command, function))
	return fmt.Sprintf("\\unalias %s 2>/dev/null || :\n\\eval %s\n", name, quoteWord(body))
}

// quoteWord quotes a word for any shell.
func quoteWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// address returns the node that was named, or "". The functions may be called in other
// directories, so a relative path becomes absolute.
func (o *importOptions) address() (string, error) {
	addr := cmp.Or(o.node, os.Getenv("FBUS_NODE"))
	if addr == "" {
		return "", nil
	}
	if o.noCheck && !wire.IsPath(addr) {
		if _, err := os.Lstat(addr); err != nil {
			return addr, nil // it does not exist yet: the call will report that
		}
	}
	p, err := find.Node(addr)
	if err != nil {
		return "", troubled(err, addr)
	}
	return forOthers(p.Addr), nil
}

// offered checks that all the names are offered, now or within the time to wait.
func (o *importOptions) offered() error {
	deadline := time.Now().Add(o.wait.d)
	look := o.lookOptions
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := o.lookFor(&look)
		left := time.Until(deadline)
		if err == nil || explain(err).Code != args.CodeNoFunction || !o.wait.set || !o.wait.forever && left <= 0 {
			return err
		}
		if !o.wait.forever {
			pause = min(pause, left)
		}
		time.Sleep(pause)
		look.verbose = false
	}
}

func (o *importOptions) lookFor(look *lookOptions) error {
	list, _, err := askFor[bus.FunctionInfo](look, "fbus.functions", o.names...)
	if err != nil {
		return err
	}
	// Names without workers, which calls wait for, are listed too.
	list = slices.DeleteFunc(list, func(f bus.FunctionInfo) bool { return len(f.Workers) == 0 })
	return look.missing(list, o.names)
}
