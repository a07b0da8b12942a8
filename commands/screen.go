package commands

import (
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"fbus/bus/fanout"

	"github.com/mattn/go-isatty"
	"golang.org/x/sys/unix"
)

// screen is stderr, with or without a line of progress that gives way to what is
// written.
type screen struct {
	w io.Writer

	mu    sync.Mutex // protects the fields below, and keeps lines apart
	meter *meter     // nil if there is no progress
	last  []byte     // what was drawn last
	drawn bool       // the cursor is behind the progress
	cut   bool       // the cursor is behind a line of stdout that has not ended
	at    func() fanout.Progress
	done  chan struct{} // closed to end what moves the bar
}

// Write implements io.Writer; p is whole lines.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.redraw(s.erase())
	return s.w.Write(p)
}

// erase takes the progress from the line that it is on, if it is there. mu is
// held.
func (s *screen) erase() (was bool) {
	if s.drawn {
		io.WriteString(s.w, "\r\x1b[K")
	}
	was, s.drawn = s.drawn, false
	return was
}

// redraw draws it again where it was erased. mu is held.
func (s *screen) redraw(was bool) {
	if was && !s.cut {
		s.w.Write(s.last)
		s.drawn = true
	}
}

// say prints a message with our name before it.
func (s *screen) say(format string, args ...any) { say(s, fmt.Sprintf(format, args...)) }

// share returns a writer for stdout. If that is on the same terminal, the progress makes
// room for its output too.
func (s *screen) share(stdout io.Writer, terminal bool) io.Writer {
	if s.meter == nil || !terminal {
		return stdout
	}
	return writerFunc(func(p []byte) (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		was := s.erase()
		n, err := stdout.Write(p)
		if n > 0 {
			s.cut = p[n-1] != '\n'
		}
		s.redraw(was)
		return n, err
	})
}

type writerFunc func(p []byte) (int, error)

// Write implements io.Writer.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// How often the progress is drawn: on a terminal, and where it is kept.
const (
	drawEvery = 100 * time.Millisecond
	noteEvery = time.Second
)

// start shows progress until stop; total is 0 if it is not known.
func (s *screen) start(name string, total int, at func() fanout.Progress, terminal bool) {
	every := drawEvery
	if !terminal {
		every = noteEvery
	}
	s.meter, s.at, s.done = newMeter(name, total, time.Now()), at, make(chan struct{})
	s.update()
	go s.move(every) // ends with stop
}

// update draws where the calls are, unless that would go into somebody's line.
func (s *screen) update() {
	p := s.at()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return
	}
	width := math.MaxInt
	if w := terminalWidth(s.w); w > 0 {
		width = w - 1 // a line that wraps can not be erased
	}
	text := []rune(s.meter.line(time.Now(), p, width))
	text = text[:min(len(text), width)]
	s.erase()
	s.last = append(s.last[:0], string(text)...)
	s.redraw(true)
}

// terminalWidth is how many characters fit a line, 0 if that is not known.
func terminalWidth(w io.Writer) int {
	columns, _ := terminalSize(w)
	return columns
}

// terminalSize is how many characters fit a line, and how many lines there are; 0 if
// that is not known.
func terminalSize(w io.Writer) (columns, rows int) {
	if c, ok := w.(*checkedWriter); ok {
		w = c.w
	}
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}

// total says how many calls there are, once that is known.
func (s *screen) total(n int) {
	if s.meter == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meter.total = n
}

// move keeps the progress where the calls are.
func (s *screen) move(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.update()
		case <-s.done:
			return
		}
	}
}

// stop takes the progress away.
func (s *screen) stop() {
	if s.meter == nil {
		return
	}
	close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	if c, ok := w.(*checkedWriter); ok {
		w = c.w
	}
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
