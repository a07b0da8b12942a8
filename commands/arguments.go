package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
	"fbus/bus/paths"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// callArguments are the name of a function, and the words and flags for what is sent to
// it.
type callArguments struct {
	verb    string // the command, for hints
	name    string
	args    []string
	data    string
	fields  []args.Field
	input   string
	noStdin bool
	hasData bool
	tell    io.Writer // for what to do at a terminal; nil with -q
}

func (o *callArguments) flags() []cli.Flag {
	data := &cli.StringFlag{Name: "data", Aliases: []string{"d"}, Usage: "send `JSON`, or @FILE, or @- for stdin, as the arguments", Destination: &o.data}
	return append(append([]cli.Flag{data}, fieldFlags(&o.fields)...),
		&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "send `FILE`, or - for stdin, as the input", Destination: &o.input},
		&cli.BoolFlag{Name: "no-stdin", Aliases: []string{"n"}, Usage: "leave stdin alone", Destination: &o.noStdin, DisableDefaultText: true},
	)
}

// operands takes the name and the words after it.
func (o *callArguments) operands(ctx *cli.Context) error {
	words := ctx.Args().Slice()
	if len(words) == 0 {
		return usage("%s needs the name of a function", o.verb).WithHint("fbus %s NAME; fbus ls shows what is offered", o.verb)
	}
	o.name, o.args, o.hasData = words[0], words[1:], ctx.IsSet("data")
	if !ctx.Bool("quiet") {
		o.tell = ctx.App.ErrWriter
	}
	return nil
}

func (o *callArguments) check() error {
	given := 0
	for _, b := range []bool{o.hasData, len(o.fields) > 0, len(o.args) > 0} {
		if b {
			given++
		}
	}
	switch {
	case !args.ValidName(o.name):
		return usage("invalid function name %q", o.name)
	case given > 1:
		return usage("arguments are given in two ways: words, -f/-F and -d exclude each other")
	case o.input != "" && o.noStdin:
		return usage("-i and -n exclude each other")
	case o.data == "@-" && o.input == "-":
		return usage("-d @- and -i - both want stdin")
	}
	return checkFields(o.fields)
}

func fieldFlags(fields *[]args.Field) []cli.Flag {
	return []cli.Flag{
		&cli.GenericFlag{Name: "field", Aliases: []string{"f"}, Usage: "send the field `K=V`, a string; again for more", Value: addField(fields, false)},
		&cli.GenericFlag{Name: "json-field", Aliases: []string{"F"}, Usage: "send the field `K=JSON`", Value: addField(fields, true)},
	}
}

// request makes a request with the arguments and the input. The closer is for the
// input's file.
func (o *callArguments) request() (*bus.Request, io.Closer, error) {
	given, err := o.arguments()
	if err != nil {
		return nil, nil, err
	}
	req := &bus.Request{Args: given}
	switch {
	case o.input == "-", o.input == "" && given.Kind() == args.KindRaw && !o.noStdin:
		if _, err := os.Stdin.Stat(); err == nil { // else it is closed: <&-
			req.Input = inputOf(os.Stdin)
		}
	case o.input != "":
		f, err := paths.Open(o.input)
		if st, serr := os.Stat(o.input); err == nil && serr == nil && st.IsDir() {
			err = fmt.Errorf("%s: is a directory", o.input)
		}
		if err != nil {
			return nil, nil, usage("input: %v", err)
		}
		req.Input = inputOf(f)
		return req, f, nil
	}
	return req, io.NopCloser(nil), nil
}

// typingTime is how long a call may read the terminal before a person is told. Most calls
// need no input. Nobody types at a terminal that is not ours to read: there it is a quarter.
const typingTime = time.Second

// awaitTyped tells a person who has to type the input how to end it, unless stop is called
// before.
func (o *callArguments) awaitTyped(req *bus.Request) (stop func()) {
	t, typed := req.Input.(terminal)
	if o.tell == nil || !typed {
		return func() {}
	}
	after := typingTime
	if !foreground(int(t.f.Fd())) {
		after /= 4
	}
	timer := time.AfterFunc(after, func() { sayTyped(req.Input, "the input", "it; -n sends none", o.tell) })
	return func() { timer.Stop() }
}

