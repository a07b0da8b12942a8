// Command fbus-mcp gives AI agents the functions of a bus as tools. It is run as fbus mcp.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/cmd/companion"
	"fbus/cmd/mcp"

	"github.com/spf13/pflag"
)

func main() { companion.Main(command) }

const help = `fbus mcp: give AI agents the functions of the bus as tools

Usage: fbus mcp [flags]
       fbus mcp doctor [flags]

Speaks the Model Context Protocol on stdin and stdout: a client such as Claude Code starts it.
Tools are the functions that are offered with --attr tool, or those of --tools.

  fbus offer lookup --attr tool --description "finds a customer" -- ./lookup.sh
  claude mcp add bus -- fbus mcp

doctor  starts fbus mcp as a client would and lists the tools. It calls one with the attribute read-only
        that needs no arguments. It says which functions cannot be tools, and prints the configuration
        for some clients.

Each call of a tool is a posted job. A call that takes longer than --task-after is answered with the id
of its job, and the agent has tools to wait for it or to end it. fbus mcp uses FBUS_TICKET, a joined
network or the local socket. There it gives up all rights but to call its tools.

Flags:
%s`

// options are the flags.
type options struct {
	node      string
	tools     []string
	names     string
	maxTools  int
	taskAfter time.Duration
	file      string
	quiet     bool
	note      func(format string, a ...any)
	described map[string]string // of the file
	words     []string          // the flags that were given, with absolute paths
}

func command(ctx context.Context, words []string, stdout, stderr io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("mcp", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringArrayVar(&o.tools, "tools", nil, "the functions that match `GLOB` are the tools, whatever their attributes; may be repeated")
	flags.StringVar(&o.names, "names", "safe", "`HOW` functions become names of tools: safe (A-Z a-z 0-9 _ -, at most 64; a dot becomes _) or exact")
	flags.IntVar(&o.maxTools, "max-tools", 40, "list at most `N` tools; if there are more, find_tool and call_tool instead")
	flags.DurationVar(&o.taskAfter, "task-after", 45*time.Second, "answer a call that is not done after `D` with the id of its job")
	flags.StringVarP(&o.file, "config", "c", "", "read `FILE` (TOML): [tools.NAME] description = \"…\"")
	flags.StringVar(&o.node, "node", "", "the node, `ADDR`: a path or host[:port]")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "no notices")
	wantHelp := flags.BoolP("help", "h", false, "show this help")
	usage := func(format string, a ...any) error {
		return args.Errorf(args.CodeUsage, format, a...).WithHint("fbus mcp --help")
	}
	if err := flags.Parse(words); err != nil {
		return usage("%v", err)
	}
	if *wantHelp {
		_, err := fmt.Fprintf(stdout, help, flags.FlagUsages())
		return err
	}
	for _, glob := range o.tools {
		if err := trust.CheckGlob(glob); err != nil {
			return usage("--tools: %v", err)
		}
	}
	switch {
	case o.names != "safe" && o.names != "exact":
		return usage("--names must be safe or exact")
	case o.maxTools < 1:
		return usage("--max-tools must be at least 1")
	case o.taskAfter <= 0:
		return usage("--task-after must be positive")
	}
	if o.file != "" {
		var err error
		if o.described, err = readFile(o.file); err != nil {
			return err
		}
	}
	o.words = given(flags)
	o.note = func(format string, a ...any) {
		if !o.quiet {
			fmt.Fprintln(stderr, "fbus:", args.OneLine(fmt.Sprintf(format, a...)))
		}
	}
	switch rest := flags.Args(); {
	case len(rest) == 0:
		return o.serve(ctx)
	case len(rest) == 1 && rest[0] == "doctor":
		return o.doctor(ctx, stdout)
	default:
		if rest[0] == "doctor" {
			rest = rest[1:]
		}
		return usage("unexpected argument %q", args.Shown(rest[0]))
	}
}

// given returns the flags that were given, for clients: they start fbus mcp in directories of their own.
func given(flags *pflag.FlagSet) (words []string) {
	flags.Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, value := range values {
			switch path, err := filepath.Abs(value); {
			case f.Value.Type() == "bool":
				value = ""
			case err == nil && (f.Name == "config" || f.Name == "node" && strings.Contains(value, "/")):
				value = path
			}
			if words = append(words, "--"+f.Name); value != "" {
				words = append(words, value)
			}
		}
	})
	return words
}

// serve speaks the protocol on stdin and stdout, until the client or ctx ends.
func (o *options) serve(ctx context.Context) error {
	signal.Ignore(syscall.SIGPIPE) // a client that was killed must not end this before its calls are ended
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	b := o.bus()
	defer b.close()
	catalog := o.catalog(b)
	followed := make(chan struct{})
	defer func() { // else the catalog would miss the node
		stop(nil)
		<-followed
	}()
	server := mcp.NewServer(catalog, o.config(b))
	defer server.Close()
	go func() { // ends with ctx
		defer close(followed)
		if err := catalog.Run(ctx); err != nil {
			stop(err)
		}
	}()
	ended := make(chan error, 1)
	go func() { // ends with the session
		ended <- server.MCP.Run(ctx, &stdio{in: os.Stdin, out: os.Stdout, gone: server.Close})
	}()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		server.Close() // the session ends when its calls have
		select {
		case <-ended:
		case <-time.After(lastTime): // nobody reads the answers
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// config returns what the server is for.
func (o *options) config(b *connector) mcp.Config {
	return mcp.Config{
		Descriptions: o.described, ExactNames: o.names == "exact", MaxTools: o.maxTools, TaskAfter: o.taskAfter, Caller: b.caller,
	}
}

func (o *options) catalog(b *connector) *mcp.Catalog {
	c := &mcp.Catalog{Connect: b.connect, Note: o.note}
	if o.tools != nil {
		r := trust.Rights{Call: o.tools}
		c.Wanted = func(f *bus.FunctionInfo) bool { return r.MayCall(f.Name) }
	}
	return c
}
