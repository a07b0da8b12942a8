package commands

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// timeValue is a flag's TIME: a date and time, with a zone or local, or a time of day,
// the next one.
type timeValue struct {
	t   time.Time
	set bool
}

// Set implements flag.Value.
func (v *timeValue) Set(s string) (err error) {
	v.t, err = parseTime(s, time.Now())
	v.set = err == nil
	return err
}

// String implements flag.Value.
func (v *timeValue) String() string { return "" }

// Layouts of a TIME. Seconds may have a fraction.
var (
	zonedLayouts = []string{time.RFC3339, "2006-01-02 15:04:05Z07:00", "2006-01-02T15:04Z07:00", "2006-01-02 15:04Z07:00"}
	localLayouts = []string{"2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02"}
	clockLayouts = []string{"15:04", "15:04:05"}
)

// late is how long ago a time may be, since computing it may have been slow. An earlier
// time is a mistake.
const late = time.Minute

// parseTime reads a TIME. Local times are in the zone of now.
func parseTime(s string, now time.Time) (time.Time, error) {
	for _, layout := range clockLayouts {
		if c, err := time.Parse(layout, s); err == nil {
			return nextClock(c, now), nil
		}
	}
	text := strings.ToUpper(s)
	for _, layout := range append(zonedLayouts, localLayouts...) {
		t, err := time.ParseInLocation(layout, text, now.Location())
		shown, _ := time.Parse(layout, text)
		switch {
		case err != nil:
		case !shows(t, shown):
			return t, errors.New("local clocks skip this time: they are put forward")
		case now.Sub(t) > 365*24*time.Hour:
			return t, fmt.Errorf("that was in %d", t.Year())
		case now.Sub(t) > late:
			return t, fmt.Errorf("that was %s ago", age(now.Sub(t).Seconds()))
		case t.After(now.AddDate(100, 0, 0)):
			return t, errors.New("that is more than 100 years away")
		default:
			return t, nil
		}
	}
	if _, err := parseDuration(s); err == nil {
		return time.Time{}, fmt.Errorf("a duration, not a time: --delay %s", s)
	}
	return time.Time{}, errors.New("not a time: use 2026-11-26T07:00:00+01:00, or in local time 2026-11-26 07:00 or 07:00")
}

// nextClock returns the next time at which local clocks show c.
func nextClock(c, now time.Time) time.Time {
	at := func(day int) time.Time {
		return time.Date(now.Year(), now.Month(), now.Day()+day, c.Hour(), c.Minute(), c.Second(), c.Nanosecond(), now.Location())
	}
	day := 0
	for !at(day).After(now) || !shows(at(day), c) { // not 24 hours later: clocks change, and skip times
		day++
	}
	return at(day)
}

// shows reports whether clocks of t's zone show c's time of day at t.
func shows(t, c time.Time) bool { return t.Hour() == c.Hour() && t.Minute() == c.Minute() }
