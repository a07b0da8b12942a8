package commands

import (
	"io"
	"strings"

	"fbus/bus"

	"github.com/urfave/cli/v2"
)

var exampleSuffix = map[string]string{"python": ".py", "perl": ".pl"}

func exampleCommand() *cli.Command {
	return &cli.Command{
		Name:      "example",
		Usage:     "print a worked client in another language",
		UsageText: "example python|perl caller|worker",
		Description: `A caller or a worker that speaks the protocol by itself, in about a hundred
lines. bus/PROTOCOL.md is the specification.

  fbus example python worker > worker.py && python3 worker.py "$FBUS_NODE" hello`,
		Action: func(ctx *cli.Context) error {
			return example(ctx.Args().Slice(), ctx.App.Writer)
		},
	}
}

func example(words []string, stdout io.Writer) error {
	const want = "fbus example python|perl caller|worker"
	if len(words) != 2 {
		return usage("a language and a part are due").withHint(want)
	}
	suffix, part := exampleSuffix[words[0]], words[1]
	if suffix == "" || part != "caller" && part != "worker" {
		return usage("there is no example %s", strings.Join(words, " ")).withHint(want)
	}
	text, err := bus.Examples.ReadFile("testdata/clients/" + part + suffix)
	if err != nil {
		return fail(exitInternal, "%v", err)
	}
	_, err = stdout.Write(text)
	return err
}
