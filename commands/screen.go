package commands

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"

	"github.com/mattn/go-isatty"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

type barOptions struct{ bar, noBar bool }

func (o *barOptions) flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "bar", Usage: "show progress even if stderr is not a terminal", Destination: &o.bar, DisableDefaultText: true},
		&cli.BoolFlag{Name: "no-bar", Usage: "do not show progress", Destination: &o.noBar, DisableDefaultText: true},
	}
}

func (o *barOptions) check() error {
	if o.bar && o.noBar {
		return usage("--bar and --no-bar exclude each other")
	}
	return nil
}

func (o *barOptions) show(stderr io.Writer, quiet bool) bool {
	return o.bar || !o.noBar && !quiet && isTerminal(stderr)
}

// screen is stderr, with or without a line of progress, which is erased before each write
// and drawn again after it.
type screen struct {
	w io.Writer

	mu    sync.Mutex // protects the fields below, and keeps lines apart
	meter *meter     // nil if there is no progress
	last  []byte     // the last line of progress
	drawn bool       // the cursor is after the progress
	cut   bool       // the cursor is after an unfinished line of stdout
	note  string     // behind the progress
	at    func() fanout.Progress
	halt  func() // ends the redrawing
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
func (s *screen) say(format string, a ...any) { say(s, fmt.Sprintf(format, a...)) }

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

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// How often the progress is drawn: on a terminal, and in a file.
const (
	drawEvery = 100 * time.Millisecond
	noteEvery = time.Second
)

// start shows progress until stop; total is 0 if it is unknown.
func (s *screen) start(name string, total int, at func() fanout.Progress, terminal bool) {
	pause := drawEvery
	if !terminal {
		pause = noteEvery
	}
	s.meter, s.at = newMeter(name, total, time.Now()), at
	s.meter.marks[0].ended = at().Ended // not in the rate
	s.update()
	s.halt = every(pause, s.update)
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
	if w, _ := terminalSize(s.w); w > 0 {
		width = w - 1 // a line that wraps cannot be erased
	}
	line := s.meter.line(time.Now(), p, width)
	if s.note != "" {
		line += " " + s.note
	}
	text := []rune(line)
	text = text[:min(len(text), width)]
	s.erase()
	s.last = append(s.last[:0], string(text)...)
	s.redraw(true)
}

// terminalSize returns the size of the terminal in characters, 0 if it is unknown.
func terminalSize(w io.Writer) (columns, rows int) {
	f := fileOf(w)
	if f == nil {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}

// report shows the last report of some function's progress behind the progress of the calls.
func (s *screen) report(p *bus.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note = args.OneLine(progressText(p))
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

// stop removes the progress.
func (s *screen) stop() {
	if s.meter == nil {
		return
	}
	s.halt()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
}

func isTerminal(w io.Writer) bool {
	f := fileOf(w)
	return f != nil && isatty.IsTerminal(f.Fd())
}

// fileOf returns the file that w writes, nil if it is not one.
func fileOf(w io.Writer) *os.File {
	if c, ok := w.(*checkedWriter); ok {
		w = c.w
	}
	f, _ := w.(*os.File)
	return f
}

// meter formats the line of progress. A library for this would compile regular
// expressions and fill tables at every start of fbus, so in every call.
type meter struct {
	name  string // of the function
	total int    // calls in all, 0 if unknown
	began time.Time
	marks []mark // progress in the last seconds, the oldest first
	turns int    // of the spinner while the total is unknown
}

type mark struct {
	at    time.Time
	ended int
}

const (
	meterWidth = 20 // characters of the bar where there is room
	meterLeast = 5  // a shorter bar is left out

	// The rate over ten marks, half a second apart, is steady and still follows a change.
	markEvery = 500 * time.Millisecond
	marksKept = 10
)

func newMeter(name string, total int, now time.Time) *meter {
	return &meter{name: name, total: total, began: now, marks: []mark{{at: now}}}
}

// line returns the line of progress:
//
//	f: 0 failed, 2 running  33% |██████              | (10/30, 4 calls/s) [2s:5s]
//
// with the time spent, the estimated time left, and a bar as long as width allows; or,
// while the total is unknown,
//
//	| f: 0 failed, 2 running (10/-, 4 calls/s) [2s]
func (m *meter) line(now time.Time, p fanout.Progress, width int) string {
	rate := m.rate(now, p.Ended)
	what := fmt.Sprintf("%s: %d failed, %d running", m.name, p.Failed, p.Running)
	spent := now.Sub(m.began).Truncate(time.Second)
	if m.total <= 0 {
		m.turns++
		return fmt.Sprintf("%c %s (%d/-, %s) [%s]", `|/-\`[m.turns%4], what, p.Ended, perTime(rate), spent)
	}
	ended := min(p.Ended, m.total)
	left := "?"
	if rate > 0 {
		left = time.Duration(float64(m.total-ended) / rate * float64(time.Second)).Truncate(time.Second).String()
	}
	before := fmt.Sprintf("%s %3d%% ", what, 100*ended/m.total)
	after := fmt.Sprintf("(%d/%d, %s) [%s:%s]", p.Ended, m.total, perTime(rate), spent, left)
	return before + m.bar(ended, width-utf8.RuneCountInString(before+after)) + after
}

// bar draws how many calls have ended, in at most room characters.
func (m *meter) bar(ended, room int) string {
	room = min(room-len("|| "), meterWidth)
	if room < meterLeast {
		return ""
	}
	full := room * ended / m.total
	return "|" + strings.Repeat("█", full) + strings.Repeat(" ", room-full) + "| "
}

// rate returns how many calls a second ended recently.
func (m *meter) rate(now time.Time, ended int) float64 {
	oldest := m.marks[0]
	if now.Sub(m.marks[len(m.marks)-1].at) >= markEvery {
		m.marks = append(m.marks, mark{now, ended})
		if len(m.marks) > marksKept {
			m.marks = m.marks[1:]
		}
	}
	if !now.After(oldest.at) {
		return 0
	}
	return float64(ended-oldest.ended) / now.Sub(oldest.at).Seconds()
}

// perTime writes a rate in a unit in which it is at least 1, if there is one.
func perTime(rate float64) string {
	switch {
	case rate > 1:
		return fmt.Sprintf("%.0f calls/s", rate)
	case rate*60 > 1:
		return fmt.Sprintf("%.0f calls/min", rate*60)
	}
	return fmt.Sprintf("%.0f calls/hr", rate*3600)
}
