package commands

import (
	"embed"
	"io"
	"maps"
	"slices"
	"strings"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// examples are the parts that use stdin and stdout only, not the protocol.
//
//go:embed examples
var examples embed.FS

// exampleParts lists the parts, and the languages of each.
var exampleParts = map[string][]string{
	"caller":        {"python", "perl"},
	"worker":        {"python", "perl"},
	"resident":      {"sh", "python", "perl", "node"},
	"resident-json": {"python", "perl", "node"},
	"pipe":          {"bash", "node", "php"},
}

var exampleSuffix = map[string]string{
	"sh": ".sh", "bash": ".sh", "python": ".py", "perl": ".pl", "node": ".js", "php": ".php",
}

func exampleCommand() *cli.Command {
	return &cli.Command{
		Usage:     "print a worked example in another language",
		UsageText: "example LANGUAGE PART",
		Description: `Prints a program that serves many calls (resident reads lines, resident-json speaks
JSON-RPC), a program that uses fbus pipe, or a caller or worker that speaks the protocol
without a library; bus/PROTOCOL.md is the specification, and fbus conformance, a companion,
judges such programs.

  fbus example sh|python|perl|node resident
  fbus example python|perl|node resident-json
  fbus example bash|node|php pipe
  fbus example python|perl caller|worker
  fbus example python worker > worker.py && python3 worker.py "$FBUS_NODE" hello

Those in Python take the file of a ticket instead of the socket, to reach another machine
with the TLS of Python.`,
		Action: func(ctx *cli.Context) error {
			return example(ctx.Args().Slice(), ctx.App.Writer)
		},
	}
}

func example(words []string, stdout io.Writer) error {
	const want = "fbus example python caller; fbus example --help lists them"
	if len(words) != 2 {
		return usage("fbus example needs a language and a part").WithHint(want)
	}
	language, part := words[0], words[1]
	languages, none := exampleParts[part], usage("no example %s", strings.Join(words, " "))
	switch {
	case languages == nil && exampleSuffix[language] == "":
		return none.WithHint(want)
	case languages == nil:
		return none.WithHint("fbus example %s %s", language, strings.Join(partsOf(language), "|"))
	case !slices.Contains(languages, language):
		return none.WithHint("fbus example %s %s", strings.Join(languages, "|"), part)
	}
	read, path := examples.ReadFile, "examples/"
	if part == "caller" || part == "worker" {
		read, path = bus.Examples.ReadFile, "testdata/clients/"
	}
	text, err := read(path + part + exampleSuffix[language])
	if err != nil {
		return fail(args.CodeInternal, "%v", err)
	}
	_, err = stdout.Write(text)
	return err
}

// partsOf lists the parts that exist in a language.
func partsOf(language string) []string {
	parts := slices.Sorted(maps.Keys(exampleParts))
	return slices.DeleteFunc(parts, func(part string) bool { return !slices.Contains(exampleParts[part], language) })
}
