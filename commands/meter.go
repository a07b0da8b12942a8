package commands

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"fbus/bus/fanout"
)

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
