package commands

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"fbus/bus/fanout"
)

// meter words the line of progress. A library for this would compile regular
// expressions and fill tables whenever fbus is started, for every call.
type meter struct {
	name  string // of the function
	total int    // calls in all, 0 if that is not known
	began time.Time
	marks []mark // where the calls were in the last seconds, the oldest first
	turns int    // of what spins while the total is not known
}

type mark struct {
	at    time.Time
	ended int
}

const (
	meterWidth = 20 // characters of the bar where there is room
	meterLeast = 5  // below which it is left out

	// The rate is taken over ten marks half a second apart: it is steady and
	// still follows a change.
	markEvery = 500 * time.Millisecond
	marksKept = 10
)

func newMeter(name string, total int, now time.Time) *meter {
	return &meter{name: name, total: total, began: now, marks: []mark{{at: now}}}
}

// line says where the calls are:
//
//	f: 0 failed, 2 running  33% |██████              | (10/30, 4 calls/s) [2s:5s]
//
// with the time spent and what is left of it, and a bar as long as width allows;
// or, while the total is not known,
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

// bar draws how many calls have ended, in so many characters at most.
func (m *meter) bar(ended, room int) string {
	room = min(room-len("|| "), meterWidth)
	if room < meterLeast {
		return ""
	}
	full := room * ended / m.total
	return "|" + strings.Repeat("█", full) + strings.Repeat(" ", room-full) + "| "
}

// rate is how many calls a second ended lately.
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

// perTime writes a rate in the unit that leaves a figure to read.
func perTime(rate float64) string {
	switch {
	case rate > 1:
		return fmt.Sprintf("%.0f calls/s", rate)
	case rate*60 > 1:
		return fmt.Sprintf("%.0f calls/min", rate*60)
	}
	return fmt.Sprintf("%.0f calls/hr", rate*3600)
}
