package fanout

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/paths"
)

// maxItem limits one item that is read from a file or from stdin.
const maxItem = 64 << 20

// Items says where items come from, and what each is.
type Items struct {
	File string // with an item a line; "" or "-": stdin
	Null bool   // items end in NUL, not newline
	Per  int    // items for each call
	Each string // "arg", "raw", "json" or "file"

	Args      []string     // sent with each item, before it
	Fields    []args.Field // in place of Args
	ItemField string       // the name of the item among Fields

	Input func(*os.File) io.Reader // how to read a file; nil: as it is
}

// input returns a reader for a file.
func (o *Items) input(f *os.File) io.Reader {
	if o.Input == nil {
		return f
	}
	return o.Input(f)
}

// Check returns an error if o makes no sense, or does not go with these operands. Names
// of flags in errors are those of fbus map and fbus post.
func (o *Items) Check(operands []string) error {
	usage := func(format string, a ...any) error { return args.Errorf(args.CodeUsage, format, a...) }
	switch {
	case o.Each != "arg" && o.Each != "raw" && o.Each != "json" && o.Each != "file":
		return usage("--each %s: must be arg, raw, json or file", o.Each)
	case o.Per < 1:
		return usage("-N must be at least 1")
	case o.Per > 1 && o.Each != "arg":
		return usage("-N sends several arguments with a call: --each %s takes one item", o.Each)
	case len(o.Args) > 0 && (len(o.Fields) > 0 || o.ItemField != ""):
		return usage("arguments are given in two ways: --arg and fields exclude each other")
	case o.Each == "json" && (len(o.Args) > 0 || len(o.Fields) > 0 || o.ItemField != ""):
		return usage("--each json sends each item as the whole document: no arguments go with it")
	case o.ItemField != "" && o.Each != "arg":
		return usage("--item-field names an item that is an argument: with --each %s it is the input", o.Each)
	case len(o.Fields) > 0 && o.Each == "arg" && o.ItemField == "":
		return args.Errorf(args.CodeUsage, "-f and -F make named arguments, and the items have no name").WithHint("--item-field NAME names them")
	case slices.ContainsFunc(o.Fields, func(f args.Field) bool { return f.Name == o.ItemField }):
		return usage("field %q is given twice: by -f or -F, and by --item-field", o.ItemField)
	case len(operands) > 0 && o.File != "":
		return usage("items are given in two ways: as words and with -a %s", o.File)
	case len(operands) > 0 && o.Null:
		return usage("-0 is for items that are read: from stdin, or with -a FILE")
	}
	return nil
}

// ItemReader reads items, as many at a time as a call gets.
type ItemReader struct {
	File *os.File // nil: the operands are the items

	operands []string
	r        *bufio.Reader
	from     string
	end      byte
	per      int
	blank    bool // blank lines are no items
	n        int  // items read
}

// Open opens the items: the operands, if there are any.
func (o *Items) Open(operands []string) (*ItemReader, error) {
	r := &ItemReader{operands: operands, per: o.Per, end: '\n', from: "stdin", blank: o.Each == "json"}
	if o.Null {
		r.end = 0
	}
	if len(operands) > 0 {
		return r, nil
	}
	r.File = os.Stdin
	if o.File != "" && o.File != "-" {
		f, err := paths.Open(o.File)
		if err != nil {
			return nil, args.Errorf(args.CodeUsage, "items: %v", err)
		}
		if st, err := f.Stat(); err == nil && st.IsDir() {
			f.Close()
			return nil, args.Errorf(args.CodeUsage, "items: %s: is a directory", o.File)
		}
		r.File, r.from = f, o.File
	} else if _, err := os.Stdin.Stat(); err != nil {
		return nil, args.Errorf(args.CodeUsage, "items: stdin is closed").WithHint("give them as words, or with -a FILE")
	}
	r.r = bufio.NewReaderSize(o.input(r.File), 64<<10)
	return r, nil
}

