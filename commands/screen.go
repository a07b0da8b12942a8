package commands

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"fbus/bus/fanout"

	"github.com/cheggaaa/pb/v3"
	"github.com/mattn/go-isatty"
)

// screen is stderr, with or without a line of progress that gives way to what is
// written.
type screen struct {
	w io.Writer

	mu    sync.Mutex      // protects the fields below, and keeps lines apart
	bar   *pb.ProgressBar // nil if there is no progress
	drawn bool            // the cursor is behind the progress
	cut   bool            // the cursor is behind a line of stdout that has not ended
	at    func() fanout.Progress
	done  chan struct{} // closed to end what moves the bar
}

// Write implements io.Writer; p is whole lines.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	return s.w.Write(p)
}

// erase takes the progress from the line that it is on. mu is held.
func (s *screen) erase() {
	if s.drawn {
		io.WriteString(s.w, "\r\x1b[K")
		s.drawn = false
	}
}

// say prints a message with our name before it.
func (s *screen) say(format string, args ...any) { say(s, fmt.Sprintf(format, args...)) }

// beside returns a writer for stdout: on the same terminal, the progress gives
// way to it as well.
func (s *screen) beside(stdout io.Writer, terminal bool) io.Writer {
	if s.bar == nil || !terminal {
		return stdout
	}
	return writerFunc(func(p []byte) (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.erase()
		n, err := stdout.Write(p)
		if n > 0 {
			s.cut = p[n-1] != '\n'
		}
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

// progressLine is what is drawn: count, bar, rate, time to go, failures, what runs.
const progressLine = `{{string . "name"}} {{counters . "%s/%s" "%s"}} {{bar . }} {{speed . "%s/s" "-/s"}}, {{rtime . "ETA %s" "%s" "ETA -"}}{{string . "state"}}`

// start shows progress until stop; total is 0 if it is not known.
func (s *screen) start(name string, total int, at func() fanout.Progress, terminal bool) {
	every := drawEvery
	if !terminal {
		every = noteEvery
	}
	s.at, s.done = at, make(chan struct{})
	s.bar = pb.ProgressBarTemplate(progressLine).New(total).Set("name", name).Set(pb.Terminal, true).Set(pb.CleanOnFinish, true)
	s.bar.SetRefreshRate(every)
	if !terminal {
		s.bar.SetWidth(100)
	}
	s.bar.SetWriter(writerFunc(s.draw))
	s.update()
	s.bar.Start()
	go s.move(every) // ends with stop
}

// draw writes the progress, unless it would go into somebody's line.
func (s *screen) draw(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return len(p), nil
	}
	s.drawn = true
	return s.w.Write(p)
}

// total says how many calls there are, once that is known.
func (s *screen) total(n int) {
	if s.bar != nil {
		s.bar.SetTotal(int64(n))
	}
}

func (s *screen) update() {
	p := s.at()
	s.bar.Set("state", fmt.Sprintf(", %d failed, %d running", p.Failed, p.Running))
	s.bar.SetCurrent(int64(p.Ended))
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
	if s.bar == nil {
		return
	}
	close(s.done)
	s.update()
	s.bar.Finish()
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
