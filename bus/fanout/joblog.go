package fanout

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"fbus/bus/args"
	"fbus/bus/paths"
)

// logHead names the columns, as GNU parallel does.
const logHead = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"

// Log is a file with a line for each call that has ended: number, worker, start in
// seconds since 1970, seconds it took, bytes sent and received, exit status, signal, and
// the function with its item as words for a shell. What is sent besides the item follows the
// function as #HASH. All methods may be called on nil.
type Log struct {
	f        *os.File
	function string         // with its #HASH
	done     map[string]int // commands that ended with 0, and how often
	other    int            // calls of the function that ended with 0, and sent something else
	pending  []byte
}

// LogOptions configure a Log.
type LogOptions struct {
	Path     string // "-" is stdout
	Function string
	With     string // the mark of what is sent besides the item, see [Items.Mark]
	Resume   bool   // continue the log, and skip the items that it shows done
	// Done, if set, receives each of these items while the log is read.
	Done func(seq int, command string)
}

// OpenLog begins a log, or continues one.
func OpenLog(o LogOptions) (*Log, error) {
	l := &Log{function: o.Function, done: map[string]int{}, f: os.Stdout}
	if o.With != "" {
		l.function += "#" + o.With
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND | os.O_TRUNC
	if o.Resume {
		flags = os.O_RDWR | os.O_CREATE | os.O_APPEND
	} else if o.Path != "-" {
		if err := checkOld(o); err != nil {
			return nil, err
		}
	}
	if o.Resume || o.Path != "-" {
		f, err := paths.OpenFile(o.Path, flags, 0o666)
		if err != nil {
			return nil, args.Errorf(args.CodeUsage, "joblog: %v", err)
		}
		l.f = f
	}
	if !o.Resume {
		l.pending = []byte(logHead)
		return l, l.Flush()
	}
	st, err := l.f.Stat()
	switch {
	case err != nil:
		err = args.Errorf(args.CodeInternal, "joblog: %v", err)
	case !st.Mode().IsRegular():
		err = args.Errorf(args.CodeUsage, "joblog: %s is not a regular file: --resume cannot read it", o.Path)
	default:
		err = l.load(o)
	}
	if err != nil {
		l.f.Close()
	}
	return l, err
}

// checkOld refuses to begin a log in the place of a file that is not a log. Other
// problems show when the file is opened.
func checkOld(o LogOptions) error {
	st, err := os.Stat(o.Path)
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return nil
	}
	f, err := paths.OpenFile(o.Path, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	head := make([]byte, len(logHead))
	n, _ := io.ReadFull(f, head)
	if string(head[:n]) != logHead {
		return notLog(o.Path, string(head[:n])).WithHint("--joblog replaces an older log, and no other file")
	}
	return nil
}

func notLog(path, beginning string) *args.Error {
	return args.Errorf(args.CodeUsage, "joblog: %s: not a job log: it begins with %q", path, args.Shorten(beginning))
}

// load reads the log. A last line without an end was cut when its writer died: it is
// removed.
func (l *Log) load(o LogOptions) error {
	r := bufio.NewReaderSize(l.f, 64<<10)
	whole := int64(0) // bytes of whole lines
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		switch {
		case err == io.EOF && n == 1 && line == "":
			l.pending = []byte(logHead)
			return l.Flush()
		case err == io.EOF && line != "" && n > 1:
			return l.f.Truncate(whole)
		case err == io.EOF && line == "":
			return nil
		case err != nil && err != io.EOF:
			return args.Errorf(args.CodeInternal, "joblog: %v", err)
		case n == 1 && line != logHead:
			return notLog(o.Path, line)
		}
		whole += int64(len(line))
		columns := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 9)
		if len(columns) == 9 && columns[6] == "0" && columns[7] == "0" {
			function, _, _ := strings.Cut(columns[8], " ")
			if name, _, _ := strings.Cut(function, "#"); name == o.Function && function != l.function {
				l.other++
				continue
			}
			l.done[columns[8]]++
			if seq, err := strconv.Atoi(columns[0]); err == nil && o.Done != nil {
				o.Done(seq, columns[8])
			}
		}
	}
}

// command is the last column, which identifies an item.
func (l *Log) command(words []string) string { return l.function + " " + args.Quote(words...) }

// Resumes reports whether the log shows items that are done.
func (l *Log) Resumes() bool { return l != nil && len(l.done) > 0 }

// Other returns how many calls of the function the log shows done with something else than is
// sent now besides the item: they are made again.
func (l *Log) Other() int {
	if l == nil {
		return 0
	}
	return l.other
}

// Skips reports whether an item is done already. Of equal items it skips as many as
// were done.
func (l *Log) Skips(words []string) bool {
	if !l.Resumes() {
		return false
	}
	c := l.command(words)
	if l.done[c] == 0 {
		return false
	}
	l.done[c]--
	return true
}

// Add notes an outcome that ended like this; Flush writes it, after its output.
func (l *Log) Add(o *Outcome, end args.End) {
	if l == nil {
		return
	}
	status, signal := end.Status, 0
	if end.Source == args.FromSignal {
		status, signal = 0, end.Status-128
	}
	b := l.pending
	b = strconv.AppendInt(b, int64(o.Seq), 10)
	// Without a worker, the sign of GNU parallel.
	b = append(append(append(b, '\t'), args.OneLine(cmp.Or(o.Result.Worker, ":"))...), '\t')
	b = strconv.AppendFloat(b, float64(o.Began.UnixNano())/1e9, 'f', 3, 64)
	b = fmt.Appendf(b, "\t%10.3f\t", o.Took.Seconds())
	for _, n := range []int64{o.Sent, o.Output.Size(), int64(status), int64(signal)} {
		b = append(strconv.AppendInt(b, n, 10), '\t')
	}
	l.pending = append(append(b, l.command(o.Words)...), '\n')
}

// Flush writes the outcomes that were added.
func (l *Log) Flush() error {
	if l == nil || len(l.pending) == 0 {
		return nil
	}
	_, err := l.f.Write(l.pending)
	l.pending = l.pending[:0]
	if err != nil {
		return args.Errorf(args.CodeInternal, "joblog: %v", err)
	}
	return nil
}

// Close flushes, syncs and closes the log.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	return errors.Join(l.Flush(), paths.Sync(l.f), l.f.Close())
}
