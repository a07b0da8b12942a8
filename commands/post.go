package commands

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
	"fbus/bus/jobs"

	"github.com/urfave/cli/v2"
)

// postOptions are the flags of fbus post.
type postOptions struct {
	callArguments
	nodeOptions
	items     fanout.Items
	each      bool         // a job for each item
	job       jobs.Options // without its times, which follow
	batchThen string
	delay     durationValue
	at        time.Time // zero: not given
	backoff   durationValue
	hasUnique bool
	uniqueFor durationValue
	keep      durationValue
	timeout   durationValue
	json      bool
	quiet     bool
	function  string // that is asked; a test has its own
}

func postCommand() *cli.Command {
	o := &postOptions{callArguments: callArguments{verb: "post"}, function: "fbus.post"}
	return &cli.Command{
		Usage:     "post a job: a call that nobody waits for",
		UsageText: "post [flags] NAME [ARG…|ITEM…]",
		Description: `Sends what fbus call would send. The node keeps the job on disk and runs it when a slot
is free, at least once. Its id is printed once the job is on disk. The result is kept
for fbus result. If the program exits with 0 the job is done, with 75 it is run again
later, with 65 never again. Any other status is a failure: the job is run again up to
--retries times, then it is dead. A lost worker is no failure: the job is run again, and
is dead after three losses in a row, or with --at-most-once after the first.

  id=$(fbus post resize < big.png); fbus result "$id" > small.png
  fbus post --then notify --retries 5 resize < big.png
  fbus post --each arg --then index --else alarm fetch < urls.txt
  fbus post --each file --arg 80x80 --batch small thumb *.jpg
  fbus post --at 07:00 --unique report report
  fbus post --unique "$delivery" --unique-for 3d webhook < body.json
  fbus post --each arg --unique 'page-{}' --unique-for 1d --batch pages fetch < urls.txt

With --each, -a, -0 or -N it posts a job for each ITEM, or each line of FILE or stdin, and
prints an id a line in their order. These jobs are a batch, whose name is printed on stderr
unless --batch gives one: fbus wait, result, jobs, cancel, retry and purge take --batch. The
KEY of --unique is then a template with {}, {.}, {/}, {//} or {/.}, as fbus map has them for
names of files: 'page-{}'. The same list can be posted again: an item whose job is there
prints its id, and the job stays in its batch. The function of --batch-then gets a JSON
object with batch, poster, jobs, done, dead and cancelled. TIME is 2026-11-26T07:00:00+01:00
or, in local time, 2026-11-26 07:00, 2026-11-26 (its midnight) or 07:00, the next one. Of
the two 02:30 in autumn, when clocks are put back, it is the first, and the second once that
has passed. The function of --then, --else or --finally gets the output as its input. JSON
fields: id, batch, and of items item (an array with -N), item_encoding ("base64" where it is
not UTF-8). The function fbus.post does the same.`,
		Flags: append(slices.Concat(o.callArguments.flags(), itemFlags(&o.items), o.jobFlags(),
			o.nodeOptions.flags("wait `D|forever` for a node", "print which node it was, and with items how many jobs were posted")),
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line for each job", Destination: &o.json, DisableDefaultText: true},
			quietFlag(&o.quiet),
		),
		Action: func(ctx *cli.Context) error {
			if err := o.operands(ctx); err != nil {
				return err
			}
			for _, name := range []string{"each", "arg-file", "null", "max-args"} {
				o.each = o.each || ctx.IsSet(name)
			}
			o.hasUnique = ctx.IsSet("unique")
			return post(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// jobFlags are the flags that become options of the job.
func (o *postOptions) jobFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "then", Usage: "when it is done, post its output to the function `NAME`", Destination: &o.job.Then},
		&cli.StringFlag{Name: "else", Usage: "when it is dead, post its output to the function `NAME`", Destination: &o.job.Else},
		&cli.StringFlag{Name: "batch", Usage: "put the jobs into the batch `NAME`; default with items: a new one, whose name is printed on stderr", Destination: &o.job.Batch},
		&cli.StringFlag{Name: "batch-then", Usage: "when all jobs of the batch have ended, post their numbers to the function `NAME`, once", Destination: &o.batchThen},
		&cli.StringFlag{Name: "finally", Usage: "when it is done or dead, post its output to the function `NAME`", Destination: &o.job.Finally},
		&cli.GenericFlag{Name: "delay", Usage: "do not run it before `D` has passed", Value: &o.delay},
		&cli.GenericFlag{Name: "at", Usage: "do not run it before `TIME`: 07:00, 2026-11-26, '2026-11-26 07:00', or with a zone", Value: setter(func(s string) (err error) {
			o.at, err = parseTime(s, time.Now())
			return err
		})},
		&cli.IntFlag{Name: "retries", Usage: "run it up to `N` times more after failures", Destination: &o.job.Retries},
		&cli.BoolFlag{Name: "at-most-once", Usage: "never run it again when its worker or node was lost: it is dead then", Destination: &o.job.AtMostOnce, DisableDefaultText: true},
		&cli.GenericFlag{Name: "backoff", Usage: "wait `D` before a retry, twice as long before each further one, at most 1h; up to half of that is random; default: 1s", Value: &o.backoff},
		&cli.IntFlag{Name: "priority", Usage: "run it before jobs with a lower `N`, -100 to 100", Destination: &o.job.Priority, DefaultText: "0"},
		&cli.StringFlag{Name: "unique", Usage: "if a job of NAME with `KEY` is not finished, print its id and post nothing; if its arguments or input differ, fail with 65; with items a template: page-{}", Destination: &o.job.Unique},
		&cli.GenericFlag{Name: "unique-for", Usage: "keep the key of --unique for `D` after the end of the job", Value: &o.uniqueFor},
		&cli.GenericFlag{Name: "keep", Usage: "keep the result for `D`; after a day only while its room is not needed; default: 7d", Value: &o.keep},
		&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end an attempt after `D`", Value: &o.timeout},
		onFlag(&o.job.On),
	}
}

func (o *postOptions) check() error {
	if err := o.checkSent(); err != nil {
		return err
	}
	for _, f := range []struct{ flag, name string }{{"then", o.job.Then}, {"else", o.job.Else}, {"finally", o.job.Finally}, {"batch-then", o.batchThen}} {
		if f.name != "" && !args.ValidName(f.name) {
			return usage("--%s: invalid function name %q", f.flag, f.name)
		}
	}
	for _, f := range []struct {
		flag string
		v    *durationValue
	}{{"--backoff", &o.backoff}, {"--keep", &o.keep}, {"-t", &o.timeout}, {"--unique-for", &o.uniqueFor}} {
		if f.v.set && f.v.d <= 0 {
			if f.flag == "-t" {
				return unlimited(f.flag)
			}
			return usage("%s must be positive", f.flag)
		}
	}
	switch {
	case o.job.Batch != "" && !args.ValidName(o.job.Batch):
		return usage("--batch: invalid name %q: a batch is named like a function", o.job.Batch)
	case o.batchThen != "" && o.job.Batch == "" && !o.each:
		return usage("--batch-then needs --batch NAME, or items")
	case o.delay.set && !o.at.IsZero():
		return usage("--delay and --at exclude each other")
	case o.job.Retries < 0:
		return usage("--retries must not be negative")
	case o.job.Priority < -100 || o.job.Priority > 100:
		return usage("--priority must be from -100 to 100")
	case o.hasUnique && o.job.Unique == "":
		return usage("--unique needs a key")
	case o.uniqueFor.set && !o.hasUnique:
		return usage("--unique-for needs --unique KEY")
	case strings.ContainsRune(o.job.Unique, utf8.RuneError):
		return usage("--unique: the key is not UTF-8")
	}
	return nil
}

// checkSent checks the arguments and the input, or the items.
func (o *postOptions) checkSent() error {
	switch {
	case !o.each && len(o.items.Args) > 0:
		return usage("--arg goes with items: of --each, -a, -0 or -N").WithHint("%s", join("fbus", "post", o.name, o.items.Args, o.args))
	case !o.each && o.items.ItemField != "":
		return usage("--item-field goes with items: of --each, -a, -0 or -N")
	case !o.each:
		return o.callArguments.check()
	case !args.ValidName(o.name):
		return usage("invalid function name %q", o.name)
	case o.hasData || o.input != "" || o.noStdin:
		return usage("-d, -i and -n are for one job: with --each, -a, -0 or -N the items are sent")
	}
	o.items.Fields = o.fields
	return cmp.Or(o.items.Check(o.args), checkFields(o.fields), o.checkKeys())
}

// checkKeys refuses a key that all items would share: one of them would be posted, by chance.
func (o *postOptions) checkKeys() error {
	key := fanout.Template(o.job.Unique)
	switch {
	case !o.hasUnique:
	case key.Numbers():
		return usage("--unique %s: the number of an item changes with the list: {#} makes no key", key)
	case key.Unknown() != "":
		return usage("--unique %s: %s is not supported, only %s", key, key.Unknown(), strings.Join(fanout.Replacements[:5], " "))
	case key != "" && !key.Varies():
		return usage("--unique %s: all items would have the same key", key).WithHint("--unique '%s-{}', where {} is the item", strings.ReplaceAll(string(key), "'", `'\''`))
	}
	return nil
}

func (o *postOptions) keyOf(words []string) (string, error) {
	key := fanout.Template(o.job.Unique).Text(strings.Join(words, " "))
	switch {
	case key == "":
		return "", fail(args.CodeBadInput, "--unique: the item makes no key")
	case !utf8.ValidString(key):
		return "", fail(args.CodeBadInput, "--unique: the key is not UTF-8")
	}
	return key, nil
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
	defer file.Close()
	if o.tell != nil {
		sayTyped(req.Input, "the input", "it; -n sends none", o.tell)
	}
	client, err := o.connect(context.Background(), o.wait, true, stderr)
	if err != nil {
		return err
	}
	// The connection ends with this process: that is the quickest way.
	if err := o.checkBatchThen(client); err != nil {
		return err
	}
	call, err := o.request(req, o.args)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	call.Stdout = &out
	if _, err := client.Call(context.Background(), call); err != nil {
		return o.explain(noStore(o.corrected(client, err, o.job.On), o.function))
	}
	id := strings.TrimSpace(out.String())
	if o.json {
		err = printJSON(stdout, postLine{ID: id, Batch: o.job.Batch})
	} else {
		_, err = fmt.Fprintln(stdout, id)
	}
	if err != nil {
		return fail(args.CodeInternal, "output: %v: the job was posted, its id is %s", err, id)
	}
	o.sayMissing(client, stderr)
	return o.postBatchThen(client)
}

// checkBatchThen refuses a function that the end of the batch may not post to, before anything is
// posted.
func (o *postOptions) checkBatchThen(client *bus.Client) error {
	if o.batchThen == "" {
		return nil
	}
	if err := o.askBatch(client, true); err != nil {
		return o.explain(err)
	}
	return nil
}

func (o *postOptions) askBatch(client *bus.Client, check bool) error {
	doc, err := marshal(bus.BatchThen{
		Batch: o.job.Batch, Then: o.batchThen, Retries: o.job.Retries, Backoff: o.backoff.d.Seconds(), Priority: o.job.Priority, Keep: o.keep.d.Seconds(), Timeout: o.timeout.d.Seconds(),
		Check: check,
	})
	if err == nil {
		_, err = output(context.Background(), client, "fbus.batch", args.JSON(doc))
	}
	return err
}

// postBatchThen has the end of the batch post a job. It comes after the last job of this
// command, so the batch does not end between two of them.
func (o *postOptions) postBatchThen(client *bus.Client) error {
	if o.batchThen == "" {
		return nil
	}
	err := o.askBatch(client, false)
	if err != nil {
		e := o.explain(noStore(err, "fbus.batch"))
		e.Message = fmt.Sprintf("the jobs were posted, but the end of batch %s may not post to %s: %s", o.job.Batch, o.batchThen, e.Message)
		return e
	}
	return nil
}

// sayMissing reports functions of the job that nobody offers, if their names look mistyped:
// the job would wait for ever.
func (o *postOptions) sayMissing(c *bus.Client, stderr io.Writer) {
	if o.quiet {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), similarTime)
	defer cancel()
	for _, name := range []string{o.name, o.job.Then, o.job.Else, o.job.Finally} {
		if name == "" {
			continue
		}
		if n, err := fanout.Slots(ctx, c, name, ""); err != nil || n > 0 {
			continue
		}
		if near := similar(c, name); near != "" {
			say(stderr, fmt.Sprintf("%s: no worker offers it yet; did you mean %s?", name, near))
		}
	}
}

