package commands

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/mattn/go-isatty"
	"github.com/urfave/cli/v2"
)

// maxItem bounds one item that is read from a file or from stdin.
const maxItem = 64 << 20

// itemOptions are the flags that say where items come from and what each is.
type itemOptions struct {
	file string
	null bool
	per  int
	each string
}

func (o *itemOptions) flags() []cli.Flag {
	o.per, o.each = 1, "arg"
	return []cli.Flag{
		&cli.StringFlag{Name: "arg-file", Aliases: []string{"a"}, Usage: "read items from `FILE`, one a line", Destination: &o.file},
		&cli.BoolFlag{Name: "null", Aliases: []string{"0"}, Usage: "items end in NUL, not newline", Destination: &o.null, DisableDefaultText: true},
		&cli.IntFlag{Name: "max-args", Aliases: []string{"N"}, Usage: "send `N` items with each call", Destination: &o.per, DefaultText: "1"},
		&cli.StringFlag{Name: "each", Usage: "an item is an argument, the input, a document, a file to send: `arg|raw|json|file`", Destination: &o.each, DefaultText: "arg"},
	}
}

func (o *itemOptions) check(operands []string) error {
	switch {
	case o.each != "arg" && o.each != "raw" && o.each != "json" && o.each != "file":
		return usage("--each %s: arg, raw, json or file is due", o.each)
	case o.per < 1:
		return usage("-N %d: at least 1 is due", o.per)
	case o.per > 1 && o.each != "arg":
		return usage("-N sends several arguments with a call: --each %s takes one item", o.each)
	case len(operands) > 0 && o.file != "":
		return usage("items are given in two ways: as words and with -a %s", o.file)
	case len(operands) > 0 && o.null:
		return usage("-0 is for items that are read: from stdin, or with -a FILE")
	}
	return nil
}

// itemReader reads items: each call's words.
type itemReader struct {
	operands []string
	r        *bufio.Reader // nil: the operands are all
	from     string
	file     *os.File
	end      byte
	per      int
	n        int // items read
}

// open opens the source of the items.
func (o *itemOptions) open(operands []string) (*itemReader, error) {
	r := &itemReader{operands: operands, per: o.per, end: '\n', from: "stdin"}
	if o.null {
		r.end = 0
	}
	if len(operands) > 0 {
		return r, nil
	}
	r.file = os.Stdin
	if o.file != "" && o.file != "-" {
		f, err := os.Open(o.file)
		if err != nil {
			return nil, usage("items: %v", pathReason(err))
		}
		if st, err := f.Stat(); err == nil && st.IsDir() {
			f.Close()
			return nil, usage("items: %s: is a directory", o.file)
		}
		r.file, r.from = f, o.file
	} else if _, err := os.Stdin.Stat(); err != nil {
		return nil, usage("items: stdin is closed").WithHint("give them as words, or with -a FILE")
	}
	r.r = bufio.NewReaderSize(r.file, 64<<10)
	return r, nil
}

// sayWhence tells a person who is to type the items.
func (r *itemReader) sayWhence(stderr io.Writer) {
	if r.r != nil && isatty.IsTerminal(r.file.Fd()) {
		say(stderr, "reading items from the terminal: Ctrl-D ends them")
	}
}

// count is how many calls the items make, negative if it can not be known before
// they are read.
func (r *itemReader) count() int {
	if r.r == nil {
		return (len(r.operands) + r.per - 1) / r.per
	}
	st, err := r.file.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return -1
	}
	at, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return -1
	}
	buf := make([]byte, 256<<10)
	n, last := 0, r.end
	for {
		k, err := r.file.ReadAt(buf, at)
		if k > 0 {
			n += bytes.Count(buf[:k], []byte{r.end})
			last = buf[k-1]
			at += int64(k)
		}
		if err != nil {
			break
		}
	}
	if last != r.end {
		n++
	}
	return (n + r.per - 1) / r.per
}

// next returns the words of the next call; io.EOF behind the last.
func (r *itemReader) next() ([]string, error) {
	if r.r == nil {
		if len(r.operands) == 0 {
			return nil, io.EOF
		}
		n := min(r.per, len(r.operands))
		words := r.operands[:n:n]
		r.operands = r.operands[n:]
		return words, nil
	}
	words := make([]string, 0, r.per)
	for len(words) < r.per {
		w, err := r.read()
		if err == io.EOF && len(words) > 0 {
			return words, nil
		}
		if err != nil {
			return nil, err
		}
		words = append(words, w)
	}
	return words, nil
}

// read reads one item.
func (r *itemReader) read() (string, error) {
	var long []byte
	for {
		part, err := r.r.ReadSlice(r.end)
		if err == nil {
			part = part[:len(part)-1]
		}
		switch {
		case len(long)+len(part) > maxItem:
			return "", fail(args.CodeBadInput, "%s: item %d is longer than %d bytes", r.from, r.n+1, maxItem)
		case err == bufio.ErrBufferFull:
			long = append(long, part...)
			continue
		case err == io.EOF && len(long)+len(part) == 0:
			return "", io.EOF
		case err != nil && err != io.EOF:
			return "", fail(args.CodeInternal, "items: %v", pathReason(err))
		}
		r.n++
		if long == nil {
			return string(part), nil
		}
		return string(append(long, part...)), nil
	}
}

// request makes the call that the words ask for. The closer is for a file that is
// sent.
func (o *itemOptions) request(words []string) (*bus.Request, io.Closer, error) {
	switch o.each {
	case "raw":
		return &bus.Request{Input: strings.NewReader(words[0])}, nil, nil
	case "json":
		if !json.Valid([]byte(words[0])) {
			return nil, nil, fail(args.CodeBadInput, "this is not JSON: %s", shorten([]byte(words[0])))
		}
		return &bus.Request{Args: args.JSON([]byte(words[0]))}, nil, nil
	case "file":
		if st, err := os.Stat(words[0]); err == nil && st.Mode()&os.ModeNamedPipe != 0 {
			f := &lateFile{name: words[0]}
			return &bus.Request{Input: f}, f, nil
		}
		f, err := os.Open(words[0])
		if err != nil {
			return nil, nil, fail(args.CodeBadInput, "%v", withoutPath(err))
		}
		if st, err := f.Stat(); err == nil && st.IsDir() {
			f.Close()
			return nil, nil, fail(args.CodeBadInput, "is a directory")
		}
		return &bus.Request{Input: f}, f, nil
	}
	return &bus.Request{Args: args.List(words...)}, nil, nil
}

// lateFile is a FIFO, which is opened when it is read: that waits for whoever writes to
// it, and a call that is cancelled meanwhile must not wait with it.
type lateFile struct {
	name string

	mu     sync.Mutex // protects what follows, but not while the FIFO is opened
	file   *os.File
	closed bool
}

// Read implements io.Reader, for one goroutine.
func (l *lateFile) Read(p []byte) (int, error) {
	l.mu.Lock()
	f, closed := l.file, l.closed
	l.mu.Unlock()
	if f == nil && !closed {
		var err error
		if f, err = os.Open(l.name); err != nil {
			return 0, withoutPath(err)
		}
		l.mu.Lock()
		l.file, closed = f, l.closed
		l.mu.Unlock()
	}
	if closed {
		l.Close()
		return 0, os.ErrClosed
	}
	return f.Read(p)
}

// Close implements io.Closer.
func (l *lateFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// withoutPath is a file error without the file's name.
func withoutPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// label is what a person calls the item.
func label(words []string) string { return strings.Join(words, " ") }
