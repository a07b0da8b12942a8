package commands

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
)

// printer prints the outcomes of many calls.
type printer struct {
	name    string // of the function
	out     *flusher
	screen  *screen
	tag     bool
	json    bool
	grouped bool          // several items make a call
	names   *fanout.Names // nil: results are printed
	log     *fanout.Log   // may be nil
	stdout  *os.File      // synced before the log shows a result as done; nil: not a file
	verbose bool
	timeout time.Duration
	title   func(t *fanout.Task) string
	worst   int // exit status
	failed  int // failures that were explained
}

// maxStderr limits a call's stderr in a line of JSON; its end is kept.
const maxStderr = 1 << 20

// printed is the part of a task that a printer keeps until its outcome.
type printed struct {
	ready bool
	job   string      // whose result it is, of fbus result
	file  string      // with -o
	tail  *tailBuffer // with --json: stderr
}

// taskItems names a task by its items.
func taskItems(t *fanout.Task) string { return strings.Join(t.Words, " ") }

// prepare makes a call's stderr go where it should, and reserves the file of its result.
// The closer is closed after the call.
func (p *printer) prepare(t *fanout.Task, req *bus.Request, file io.Closer) (io.Closer, error) {
	a, _ := t.Aux.(*printed)
	if a == nil {
		a = &printed{}
	}
	if !a.ready {
		if p.json {
			a.tail = &tailBuffer{limit: maxStderr}
		}
		if p.names != nil {
			var err error
			if a.file, err = p.names.Reserve(t); err != nil {
				return file, err
			}
		}
		a.ready, t.Aux = true, a
	}
	if p.json {
		req.Stderr = a.tail
		return file, nil
	}
	lines := &lineWriter{to: p.screen, then: file}
	if p.tag {
		lines.prefix = p.label(t)
	}
	req.Stderr = lines
	return lines, nil
}

// label is what --tag puts before a line. Control characters of an item must not reach the
// terminal with each line.
func (p *printer) label(t *fanout.Task) string {
	title := p.title(t)
	if strings.ContainsFunc(title, args.Unsafe) { // else it stays, byte for byte
		title = args.OneLine(title)
	}
	return title + "\t"
}

func (p *printer) print(o *fanout.Outcome) error {
	if o.Skipped {
		return nil
	}
	end := endOf(o.Result, o.Err, p.timeout)
	p.worst = max(p.worst, end.Status)
	p.explain(o, end)
	var err error
	switch {
	case p.json:
		err = p.printJSON(o, end)
	case p.names != nil:
	case p.tag:
		lines := &lineWriter{to: p.out, prefix: p.label(&o.Task)}
		if _, err = io.Copy(lines, o.Output.Reader()); err == nil {
			err = lines.Close()
		}
	default:
		_, err = io.Copy(p.out, o.Output.Reader())
		if err == nil && o.Output.Size() > 0 && o.Output.Last() != '\n' {
			_, err = p.out.Write([]byte{'\n'})
		}
	}
	if err != nil {
		return outputError(err)
	}
	p.log.Add(o, end)
	return nil
}

// outputError is the error of a command whose output cannot be written.
func outputError(err error) error {
	if e := new(args.Error); errors.As(err, &e) && strings.HasPrefix(e.Message, outputPrefix) {
		return err // of an outputFile
	}
	return fail(args.CodeInternal, outputPrefix+"%v", err)
}

const outputPrefix = "output: "

// maxExplained limits how many failures are explained without -v.
const maxExplained = 20

// explain prints why a call failed, unless its program did.
func (p *printer) explain(o *fanout.Outcome, end args.End) {
	if o.Err == nil || p.json && !p.verbose || end.Code == codeInterrupted {
		return
	}
	msg := strings.TrimPrefix(end.Message, p.name+": ")
	switch {
	case end.Source == args.FromSignal:
		msg = "program was ended by " + end.Code
	case end.Source == args.FromProgram && !p.verbose:
		return
	case end.Source == args.FromProgram:
		msg = statusOnly(end.Status).Error()
	}
	if p.failed++; p.failed > maxExplained && !p.verbose {
		if p.failed == maxExplained+1 {
			p.screen.say("further failures are not shown; -v shows all")
		}
		return
	}
	p.screen.say("%s: %s: %s", p.name, args.Shorten(p.title(&o.Task)), msg)
}

