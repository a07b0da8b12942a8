package exec

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"fbus/exec/keeper"

	"golang.org/x/sys/unix"
)

// bufSize is the capacity of a pipe, so one read can empty it.
const bufSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// past is a deadline that interrupts every wait.
var past = time.Unix(1, 0)

// stream passes one of a program's outputs on.
type stream struct {
	file *os.File
	conn syscall.RawConn
	to   io.Writer
	any  bool // something was read
}

// pipes are a program's descriptors: our ends, and its own in the order in which a
// keeper takes them.
type pipes struct {
	stdin    int // -1 if there is none, or if it was handed on
	hold     unreadEnd
	out, err *stream
	extra    *stream // of a further descriptor; nil unless it was asked for
	child    [4]int  // -1 where there is none
}

// stdinKind selects the stdin of a program.
type stdinKind int

const (
	stdinNull stdinKind = iota
	stdinPipe
	stdinHeld // a pipe with an unreadEnd
)

func openPipes(stdin stdinKind, extra bool) (p *pipes, err error) {
	p = &pipes{stdin: -1, hold: noUnreadEnd, child: [4]int{-1, -1, -1, -1}}
	defer func() {
		if err != nil {
			p.close()
			closeFDs(p.child[:])
		}
	}()
	if stdin == stdinNull {
		p.child[0], err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	} else {
		p.child[0], p.stdin, err = newPipe()
	}
	if err == nil && stdin == stdinHeld {
		fd := 0
		fd, err = unix.FcntlInt(uintptr(p.child[0]), unix.F_DUPFD_CLOEXEC, 0)
		p.hold = unreadEnd(fd)
	}
	outputs := []**stream{&p.out, &p.err, &p.extra}
	if !extra {
		outputs = outputs[:2]
	}
	for i, s := range outputs {
		if err == nil {
			*s, p.child[1+i], err = newStream()
		}
	}
	return p, err
}

// start starts the program, and closes its descriptors here.
func (p *pipes) start(pool *keeper.Pool, o keeper.Order) (*keeper.Process, error) {
	defer closeFDs(p.child[:])
	if p.extra == nil {
		return pool.Start(o, p.child[:3]...)
	}
	return pool.Start(o, p.child[:]...)
}

// close closes our ends.
func (p *pipes) close() {
	closeFDs([]int{p.stdin})
	p.hold.close()
	for _, s := range []*stream{p.out, p.err, p.extra} {
		if s != nil {
			s.file.Close()
		}
	}
}

func newPipe() (r, w int, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, os.NewSyscallError("pipe2", err)
	}
	return fds[0], fds[1], nil
}

// newStream makes the pipe; child is the program's end, blocking as programs expect it.
func newStream() (s *stream, child int, err error) {
	r, child, err := newPipe()
	if err != nil {
		return nil, -1, err
	}
	s = &stream{}
	if s.file, err = nonblocking(r, "output"); err == nil {
		s.conn, err = s.file.SyscallConn() // fails only if it is closed
	}
	return s, child, err
}