// explain is explain for a job that was not posted, or may have been.
func (o *postOptions) explain(err error) *args.Error {
	f := explain(err)
	if f.Status() == args.StatusOf(args.CodeBusy) {
		return f // from the store, not on the way there
	}
	if f.Code == args.CodeNodeLost {
		f.Message += ": the job may have been posted"
		return f.WithHint("fbus jobs shows whether it was; %s", o.doctor())
	}
	return explain(troubled(err, o.node, o.denied(err)))
}

// denied returns the function that a refusal is about.
func (o *postOptions) denied(err error) string {
	for _, name := range []string{o.job.Then, o.job.Else, o.job.Finally, o.batchThen} {
		if name != "" && strings.HasSuffix(err.Error(), " may not call "+name) {
			return name
		}
	}
	return o.name
}

func (o *postOptions) doctor() string {
	return doctorLine(o.node, []string{o.name}) + " examines the node"
}

// posting is the document that fbus.post receives with a job.
type posting struct {
	Kind  string `json:"kind"`            // of the arguments
	Input bool   `json:"input,omitempty"` // there is one in addition to the arguments
	jobs.Options
}

// kindNames are the names of kinds of arguments in a posting.
var kindNames = [...]string{args.KindRaw: "raw", args.KindList: "list", args.KindMap: "map", args.KindJSON: "json"}