// checkFields refuses a field of -F that is not JSON.
func checkFields(fields []args.Field) error {
	for i := range fields {
		f := &fields[i]
		if !f.JSON {
			continue
		}
		f.Value = string(args.WithoutBOM([]byte(f.Value)))
		if err := args.CheckJSON([]byte(f.Value)); err != nil {
			return usage("-F %s=…: %v", f.Name, err).WithHint("to send it as a string: -f %s", join(f.Name+"=…"))
		}
	}
	return nil
}

// arguments are the words, the fields or the document.
func (o *callArguments) arguments() (args.Args, error) {
	switch {
	case len(o.args) > 0:
		return args.List(o.args...), nil
	case len(o.fields) > 0:
		return args.Fields(o.fields...), nil
	case !o.hasData:
		return args.Args{}, nil
	}
	doc, from := []byte(o.data), "-d"
	if path, ok := strings.CutPrefix(o.data, "@"); ok {
		f, err := os.Stdin, error(nil)
		if from = "stdin"; path != "-" {
			from = path
			if f, err = paths.Open(path); err == nil {
				defer f.Close()
			}
		}
		if err == nil {
			if o.tell != nil {
				sayTyped(f, "the arguments, JSON,", "them", o.tell)
			}
			doc, err = io.ReadAll(io.LimitReader(inputOf(f), wire.MaxArgs+1))
		}
		if err != nil {
			return args.Args{}, usage("data: %v", err)
		}
	}
	if len(doc) > wire.MaxArgs {
		return args.Args{}, fail(args.CodeBadInput, "%s: a document of arguments exceeds the limit of %d bytes", from, wire.MaxArgs).
			WithHint("input has no limit: fbus %s %s < FILE", o.verb, o.name)
	}
	doc = args.WithoutBOM(doc)
	if err := args.CheckJSON(doc); err != nil {
		f := usage("%s: %v", from, err)
		if from == "-d" {
			return args.Args{}, f.WithHint("for a file: -d @FILE; for words: fbus %s %s WORD", o.verb, o.name)
		}
		return args.Args{}, f
	}
	return args.JSON(doc), nil
}

// takes reports whether a worker takes nothing but "input", or nothing but "args".
func takes(workers []bus.WorkerInfo, what string) bool {
	return slices.ContainsFunc(workers, func(w bus.WorkerInfo) bool { return w.Takes == what })
}

// corrected adds the right command to the error of a call, or a post, that has sent what the
// function does not take.
func (o *callArguments) corrected(client *bus.Client, err error, on string) error {
	var e *args.Error
	if !errors.As(err, &e) || e.Code != args.CodeBadInput {
		return err
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	workers, _ := fanout.Workers(ctx, client, o.name, on)
	call := join("fbus", o.verb, o.name)
	switch words := len(o.args); {
	case takes(workers, "input") && words == 1:
		return e.WithHint("printf %%s %s | %s", join(o.args), call)
	case takes(workers, "input") && words > 1:
		return e.WithHint("printf '%%s\\n' %s | %s", join(o.args), call)
	case takes(workers, "input") && o.hasData && !strings.HasPrefix(o.data, "@"):
		return e.WithHint("printf %%s %s | %s", join(o.data), call)
	case takes(workers, "input") && (o.hasData || len(o.fields) > 0):
		return e.WithHint("%s < FILE", call)
	case takes(workers, "args") && words > 0:
		return e.WithHint("%s", join("fbus", o.verb, o.name, o.args))
	case takes(workers, "args"):
		return e.WithHint("%s ARG…", call)
	}
	return err
}

// checkTakes refuses items that none of the workers takes.
func checkTakes(verb, name string, items *fanout.Items, workers []bus.WorkerInfo) error {
	all := func(what string) bool {
		return !slices.ContainsFunc(workers, func(w bus.WorkerInfo) bool { return w.Takes != what })
	}
	input := items.Each == "raw" || items.Each == "file"
	switch {
	case all("input") && (!input || len(items.Args) > 0 || len(items.Fields) > 0):
		return fail(args.CodeBadInput, "%s: takes input on stdin, not arguments", name).WithHint("%s", join("fbus", verb, "--each", "raw", name))
	case all("args") && input:
		return fail(args.CodeBadInput, "%s: takes arguments, not input on stdin", name).WithHint("%s", join("fbus", verb, "--each", "arg", name))
	}
	return nil
}