// nonblocking makes a file of our end of a pipe; the other end is untouched.
func nonblocking(fd int, name string) (*os.File, error) {
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// pass copies until the end, at the reader's pace. It ends when nobody has
// the pipe's other end any more, or, after finish, when the pipe is empty.
// Closing the pipe early is how a program learns that nobody reads.
// It takes a buffer only when there is something to read: most programs write
// nothing for a long time, or nothing at all on stderr.
func (s *stream) pass() {
	defer s.file.Close()
	for {
		var buf *[bufSize]byte
		n, _ := s.read(func(fd uintptr) (n int, err error) {
			buf = buffers.Get().(*[bufSize]byte)
			if n, err = keeper.ReadFD(int(fd), buf[:]); n == 0 {
				buffers.Put(buf)
			}
			return n, err
		})
		if n == 0 {
			return
		}
		s.any = true
		_, err := s.to.Write(buf[:n])
		buffers.Put(buf)
		if err != nil {
			return
		}
	}
}

// finish ends the stream when the pipe is empty. The program's tree is gone, so all
// that it wrote is in the pipe. If an unrelated process still holds the other end no
// EOF will ever come, and empty means complete.
func (s *stream) finish() {
	s.file.SetReadDeadline(past)
}

// read waits until once has read something; after finish it does not wait. The end is
// io.EOF.
func (s *stream) read(once func(fd uintptr) (int, error)) (n int, err error) {
	try := func(fd uintptr) bool {
		n, err = once(fd)
		return err != unix.EAGAIN
	}
	if s.conn.Read(try) != nil {
		s.conn.Control(func(fd uintptr) { try(fd) })
	}
	if n == 0 && err == nil || err == unix.EAGAIN {
		err = io.EOF
	}
	return n, err
}

// Read implements io.Reader.
func (s *stream) Read(b []byte) (int, error) {
	return s.read(func(fd uintptr) (int, error) { return keeper.ReadFD(int(fd), b) })
}

// feed is a program's stdin.
type feed struct {
	file *os.File      // nil: all was written beforehand
	done chan struct{} // closed when Call.Input is no longer touched

	// Of a process that was started ahead.
	hold    unreadEnd
	sent    int  // what it held when it was filled
	refused bool // nobody was there to read
}

// fill takes our end of a program's stdin, writes what it can at once, and closes it
// if that was all. Complete input that the pipe holds is all that most calls have, and
// needs no goroutine.
func fill(fd int, in *input) (f feed, err error) {
	if in.rest == nil && len(in.data) == 0 {
		syscall.Close(fd)
		return f, nil
	}
	file, err := nonblocking(fd, "stdin")
	if err != nil {
		return f, err
	}
	if n, err := syscall.Write(fd, in.data); err == nil && n > 0 {
		in.data = in.data[n:]
	}
	if in.rest == nil && len(in.data) == 0 {
		file.Close()
		return f, nil
	}
	f.file, f.done = file, make(chan struct{})
	return f, nil
}

// pass writes the input. It ends with the input, when the program does not
// read any more, or with stop. broken is called if the input ends in an error:
// the program must not take a part for the whole.
func (f *feed) pass(in *input, broken func(error)) {
	_, err := f.file.Write(in.data)
	close(f.done)
	if err != nil || in.rest == nil {
		f.file.Close()
		return
	}
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	to := &notingWriter{to: f.file}
	if _, err := io.CopyBuffer(to, in.rest, buf[:]); err != nil && to.err == nil {
		broken(err)
		return
	}
	f.file.Close()
}

// notingWriter remembers that it was the writing that failed.
type notingWriter struct {
	to  io.Writer
	err error
}

func (w *notingWriter) Write(p []byte) (n int, err error) {
	n, w.err = w.to.Write(p)
	return n, w.err
}

// stop closes the program's stdin and waits until Call.Input is free again.
func (f *feed) stop() {
	if f.file != nil {
		f.file.Close()
		<-f.done
	}
}

// unread reports, after stop, whether the program has read nothing of the input that
// it got.
func (f *feed) unread() bool {
	unread := f.refused || f.sent > 0 && f.hold.count() == f.sent
	if f.sent > 0 {
		f.hold.close()
	}
	return unread
}

// unreadEnd is our own descriptor of the reading end of a program's stdin. Bytes that
// the program has not read can be counted there, also after it died, and taken back.
// While it is open no write fails because nobody reads.
type unreadEnd int

const noUnreadEnd unreadEnd = -1

// count is the number of bytes that nobody has read.
func (e unreadEnd) count() int {
	if e < 0 {
		return 0
	}
	n, err := unix.IoctlGetInt(int(e), unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// takeBack takes the last n bytes out of the pipe, if they are all that is in
// it. False: the program has begun to read them, and must not go on with what
// it has. A pipe gives each byte once, so there is no third case.
func (e unreadEnd) takeBack(n int) bool {
	if e < 0 || n == 0 || n > bufSize || e.count() != n {
		return false
	}
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(null)
	got := 0
	for got < n {
		// Not a read: that would wait for more if the program is quicker. Whether
		// it waits is shared with the program, whose stdin has to.
		m, err := unix.Splice(int(e), nil, null, nil, n-got, unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil || m <= 0 {
			break
		}
		got += int(m)
	}
	return got == n
}

func (e unreadEnd) close() {
	if e >= 0 {
		unix.Close(int(e))
	}
}

// longestLogged is where a line of the log is cut.
const longestLogged = 4 << 10

// longestQuoted is how much of a program's own words goes into a message.
const longestQuoted = 80

// lineLog writes a program's output that belongs to no call to the worker's log, line
// by line, and remembers the last line.
type lineLog struct {
	f    *Function
	part []byte // a line that has no end yet
	last string
}

func (l *lineLog) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		if room := longestLogged - len(l.part); len(line) > room {
			line, rest, ended = line[:room], p[room:], true
		}
		l.part, p = append(l.part, line...), rest
		if ended {
			l.flush()
		}
	}
	return n, nil
}

// flush ends the line that was begun.
func (l *lineLog) flush() {
	line := bytes.TrimSuffix(l.part, []byte("\r"))
	if len(line) > 0 {
		l.remember(line)
		l.f.logf("%s: %s", l.f.spec.Name, line)
	}
	l.part = l.part[:0]
}

// remember keeps the last line of output that a call got.
func (l *lineLog) remember(output []byte) {
	output = bytes.TrimSpace(output)
	if i := bytes.LastIndexByte(output, '\n'); i >= 0 {
		output = output[i+1:]
	}
	if len(output) > 0 {
		l.last = string(output[:min(len(output), longestQuoted)])
	}
}

// progressLines takes the lines that a program writes about its progress. Of those that come at
// once it reports the last: only that is still true.
type progressLines struct {
	report func(done, total uint64, text string) // nil: nobody wants to know
	part   []byte                                // a line that has no end yet
}

func (l *progressLines) Write(p []byte) (int, error) {
	lines, rest := []byte(nil), p
	if i := bytes.LastIndexByte(p, '\n'); i >= 0 {
		lines, rest = p[:i], p[i+1:]
		if j := bytes.LastIndexByte(lines, '\n'); j >= 0 {
			l.part, lines = l.part[:0], lines[j+1:]
		}
		l.keep(lines)
		l.flush()
	}
	l.keep(rest)
	return len(p), nil
}

func (l *progressLines) keep(p []byte) {
	l.part = append(l.part, p[:min(len(p), longestLogged-len(l.part))]...)
}

func (l *progressLines) flush() {
	line := strings.TrimSpace(string(l.part))
	if l.part = l.part[:0]; line != "" && l.report != nil {
		l.report(parseProgress(line))
	}
}

// parseProgress parses "DONE TOTAL [TEXT]" or "TEXT".
func parseProgress(line string) (done, total uint64, text string) {
	first, rest, _ := strings.Cut(line, " ")
	second, text, _ := strings.Cut(strings.TrimSpace(rest), " ")
	done, err := strconv.ParseUint(first, 10, 64)
	if err == nil {
		total, err = strconv.ParseUint(second, 10, 64)
	}
	if err != nil {
		return 0, 0, line
	}
	return done, total, strings.TrimSpace(text)
}