// request makes the call that posts a job, which sends what req would send. The words are
// the item.
func (o *postOptions) request(req *bus.Request, words []string) (*bus.Request, error) {
	kind := req.Args.Kind()
	p := posting{Kind: kindNames[kind], Input: req.Input != nil && kind != args.KindRaw, Options: o.job}
	p.Delay, p.Backoff, p.Keep, p.Timeout = o.delay.d.Seconds(), o.backoff.d.Seconds(), o.keep.d.Seconds(), o.timeout.d.Seconds()
	p.UniqueFor = o.uniqueFor.d.Seconds()
	if o.each && o.hasUnique {
		var err error
		if p.Unique, err = o.keyOf(words); err != nil {
			return nil, err
		}
	}
	if !o.at.IsZero() {
		p.At = o.at.UTC().Format(time.RFC3339Nano)
	}
	if item := strings.Join(words, " "); p.Batch != "" && len(item) <= jobs.MaxItem {
		p.Item = item
		if !utf8.ValidString(item) {
			p.Item, p.ItemEncoding = base64.StdEncoding.EncodeToString([]byte(item)), "base64"
		}
	}
	doc, err := marshal(p)
	if err != nil {
		return nil, err
	}
	sent := []string{o.name, string(doc)}
	if kind != args.KindRaw {
		sent = append(sent, string(req.Args.Data()))
	}
	return &bus.Request{Function: o.function, Args: args.List(sent...), Input: req.Input, Stderr: os.Stderr}, nil
}

