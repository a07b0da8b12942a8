package commands

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"fbus/bus/args"
	"fbus/bus/fanout"
)

// jobLogHead names the columns, as GNU parallel does.
const jobLogHead = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"

// jobLog is a file with a line for each call that has ended: number, worker,
// start in seconds since 1970, seconds it took, bytes sent and received, exit
// status, signal, and the function with its item as a shell would be given them.
type jobLog struct {
	f       *os.File
	name    string                        // of the function
	done    map[string]int                // commands that ended with 0, and how often
	told    func(seq int, command string) // if set, of each of these as it is read
	pending []byte
}

// openJobLog begins a log, - being stdout, or, to resume, reads what it says is
// done and goes on behind it.
func openJobLog(path, function string, resume bool, told func(seq int, command string)) (*jobLog, error) {
	l := &jobLog{name: function, done: map[string]int{}, f: os.Stdout, told: told}
	var err error
	switch {
	case resume:
		err = l.open(path, os.O_RDWR|os.O_CREATE|os.O_APPEND)
	case path != "-":
		if err = checkOld(path); err != nil {
			return nil, err
		}
		err = l.open(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_TRUNC)
	}
	if err != nil {
		return nil, err
	}
	if !resume {
		l.pending = []byte(jobLogHead)
		return l, l.flush()
	}
	st, err := l.f.Stat()
	switch {
	case err != nil:
		err = fail(args.CodeInternal, "joblog: %v", pathReason(err))
	case !st.Mode().IsRegular():
		err = usage("joblog: %s is no regular file: --resume can not read it", path)
	default:
		err = l.load(path)
	}
	if err != nil {
		l.f.Close()
	}
	return l, err
}

// checkOld refuses to begin a log in the place of a file that is none.
func checkOld(path string) error {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return nil // what is wrong shows when it is opened
	}
	f, err := openFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	head := make([]byte, len(jobLogHead))
	n, _ := io.ReadFull(f, head)
	if string(head[:n]) != jobLogHead {
		return usage("joblog: %s: this is no job log: its beginning is %q", path, shorten(head[:n])).WithHint("a log takes the place of an older log, and of nothing else")
	}
	return nil
}

func (l *jobLog) open(path string, flags int) error {
	f, err := openFile(path, flags, 0o666)
	if err != nil {
		return usage("joblog: %v", pathReason(err))
	}
	l.f = f
	return nil
}

// load reads what is there. A last line that has no end was cut when its writer
// died: it counts as not there.
func (l *jobLog) load(path string) error {
	r := bufio.NewReaderSize(l.f, 64<<10)
	whole := int64(0) // bytes of whole lines
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		switch {
		case err == io.EOF && n == 1 && line == "":
			l.pending = []byte(jobLogHead)
			return l.flush()
		case err == io.EOF && line != "" && n > 1:
			return l.f.Truncate(whole)
		case err == io.EOF && line == "":
			return nil
		case err != nil && err != io.EOF:
			return fail(args.CodeInternal, "joblog: %v", pathReason(err))
		case n == 1:
			if line != jobLogHead {
				return usage("joblog: %s: this is no job log: its first line is %q", path, shorten([]byte(line)))
			}
		}
		whole += int64(len(line))
		columns := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 9)
		if len(columns) == 9 && columns[6] == "0" && columns[7] == "0" {
			l.done[columns[8]]++
			if seq, err := strconv.Atoi(columns[0]); err == nil && l.told != nil {
				l.told(seq, columns[8])
			}
		}
	}
}

// command is what stands in the last column: it is how items are told apart.
func (l *jobLog) command(words []string) string { return l.name + " " + args.Quote(words...) }

// skips reports whether an item is done already. Of items that are the same, as
// many are as have been done.
func (l *jobLog) skips(words []string) bool {
	if l == nil || len(l.done) == 0 {
		return false
	}
	c := l.command(words)
	if l.done[c] == 0 {
		return false
	}
	l.done[c]--
	return true
}

// add notes an outcome; it is written by flush, behind the output.
func (l *jobLog) add(o *fanout.Outcome, end callEnd) {
	if l == nil {
		return
	}
	status, signal := end.Status, 0
	if end.Source == args.FromSignal.String() {
		status, signal = 0, end.Status-exitSignal
	}
	b := l.pending
	b = strconv.AppendInt(b, int64(o.Seq), 10)
	b = append(append(append(b, '\t'), orColon(o.Result.Worker)...), '\t')
	b = strconv.AppendFloat(b, float64(o.Began.UnixNano())/1e9, 'f', 3, 64)
	b = fmt.Appendf(b, "\t%10.3f\t", o.Took.Seconds())
	for _, n := range []int64{o.Sent, o.Output.Size(), int64(status), int64(signal)} {
		b = append(strconv.AppendInt(b, n, 10), '\t')
	}
	l.pending = append(append(b, l.command(o.Words)...), '\n')
}

// orColon is the worker's name, or GNU parallel's sign for none.
func orColon(worker string) string {
	if worker == "" {
		return ":"
	}
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' {
			return ' '
		}
		return r
	}, worker)
}

func (l *jobLog) flush() error {
	if l == nil || len(l.pending) == 0 {
		return nil
	}
	_, err := l.f.Write(l.pending)
	l.pending = l.pending[:0]
	if err != nil {
		return fail(args.CodeInternal, "joblog: %v", pathReason(err))
	}
	return nil
}

func (l *jobLog) close() error {
	if l == nil {
		return nil
	}
	return errors.Join(l.flush(), l.f.Close())
}
