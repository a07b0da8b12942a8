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

// screen is stderr, with or without a line of progress, which is erased before each write
// and drawn again after it.
type screen struct {
	w io.Writer

	mu    sync.Mutex // protects the fields below, and keeps lines apart
	meter *meter     // nil if there is no progress
	last  []byte     // the last line of progress
	drawn bool       // the cursor is after the progress
	cut   bool       // the cursor is after an unfinished line of stdout
	at    func() fanout.Progress
	done  chan struct{} // closed to end the goroutine that redraws
}

// Write implements io.Writer. p must be whole lines.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.redraw(s.erase())
	return s.w.Write(p)
}

// erase removes the progress if it is drawn. mu must be held.
func (s *screen) erase() (was bool) {
	if s.drawn {
		io.WriteString(s.w, "\r\x1b[K")
	}
	was, s.drawn = s.drawn, false
	return was
}

// redraw draws the progress again if it was erased. mu must be held.
func (s *screen) redraw(was bool) {
	if was && !s.cut {
		s.w.Write(s.last)
		s.drawn = true
	}
}

// say prints a message with "fbus: " before it.
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

// How often the progress is drawn: on a terminal, and in a file.
const (
	drawEvery = 100 * time.Millisecond
	noteEvery = time.Second
)

// start shows progress until stop; total is 0 if it is unknown.
func (s *screen) start(name string, total int, at func() fanout.Progress, terminal bool) {
	every := drawEvery
	if !terminal {
		every = noteEvery
	}
	s.meter, s.at, s.done = newMeter(name, total, time.Now()), at, make(chan struct{})
	s.update()
	go s.move(every) // ends with stop
}

// update draws the current progress, unless the cursor is in a line of stdout.
func (s *screen) update() {
	p := s.at()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return
	}
	width := math.MaxInt
	if w := terminalWidth(s.w); w > 0 {
		width = w - 1 // a line that wraps cannot be erased
	}
	text := []rune(s.meter.line(time.Now(), p, width))
	text = text[:min(len(text), width)]
	s.erase()
	s.last = append(s.last[:0], string(text)...)
	s.redraw(true)
}

// terminalWidth returns how many characters fit a line, 0 if that is unknown.
func terminalWidth(w io.Writer) int {
	columns, _ := terminalSize(w)
	return columns
}

// terminalSize returns the size of the terminal in characters, 0 if it is unknown.
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

// total sets the number of calls once it is known.
func (s *screen) total(n int) {
	if s.meter == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meter.total = n
}

// move redraws the progress until stop.
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

// stop removes the progress.
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