// maxPosting is how many jobs are on their way to the node at once. They share the
// node's writes to its disk, which take most of the time.
const maxPosting = 64

// postLine is a line of --json.
type postLine struct {
	ID           string `json:"id"`
	Item         any    `json:"item,omitempty"`          // a string, or an array of them with -N
	ItemEncoding string `json:"item_encoding,omitempty"` // "base64" if item is not UTF-8
	Batch        string `json:"batch,omitempty"`
}

// postItems posts a job for each item. Ids are printed in the order of the items, each
// when its job is on disk. After a failure no further job begins, but those on their way
// are waited for: they may be posted.
func postItems(o *postOptions, stdout, stderr io.Writer) error {
	items, err := o.items.Open(o.args)
	if err != nil {
		return err
	}
	client, err := o.connect(context.Background(), o.wait, false, stderr)
	if err != nil {
		return err
	}
	defer client.Close()
	p := &poster{o: o, out: newFlusher(stdout), ids: map[string]bool{}}
	if o.job.Batch == "" {
		o.job.Batch = newBatch(o.name)
		p.named = !o.quiet
	}
	if err := o.checkBatchThen(client); err != nil {
		return err
	}
	if !o.quiet {
		sayTyped(items.File, "items", "them", stderr)
	}
	p.stderr = stderr
	opened := make(chan struct{}) // closed when the last job is on its way
	close(opened)
	r := &fanout.Runner{Config: fanout.Config{
		Client: client, Function: o.function, Mode: fanout.Fixed, Jobs: maxPosting, HaltAfter: 1,
		Next: func() (fanout.Task, error) {
			<-opened // jobs are as old as the order of their items
			t, err := items.Next()
			next := make(chan struct{})
			opened, t.Aux = next, sync.OnceFunc(func() { close(next) })
			return t, err
		},
		Request: func(t *fanout.Task) (*bus.Request, io.Closer, error) {
			req, file, err := o.items.Request(t.Words)
			if err != nil {
				return nil, nil, err
			}
			call, err := o.request(req, t.Words)
			if err != nil {
				if file != nil {
					file.Close()
				}
				return nil, nil, err
			}
			next := t.Aux.(func())
			call.Opened = func(string) { next() }
			return call, file, nil
		},
		Finish: func(out *fanout.Outcome) { out.Aux.(func())() },
		Rest:   p.out.soon,
	}}
	r.Done = func(out *fanout.Outcome) error {
		if err := p.print(out); err != nil && p.output == nil {
			p.output = outputError(err)
			r.Stop(nil)
		}
		return nil
	}
	ctx, stop := endedBySignal()
	defer stop()
	defer context.AfterFunc(ctx, func() { r.Stop(context.Cause(ctx)) })()
	cause := r.Run(context.Background())
	if err := p.out.close(); err != nil && p.output == nil {
		p.output = outputError(err)
	}
	p.sayUsed(client)
	if err := p.end(cause, stderr); err != nil {
		if o.batchThen != "" && !o.quiet {
			say(stderr, fmt.Sprintf("not all items were posted: the end of batch %s does not post to %s", o.job.Batch, o.batchThen))
		}
		return err
	}
	o.sayMissing(client, stderr)
	return o.postBatchThen(client)
}