// rest is called when there is nothing to print for now. The log is written after the
// output of the calls that it shows as done.
func (p *printer) rest() error {
	if p.log == nil {
		return p.out.soon()
	}
	if err := p.flush(); err != nil {
		return err
	}
	return p.log.Flush()
}

func (p *printer) close() error {
	p.out.close() // flush returns its error
	if err := p.flush(); err != nil {
		return err
	}
	return p.log.Close()
}

// flush writes the results that were printed, and makes them survive a power cut if the
// log is about to show them as done.
func (p *printer) flush() error {
	err := p.out.flush()
	if err == nil && p.stdout != nil {
		err = p.stdout.Sync()
	}
	if err != nil {
		return outputError(err)
	}
	return nil
}

// writeFile puts a result into its file.
func (p *printer) writeFile(o *fanout.Outcome) {
	if err := writeResult(o.Aux.(*printed).file, o.Output); err != nil {
		o.Err = outputError(err)
	}
}

func writeResult(name string, result *fanout.Output) error {
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		return &os.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	var out outputFile
	if err := out.open(name, 0o777); err != nil {
		return err
	}
	defer out.discard()
	if _, err := io.Copy(&out, result.Reader()); err != nil {
		return err
	}
	return out.commit()
}

// mapLine is a line of --json without its first fields: item, which is a string, or an
// array of them with -N, or null with call --all; and output, the call's stdout.
type mapLine struct {
	Encoding     string  `json:"encoding,omitempty"`      // "base64" if output is not UTF-8
	ItemEncoding string  `json:"item_encoding,omitempty"` // "base64" if item is not
	File         string  `json:"file,omitempty"`          // where the output is, with -o
	Stderr       string  `json:"stderr"`
	Status       int     `json:"status"` // exit status
	Source       string  `json:"source"` // "program", "signal" or "fbus"
	Code         string  `json:"code"`   // "exit", a signal's name, or fbus's code
	Message      string  `json:"message,omitempty"`
	Worker       string  `json:"worker"`
	Seconds      float64 `json:"seconds"`
	Call         string  `json:"call"`
	Tries        int     `json:"tries"`
	WorkerID     string  `json:"worker_id,omitempty"` // of call --all: two workers may have one name
}

// printJSON writes an outcome as a line. The output may be long: it is streamed.
func (p *printer) printJSON(o *fanout.Outcome, end args.End) error {
	l := mapLine{
		Status: end.Status, Source: end.Source.String(), Code: end.Code, Message: end.Message, Call: o.Result.Call,
		Worker: o.Result.Worker, Seconds: seconds(o.Took), Tries: o.Tries,
	}
	if id, ok := strings.CutPrefix(o.On, "#"); ok {
		l.WorkerID = id
	}
	if a, ok := o.Aux.(*printed); ok {
		l.Stderr = a.tail.String()
		if o.Err == nil {
			l.File = a.file
		}
	}
	var item any
	item, l.ItemEncoding = itemJSON(o.Words, p.grouped)
	head, err := marshal(item)
	if err != nil {
		return err
	}
	write(p.out, &err, `{"item":`, string(head), `,"output":"`)
	if p.names == nil && err == nil {
		l.Encoding, err = writeOutput(p.out, o.Output)
	}
	rest, merr := marshal(l)
	if merr != nil {
		return merr
	}
	write(p.out, &err, `",`, string(rest[1:]), "\n")
	return err
}

// itemJSON returns an item for JSON, as an array if several make a call, in base64 if
// it is not UTF-8.
func itemJSON(words []string, grouped bool) (item any, encoding string) {
	if len(words) == 0 {
		return nil, ""
	}
	for _, w := range words {
		if !utf8.ValidString(w) {
			encoding = "base64"
		}
	}
	list := append([]string(nil), words...)
	if encoding != "" {
		for i, w := range list {
			list[i] = base64.StdEncoding.EncodeToString([]byte(w))
		}
	}
	if grouped {
		return list, encoding
	}
	return list[0], encoding
}

// write writes texts until one fails.
func write(w io.Writer, err *error, texts ...string) {
	for _, t := range texts {
		if *err == nil {
			_, *err = io.WriteString(w, t)
		}
	}
}

// seconds returns a time as JSON lines contain it.
func seconds(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }

// marshal is [json.Marshal] without escapes for HTML, but with those of [args.SafeJSON].
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return args.SafeJSON(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), err
}