// Count returns the number of calls that the items make, or -1 if it is not known
// before they are read.
func (r *ItemReader) Count() int {
	if r.File == nil {
		return (len(r.operands) + r.per - 1) / r.per
	}
	st, err := r.File.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return -1
	}
	at, err := r.File.Seek(0, io.SeekCurrent)
	if err != nil {
		return -1
	}
	buf := make([]byte, 256<<10)
	n, last := 0, r.end
	for {
		k, err := r.File.ReadAt(buf, at)
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

// Next returns the task of the next call, or io.EOF. Its number is that of the call.
func (r *ItemReader) Next() (t Task, err error) {
	if r.File == nil {
		n := min(r.per, len(r.operands))
		t.Words, r.operands = r.operands[:n:n], r.operands[n:]
		r.n += n
	}
	for r.File != nil && len(t.Words) < r.per {
		w, err := r.read()
		if err == io.EOF {
			break
		}
		if err != nil {
			return t, err
		}
		t.Words = append(t.Words, w)
		t.Size += len(w)
	}
	if len(t.Words) == 0 {
		return t, io.EOF
	}
	t.Seq = (r.n + r.per - 1) / r.per
	return t, nil
}

func (r *ItemReader) read() (string, error) {
	item, err := ReadLine(r.r, r.end, maxItem)
	for r.blank && err == nil && len(bytes.TrimSpace(item[:len(item)-1])) == 0 {
		item, err = ReadLine(r.r, r.end, maxItem)
	}
	switch {
	case err == ErrLongLine:
		return "", args.Errorf(args.CodeBadInput, "%s: item %d is longer than %d bytes", r.from, r.n+1, maxItem)
	case err == io.EOF && (len(item) == 0 || r.blank && len(bytes.TrimSpace(item)) == 0):
		return "", io.EOF
	case err != nil && err != io.EOF:
		return "", args.Errorf(args.CodeInternal, "items: %v", err)
	case err == nil:
		item = item[:len(item)-1]
	}
	r.n++
	return string(item), nil
}

// ErrLongLine is the error of a line that is too long. The next lines are the rest of it,
// until there is no such error.
var ErrLongLine = errors.New("line too long")

// ReadLine reads a line of at most that many bytes, and its end, into memory of its own.
// With an error other than ErrLongLine there may be a line too.
func ReadLine(r *bufio.Reader, end byte, most int) (line []byte, err error) {
	for {
		part, err := r.ReadSlice(end)
		if len(line)+len(part) > most+1 || len(line)+len(part) > most && err != nil {
			if err == nil {
				r.UnreadByte() // the end
			}
			return nil, ErrLongLine
		}
		line = append(line, part...)
		if err != bufio.ErrBufferFull {
			return line, err
		}
	}
}

// Request makes the request for a task's words. The closer, which may be nil, is for a
// file that is sent.
func (o *Items) Request(words []string) (*bus.Request, io.Closer, error) {
	req, closer, err := o.request(words)
	if err == nil && o.Each != "json" {
		req.Args, err = o.arguments(words)
	}
	if err != nil && closer != nil {
		closer.Close()
		closer = nil
	}
	return req, closer, err
}

// arguments are the constant ones, with the item behind them if it is one.
func (o *Items) arguments(words []string) (args.Args, error) {
	fields := o.Fields
	switch {
	case o.ItemField != "" && len(words) == 1:
		fields = append(slices.Clip(fields), args.Field{Name: o.ItemField, Value: words[0]})
	case o.ItemField != "":
		list, err := json.Marshal(words)
		if !utf8.ValidString(strings.Join(words, "")) || err != nil {
			return args.Args{}, args.Errorf(args.CodeBadInput, "not UTF-8: -N makes a JSON array of them")
		}
		fields = append(slices.Clip(fields), args.Field{Name: o.ItemField, Value: string(list), JSON: true})
	case o.Each == "arg":
		return args.List(append(slices.Clip(o.Args), words...)...), nil
	}
	switch {
	case len(fields) > 0:
		return args.Fields(fields...), nil
	case len(o.Args) > 0:
		return args.List(o.Args...), nil
	}
	return args.Args{}, nil
}

// Mark tells calls apart that send different things besides the item; it is empty for none. It is
// a hash: those may be long, or secret.
func (o *Items) Mark() string {
	if len(o.Args) == 0 && len(o.Fields) == 0 && o.ItemField == "" {
		return ""
	}
	words := append([]string{o.Each, o.ItemField, strconv.Itoa(len(o.Args))}, o.Args...)
	for _, f := range o.Fields {
		words = append(words, f.Name, f.Value, strconv.FormatBool(f.JSON))
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", words))
	return hex.EncodeToString(sum[:4])
}

// request makes the request without its arguments, unless they are a document.
func (o *Items) request(words []string) (*bus.Request, io.Closer, error) {
	switch o.Each {
	case "raw":
		return &bus.Request{Input: strings.NewReader(words[0])}, nil, nil
	case "json":
		doc := args.WithoutBOM([]byte(words[0]))
		if err := args.CheckJSON(doc); err != nil {
			return nil, nil, args.Errorf(args.CodeBadInput, "%v", err)
		}
		return &bus.Request{Args: args.JSON(doc)}, nil, nil
	case "file":
		st, err := os.Stat(words[0])
		if err == nil && st.IsDir() {
			return nil, nil, args.Errorf(args.CodeBadInput, "is a directory")
		}
		if err == nil && st.Mode()&os.ModeNamedPipe != 0 {
			f := &lateFile{name: words[0]}
			return &bus.Request{Input: f}, f, nil
		}
		f, err := paths.Open(words[0])
		if err != nil {
			return nil, nil, args.Errorf(args.CodeBadInput, "%v", args.WithoutPath(err))
		}
		return &bus.Request{Input: o.input(f)}, f, nil
	}
	return &bus.Request{}, nil, nil
}

// lateFile is a FIFO that is opened by the first read: opening waits for a writer, and a
// call that is cancelled must not wait with it.
type lateFile struct {
	name string

	mu     sync.Mutex // protects the fields below, but not while the FIFO is opened
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
		if f, err = paths.Open(l.name); err != nil {
			return 0, args.WithoutPath(err)
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