// newBatch makes up the name of a batch of jobs for a function.
func newBatch(function string) string {
	const letters = "abcdefghjkmnpqrstvwxyz23456789"
	suffix := make([]byte, 7) // 30^7: of a million batches no two are likely to have the same
	for i := range suffix {
		suffix[i] = letters[rand.IntN(len(letters))]
	}
	return function[:min(len(function), 100)] + "-" + string(suffix)
}

type poster struct {
	o      *postOptions
	out    *flusher
	stderr io.Writer
	named  bool            // the batch has a name that is to be printed
	output error           // why ids could not be printed
	count  int             // jobs that were posted
	ids    map[string]bool // theirs, with --unique, where several items may share a job
	first  *fanout.Outcome // of the first item that was not posted
	behind int             // jobs that were posted after it
	lost   int             // jobs that may have been posted
}

// print prints the id of a job.
func (p *poster) print(out *fanout.Outcome) error {
	if err := noStore(out.Err, p.o.function); err != nil {
		if p.first == nil {
			first := *out
			p.first, first.Err = &first, err
		}
		if explain(err).Code == args.CodeNodeLost {
			p.lost++
		}
		return nil
	}
	if p.first != nil {
		p.behind++
	}
	answer, _ := out.Output.Bytes()
	id := string(bytes.TrimSpace(answer))
	p.count++
	if !p.o.hasUnique {
		p.sayBatch()
	} else {
		p.ids[id] = true
		p.count = len(p.ids)
	}
	line := []byte(id)
	if p.o.json {
		l := postLine{ID: id, Batch: p.o.job.Batch}
		l.Item, l.ItemEncoding = itemJSON(out.Words, p.o.items.Per > 1)
		var err error
		if line, err = marshal(l); err != nil {
			return err
		}
	}
	_, err := p.out.Write(append(line, '\n'))
	return err
}

// sayBatch prints the name of the batch, once.
func (p *poster) sayBatch() {
	if p.named {
		p.named = false
		say(p.stderr, "batch "+p.o.job.Batch)
		say(p.stderr, "hint: fbus wait --batch "+p.o.job.Batch+" waits for it; fbus result --batch "+p.o.job.Batch+" has the results")
	}
}

// sayUsed is sayBatch at the end, if there is a job in the batch: all may have been there already.
func (p *poster) sayUsed(c *bus.Client) {
	if !p.named || p.count == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), similarTime)
	defer cancel()
	if _, _, err := listJobs(ctx, c, "fbus.jobs", &bus.JobQuery{Batch: p.o.job.Batch, Limit: 1}); !errors.Is(err, &args.Error{Code: args.CodeBadInput}) {
		p.sayBatch()
	}
}