// writeOutput writes an output as the inside of a JSON string, in base64 if it is not
// UTF-8.
func writeOutput(w io.Writer, o *fanout.Output) (encoding string, err error) {
	switch err := eachText(o.Reader(), func([]byte) error { return nil }); err {
	case nil:
		return "", eachText(o.Reader(), func(p []byte) error {
			quoted, err := marshal(string(p))
			if err == nil {
				_, err = w.Write(quoted[1 : len(quoted)-1])
			}
			return err
		})
	case errNotText:
	default:
		return "", err
	}
	enc := base64.NewEncoder(base64.StdEncoding, w)
	if _, err := io.Copy(enc, o.Reader()); err != nil {
		return "", err
	}
	return "base64", enc.Close()
}

var errNotText = errors.New("not UTF-8")

// eachText passes UTF-8 to f, some whole characters at a time.
func eachText(r io.Reader, f func(p []byte) error) error {
	for in := bufio.NewReaderSize(r, 64<<10); ; {
		p, err := in.Peek(in.Size())
		if err != nil && err != io.EOF {
			return err
		}
		n := len(p)
		for err == nil && n > len(p)-utf8.UTFMax {
			if n--; utf8.RuneStart(p[n]) {
				break // its last bytes may not have come
			}
		}
		if !utf8.Valid(p[:n]) {
			return errNotText
		}
		if ferr := f(p[:n]); ferr != nil || err == io.EOF {
			return ferr
		}
		in.Discard(n)
	}
}

// flusher collects small writes, and writes them after a moment.
type flusher struct {
	mu    sync.Mutex // protects the fields below
	w     *bufio.Writer
	timer *time.Timer
	due   bool
	err   error
}

// flushWithin is how long a result may wait to be written together with others.
const flushWithin = 5 * time.Millisecond

func newFlusher(w io.Writer) *flusher { return &flusher{w: bufio.NewWriterSize(w, 64<<10)} }

func (f *flusher) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.w.Write(p)
}

// soon flushes within a moment. The error is that of an earlier flush.
func (f *flusher) soon() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.due && f.w.Buffered() > 0 {
		f.due = true
		if f.timer == nil {
			f.timer = time.AfterFunc(flushWithin, func() { f.flush() })
		} else {
			f.timer.Reset(flushWithin)
		}
	}
	return f.err
}

func (f *flusher) flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due = false
	if err := f.w.Flush(); err != nil && f.err == nil {
		f.err = err
	}
	return f.err
}

func (f *flusher) close() error {
	if f.timer != nil {
		f.timer.Stop()
	}
	return f.flush()
}

// lineWriter writes whole lines, each with a prefix, so that those of several calls do
// not mix.
type lineWriter struct {
	to      io.Writer
	prefix  string
	then    io.Closer // closed by Close, may be nil
	partial []byte
}

// maxPartial limits how much of an unfinished line is kept.
const maxPartial = 64 << 10

func (l *lineWriter) Write(p []byte) (int, error) {
	end := bytes.LastIndexByte(p, '\n') + 1
	if end == 0 && len(l.partial)+len(p) < maxPartial {
		l.partial = append(l.partial, p...)
		return len(p), nil
	}
	if end == 0 {
		end = len(p)
	}
	whole := append(l.partial, p[:end]...)
	l.partial = append([]byte(nil), p[end:]...)
	return len(p), l.write(whole)
}

func (l *lineWriter) write(lines []byte) error {
	if l.prefix == "" {
		_, err := l.to.Write(lines)
		return err
	}
	var b bytes.Buffer
	for line := range bytes.Lines(lines) {
		b.WriteString(l.prefix)
		b.Write(line)
	}
	_, err := l.to.Write(b.Bytes())
	return err
}

// Close writes and ends an unfinished last line.
func (l *lineWriter) Close() (err error) {
	if len(l.partial) > 0 {
		err = l.write(append(l.partial, '\n'))
		l.partial = nil
	}
	if l.then != nil {
		l.then.Close()
	}
	return err
}

// tailBuffer keeps the end of a text.
type tailBuffer struct {
	limit int
	b     []byte
	cut   int // bytes that were dropped
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*t.limit {
		t.trim()
	}
	return len(p), nil
}

func (t *tailBuffer) trim() {
	if more := len(t.b) - t.limit; more > 0 {
		t.cut += more
		t.b = append(t.b[:0], t.b[more:]...)
	}
}

// String returns the end, after the number of bytes that were dropped.
func (t *tailBuffer) String() string {
	if t.trim(); t.cut == 0 {
		return string(t.b)
	}
	return fmt.Sprintf("[%d bytes left out]\n%s", t.cut, t.b)
}
