package commands

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
)

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
