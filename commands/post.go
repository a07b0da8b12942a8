package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"

	"github.com/urfave/cli/v2"
)

// postOptions are the flags of fbus post.
type postOptions struct {
	callArguments
	itemOptions
	each      bool // items were asked for: a job for each
	then      string
	otherwise string
	finally   string
	delay     durationValue
	at        timeValue
	retries   int
	backoff   durationValue
	priority  int
	unique    string
	hasUnique bool
	keep      durationValue
	timeout   durationValue
	on        string
	node      string
	wait      durationValue
	keepAlive keepAliveValue
	json      bool
	quiet     bool
	verbose   bool
	function  string // that is asked; a test has its own
}

func postCommand() *cli.Command {
	o := &postOptions{callArguments: callArguments{verb: "post"}, wait: durationValue{allow: true}, function: "fbus.post"}
	return &cli.Command{
		Name:      "post",
		Usage:     "have a function called that nobody waits for",
		UsageText: "post [flags] NAME [ARG…|ITEM…]",
		Description: `What is sent is what fbus call would send. The node keeps it on disk and runs it
when a slot is free, at least once; its id is printed when it is on disk, not before.
The result stays for fbus result. A program that exits with 0 is done, with 75 it is
to be run later, with 65 never again; anything else is a failure, after which it is
run again as often as --retries says. Then it is dead.

  id=$(fbus post resize < big.png); fbus result "$id" > small.png
  fbus post --then notify --retries 5 resize < big.png
  fbus post --each arg --then index --else alarm fetch < urls.txt
  fbus post --at 07:00 --unique report report

With --each, -a, -0 or -N there is a job for each ITEM, or each line of FILE or stdin,
and an id a line in their order. TIME is 2026-11-26T07:00:00+01:00 or, of here,
2026-11-26 07:00 or 07:00, the next one. NAME of --then and the others gets the output
as its input. JSON fields: id, and of items item (an array with -N), item_encoding
("base64" where it is not UTF-8). The function fbus.post does the same.`,
		Flags: append(append(append(o.callArguments.flags(), o.itemOptions.flags()...), o.jobFlags()...),
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line for each job", Destination: &o.json, DisableDefaultText: true},
			nodeFlag(&o.node),
			&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node", Value: &o.wait},
			keepAliveFlag(&o.keepAlive),
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "say which node it was, and of items how many jobs were posted"),
		),
		Action: func(ctx *cli.Context) error {
			if err := o.operands(ctx); err != nil {
				return err
			}
			for _, name := range []string{"each", "arg-file", "null", "max-args"} {
				o.each = o.each || ctx.IsSet(name)
			}
			o.hasUnique = ctx.IsSet("unique")
			for _, name := range []string{"then", "else", "finally"} {
				if ctx.IsSet(name) && ctx.String(name) == "" {
					return usage("--%s: a function's name is due, not nothing", name)
				}
			}
			return post(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// jobFlags say what becomes of the job.
func (o *postOptions) jobFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "then", Usage: "when it is done, post its output to the function `NAME`", Destination: &o.then},
		&cli.StringFlag{Name: "else", Usage: "when it is dead, post its output to the function `NAME`", Destination: &o.otherwise},
		&cli.StringFlag{Name: "finally", Usage: "when it is either, post its output to the function `NAME`", Destination: &o.finally},
		&cli.GenericFlag{Name: "delay", Usage: "run it after `D`, not before", Value: &o.delay},
		&cli.GenericFlag{Name: "at", Usage: "run it at `TIME`, not before", Value: &o.at},
		&cli.IntFlag{Name: "retries", Usage: "run it `N` times more after failures", Destination: &o.retries},
		&cli.GenericFlag{Name: "backoff", Usage: "before a retry wait `D`, twice as long before each further one, up to 1h, and up to half of it less; default: 1s", Value: &o.backoff},
		&cli.IntFlag{Name: "priority", Usage: "run it before jobs with a lower `N`, -100 to 100", Destination: &o.priority, DefaultText: "0"},
		&cli.StringFlag{Name: "unique", Usage: "if a job with `KEY` is not finished, give its id and post nothing", Destination: &o.unique},
		&cli.GenericFlag{Name: "keep", Usage: "keep the result for `D`; default: 1d", Value: &o.keep},
		&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end an attempt after `D`", Value: &o.timeout},
		onFlag(&o.on),
	}
}