// end returns the error of the command, with the number of jobs that were posted.
func (p *poster) end(cause error, stderr io.Writer) error {
	sofar := plural(p.count, "job") + " were posted"
	if p.count == 1 {
		sofar = "1 job was posted"
	}
	if p.o.hasUnique {
		sofar += ", or there already"
	}
	var sig *interrupted
	switch {
	case p.lost > 0:
		e := explain(p.first.Err)
		return fail(e.Code, "%s: %s; the last %d may have been", e.Message, sofar, p.lost).WithHint("fbus jobs shows them; %s", p.o.doctor())
	case p.first != nil:
		e := p.o.explain(p.first.Err)
		item := (p.first.Seq-1)*p.o.items.Per + 1 // of several that make a job, the first
		e.Message = fmt.Sprintf("item %d, %s, was not posted: %s; %s", item, args.Shorten(taskItems(&p.first.Task)), e.Message, sofar)
		if p.behind > 0 {
			e.Message += fmt.Sprintf(", of which %d for later items", p.behind)
		}
		return e
	case p.output != nil:
		e := explain(p.output)
		return fail(e.Code, "%s: %s", e.Message, sofar).WithHint("fbus jobs shows their ids")
	case errors.As(cause, &sig):
		if !p.o.quiet {
			say(stderr, "interrupted: "+sofar)
		}
		return sig
	case cause != nil:
		e := explain(cause)
		e.Message += ": " + sofar
		return e
	}
	if p.o.verbose {
		say(stderr, sofar)
	}
	return nil
}

// Layouts of a TIME. Seconds may have a fraction.
var (
	zonedLayouts = []string{time.RFC3339, "2006-01-02 15:04:05Z07:00", "2006-01-02T15:04Z07:00", "2006-01-02 15:04Z07:00"}
	localLayouts = []string{"2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02"}
	clockLayouts = []string{"15:04", "15:04:05"}
)

// late is how long ago a time may be, since computing it may have been slow. An earlier
// time is a mistake.
const late = time.Minute

// parseTime reads a TIME: a date and time, with a zone or local, or a time of day, the
// next one. Local times are in the zone of now.
func parseTime(s string, now time.Time) (time.Time, error) {
	for _, layout := range clockLayouts {
		if c, err := time.Parse(layout, s); err == nil {
			return nextClock(c, now), nil
		}
	}
	text := strings.ToUpper(s)
	for _, layout := range append(zonedLayouts, localLayouts...) {
		t, err := time.ParseInLocation(layout, text, now.Location())
		shown, zoned := time.Parse(layout, text)
		if zoned == nil && slices.Contains(localLayouts, layout) {
			t = pastTwice(t, now.Add(-late))
		}
		switch {
		case err != nil:
		case !shows(t, shown):
			return t, errors.New("local clocks skip this time: they are put forward")
		case now.Sub(t) > 365*24*time.Hour:
			return t, fmt.Errorf("that was in %d", t.Year())
		case now.Sub(t) > late:
			return t, fmt.Errorf("that was %s ago", age(now.Sub(t).Seconds()))
		case t.After(now.AddDate(100, 0, 0)):
			return t, errors.New("that is more than 100 years away")
		default:
			return t, nil
		}
	}
	if _, err := parseDuration(s); err == nil {
		return time.Time{}, fmt.Errorf("a duration, not a time: --delay %s", s)
	}
	return time.Time{}, errors.New("not a time: use 2026-11-26T07:00:00+01:00, or in local time 2026-11-26 07:00, 2026-11-26 or 07:00")
}

// nextClock returns the next time at which local clocks show c.
func nextClock(c, now time.Time) time.Time {
	at := func(day int) time.Time {
		return time.Date(now.Year(), now.Month(), now.Day()+day, c.Hour(), c.Minute(), c.Second(), c.Nanosecond(), now.Location())
	}
	for day := 0; ; day++ { // not 24 hours later: clocks change, and skip times
		if t := pastTwice(at(day), now); t.After(now) && shows(t, c) {
			return t
		}
	}
}

// pastTwice returns, of the two times at which local clocks show the same as at t since they
// are put back, the first, or the second if the first is not after now. For all other times it
// returns t.
func pastTwice(t, now time.Time) time.Time {
	start, end := t.ZoneBounds()
	for _, turn := range []time.Time{start, end} {
		if turn.IsZero() {
			continue
		}
		_, before := turn.Add(-time.Second).Zone()
		_, after := turn.Zone()
		back := time.Duration(before-after) * time.Second
		first := t
		if !t.Before(turn) {
			first = t.Add(-back)
		}
		if second := first.Add(back); back > 0 && first.Before(turn) && !second.Before(turn) {
			if first.After(now) {
				return first
			}
			return second
		}
	}
	return t
}

// shows reports whether clocks of t's zone show c's time of day at t.
func shows(t, c time.Time) bool { return t.Hour() == c.Hour() && t.Minute() == c.Minute() }
