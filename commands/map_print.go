package commands

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
)

// printer prints the outcomes of many calls.
type printer struct {
	name    string
	out     *flusher
	screen  *screen
	tag     bool
	json    bool
	grouped bool         // several items make a call
	files   *fileOutputs // nil: results are printed
	log     *jobLog      // may be nil
	verbose bool
	timeout time.Duration
	label   func(t *fanout.Task) string // nil: the item
	worst   int                         // exit status
	told    int                         // failures that were explained
	resumed atomic.Int64
}

// maxStderr is how much of a call's stderr a JSON line holds; the last of it.
const maxStderr = 1 << 20

// about is what a task carries from its start to its line of output.
type about struct {
	file string      // with -o
	tail *tailBuffer // with --json: stderr
}

// attend prepares a task: what it will be printed as, or to which file.
func (p *printer) attend(t *fanout.Task) (err error) {
	if t.Aux != nil {
		return nil // it is tried again
	}
	a := &about{}
	if p.json {
		a.tail = &tailBuffer{limit: maxStderr}
	}
	if p.files != nil {
		a.file, err = p.files.reserve(t)
	}
	t.Aux = a
	return err
}

// stderr makes a call's stderr go where it should; the closer is to be closed
// after the call.
func (p *printer) stderr(t *fanout.Task, req *bus.Request, file io.Closer) io.Closer {
	if p.json {
		req.Stderr = t.Aux.(*about).tail
		return file
	}
	lines := &lineWriter{to: p.screen}
	if p.tag {
		lines.prefix = p.title(t) + "\t"
	}
	req.Stderr = lines
	return closers{lines, file}
}

// title is what a task is called in the output.
func (p *printer) title(t *fanout.Task) string {
	if p.label != nil {
		return p.label(t)
	}
	return label(t.Words)
}

// closers are closed one after the other; nil ones are skipped.
type closers []io.Closer

// Close implements io.Closer.
func (c closers) Close() error {
	for _, x := range c {
		if x != nil {
			x.Close()
		}
	}
	return nil
}

// print prints one outcome.
func (p *printer) print(o *fanout.Outcome) error {
	if o.Skipped {
		return nil
	}
	end := endOf(o, p.timeout)
	p.worst = max(p.worst, end.Status)
	p.explain(o, end)
	var err error
	switch {
	case p.json:
		err = p.printJSON(o, end)
	case p.files != nil:
	case p.tag:
		err = p.printTagged(o)
	default:
		_, err = o.Output.WriteTo(p.out)
		if err == nil && o.Output.Size() > 0 && o.Output.Last() != '\n' {
			_, err = p.out.Write([]byte{'\n'})
		}
	}
	if err != nil {
		return outputError(err)
	}
	p.log.add(o, end.callEnd)
	return nil
}

// outputError is what ends a command that can not print.
func outputError(err error) error { return fail(args.CodeInternal, "output: %v", pathReason(err)) }

// outcomeEnd is how a call ended, with what there is to say.
type outcomeEnd struct {
	callEnd
	message string
}

// endOf turns an outcome into an end as --status-fd has it.
func endOf(o *fanout.Outcome, timeout time.Duration) outcomeEnd {
	end := outcomeEnd{callEnd: callEnd{Source: o.Result.Source.String(), Status: o.Result.Status, Code: o.Result.Code, Call: o.Result.Call}}
	var exit *bus.ExitError
	var sig *interrupted
	switch {
	case o.Err == nil:
		end.Status, end.Source = 0, args.FromProgram.String()
	case errors.As(o.Err, &exit):
	case errors.As(o.Err, &sig):
		end.Source, end.Status, end.Code = "fbus", exitSignal+int(sig.signal), "interrupted"
		end.message = "interrupted"
	case errors.Is(o.Err, fanout.ErrHalted):
		end.Source, end.Status, end.Code = "fbus", args.StatusOf(args.CodeCancelled), args.CodeCancelled
		end.message = o.Err.Error()
	default:
		f := explainCall(o.Err, timeout)
		end.Source, end.Status, end.Code, end.message = "fbus", f.Status(), f.Code, f.Message
	}
	return end
}

// maxExplained is how many failures are explained before it becomes noise.
const maxExplained = 20

// explain says why a call failed if its program did not say so itself.
func (p *printer) explain(o *fanout.Outcome, end outcomeEnd) {
	if o.Err == nil || p.json && !p.verbose {
		return
	}
	msg := end.message
	switch {
	case end.Code == "interrupted":
		return
	case end.Source == "fbus":
	case end.Source == "signal":
		msg = "program was ended by " + end.Code
	case p.verbose:
		msg = statusOnly(end.Status).Error()
	default:
		return
	}
	if p.told++; p.told > maxExplained && !p.verbose {
		if p.told == maxExplained+1 {
			p.screen.say("further failures are not shown; -v shows all")
		}
		return
	}
	p.screen.say("%s: %s: %s", p.name, shorten([]byte(p.title(&o.Task))), strings.TrimPrefix(msg, p.name+": "))
}

func (p *printer) printTagged(o *fanout.Outcome) error {
	lines := &lineWriter{to: p.out, prefix: p.title(&o.Task) + "\t"}
	if _, err := o.Output.WriteTo(lines); err != nil {
		return err
	}
	return lines.Close()
}

// rest is called when there is nothing to print for now: the log follows what
// it says is done.
func (p *printer) rest() error {
	if p.log == nil {
		return p.out.soon()
	}
	if err := p.out.flush(); err != nil {
		return outputError(err)
	}
	return p.log.flush()
}

func (p *printer) close() error {
	if err := p.out.close(); err != nil {
		return outputError(err)
	}
	return p.log.close()
}

// flusher collects small writes and passes them on within a moment.
type flusher struct {
	mu    sync.Mutex // protects the fields below
	w     *bufio.Writer
	timer *time.Timer
	due   bool
	err   error
}

// flushWithin is how long a result may wait for others to be written with it.
const flushWithin = 5 * time.Millisecond

func newFlusher(w io.Writer) *flusher { return &flusher{w: bufio.NewWriterSize(w, 64<<10)} }

// Write implements io.Writer.
func (f *flusher) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.w.Write(p)
}

// soon flushes within a moment; the error is of an earlier one.
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

// lineWriter passes whole lines on, each with a prefix, so that those of
// several calls do not mix.
type lineWriter struct {
	to      io.Writer
	prefix  string
	partial []byte
}

// maxPartial bounds what is held of a line that does not end.
const maxPartial = 64 << 10

// Write implements io.Writer.
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

// Close writes a last line that has no end, and ends it.
func (l *lineWriter) Close() error {
	if len(l.partial) == 0 {
		return nil
	}
	last := append(l.partial, '\n')
	l.partial = nil
	return l.write(last)
}

// tailBuffer keeps the last of what is written to it.
type tailBuffer struct {
	limit int
	b     []byte
	cut   int // bytes that are not kept
}

// Write implements io.Writer.
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

// String is what was kept, and how much was not.
func (t *tailBuffer) String() string {
	if t.trim(); t.cut == 0 {
		return string(t.b)
	}
	return fmt.Sprintf("[%d bytes left out]\n%s", t.cut, t.b)
}