func (o *postOptions) check() error {
	if err := o.checkSent(); err != nil {
		return err
	}
	for _, f := range []struct{ flag, name string }{{"then", o.then}, {"else", o.otherwise}, {"finally", o.finally}} {
		if f.name != "" && !args.ValidName(f.name) {
			return usage("--%s %s: that is no function name", f.flag, f.name)
		}
	}
	for _, f := range []struct {
		flag string
		v    *durationValue
	}{{"--backoff", &o.backoff}, {"--keep", &o.keep}, {"-t", &o.timeout}} {
		if f.v.set && f.v.d <= 0 {
			return usage("%s %s: more than nothing is due", f.flag, formatDuration(f.v.d))
		}
	}
	switch {
	case o.delay.set && o.at.set:
		return usage("--delay and --at exclude each other")
	case o.retries < 0:
		return usage("--retries %d: at least 0 is due", o.retries)
	case o.priority < -100 || o.priority > 100:
		return usage("--priority %d: -100 to 100 is due", o.priority)
	case o.hasUnique && o.unique == "":
		return usage("--unique: a key is due, not nothing")
	case strings.ContainsRune(o.unique, utf8.RuneError):
		return usage("--unique: the key is not UTF-8")
	}
	return nil
}

// checkSent checks what is to be sent: arguments and an input, or items.
func (o *postOptions) checkSent() error {
	if !o.each {
		return o.callArguments.check()
	}
	switch {
	case !args.ValidName(o.name):
		return usage("%q is no function name", o.name)
	case o.hasData || len(o.fields) > 0 || o.input != "" || o.noStdin:
		return usage("-d, -f, -F, -i and -n are for one job: with --each, -a, -0 or -N an item is what is sent")
	}
	return o.itemOptions.check(o.args)
}

func post(o *postOptions, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.each {
		return postItems(o, stdout, stderr)
	}
	req, file, err := o.callArguments.request()
	if err != nil {
		return err
	}
	if file != nil {
		defer file.Close()
	}
	client, p, err := connect(context.Background(), o.node, o.wait, &bus.Options{Name: hostname(), Eager: true, KeepAlive: o.keepAlive.d})
	if err != nil {
		return err
	}
	// The connection ends with this process: that is the quickest way.
	if o.verbose {
		say(stderr, fmt.Sprintf("node: %s (%s)", p.Addr, p.Why))
	}
	id, err := o.post(client, req)
	if err != nil {
		return o.explain(err)
	}
	if o.json {
		err = json.NewEncoder(stdout).Encode(postLine{ID: id})
	} else {
		_, err = fmt.Fprintln(stdout, id)
	}
	if err != nil {
		return fail(args.CodeInternal, "output: %v: the job was posted, its id is %s", pathReason(err), id)
	}
	return nil
}

// explain is explain for a job that was not posted, or may have been.
func (o *postOptions) explain(err error) *args.Error {
	f := explain(err)
	if f.Status() == args.StatusOf(args.CodeBusy) {
		return f // it is the store, not the way there
	}
	if f.Code == args.CodeNodeLost {
		f.Message += ": the job may have been posted"
		return f.WithHint("fbus jobs shows whether it was; %s", o.doctor())
	}
	return explain(troubled(err, o.node, o.denied(err)))
}

// denied is the function that a refusal is about.
func (o *postOptions) denied(err error) string {
	for _, name := range []string{o.then, o.otherwise, o.finally} {
		if name != "" && strings.HasSuffix(err.Error(), " may not call "+name) {
			return name
		}
	}
	return o.name
}

// doctor is what looks at a node that was lost.
func (o *postOptions) doctor() string {
	return doctorLine(o.node, []string{o.name}) + " looks at the node"
}

// posting is what fbus.post is told about a job.
type posting struct {
	Kind  string `json:"kind"`            // of the arguments
	Input bool   `json:"input,omitempty"` // there is one beside the arguments
	jobs.Options
}

// options are what the flags say of the job.
func (o *postOptions) options() jobs.Options {
	p := jobs.Options{
		Then: o.then, Else: o.otherwise, Finally: o.finally, Delay: o.delay.d.Seconds(), Retries: o.retries, Backoff: o.backoff.d.Seconds(),
		Priority: o.priority, Unique: o.unique, Keep: o.keep.d.Seconds(), Timeout: o.timeout.d.Seconds(), On: o.on,
	}
	if o.at.set {
		p.At = o.at.t.UTC().Format(time.RFC3339Nano)
	}
	return p
}

// kindNames are what fbus.post calls kinds of arguments.
var kindNames = [...]string{args.KindRaw: "raw", args.KindList: "list", args.KindMap: "map", args.KindJSON: "json"}

// post posts a job that sends what a request would, and returns its id.
func (o *postOptions) post(client *bus.Client, req *bus.Request) (string, error) {
	kind := req.Args.Kind()
	doc, err := marshal(posting{Kind: kindNames[kind], Input: req.Input != nil && kind != args.KindRaw, Options: o.options()})
	if err != nil {
		return "", err
	}
	words := []string{o.name, string(doc)}
	if kind != args.KindRaw {
		words = append(words, string(req.Args.Data()))
	}
	var id bytes.Buffer
	call := &bus.Request{Function: o.function, Args: args.List(words...), Input: req.Input, Stdout: &id, Stderr: os.Stderr, Opened: req.Opened}
	if _, err = client.Call(context.Background(), call); err != nil {
		return "", noStore(err, o.function)
	}
	return strings.TrimSpace(id.String()), nil
}
