package commands

import (
	"strings"
	"testing"
	"time"
)

func TestParseTime(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	now := time.Date(2026, 11, 26, 6, 30, 15, 500, berlin)
	day := func(d, h, m, s int) time.Time { return time.Date(2026, 11, d, h, m, s, 0, berlin) }
	for text, want := range map[string]time.Time{
		"2026-11-26T07:00:00+01:00":     day(26, 7, 0, 0),
		"2026-11-26T06:00:00Z":          day(26, 7, 0, 0),
		"2026-11-26t06:00:00z":          day(26, 7, 0, 0),
		"2026-11-26T06:00:00.25Z":       day(26, 7, 0, 0).Add(250 * time.Millisecond),
		"2026-11-26 06:00:00Z":          day(26, 7, 0, 0),
		"2026-11-26T08:00+02:00":        day(26, 7, 0, 0),
		"2026-11-26 07:00":              day(26, 7, 0, 0),
		"2026-11-26T07:00":              day(26, 7, 0, 0),
		"2026-11-26 7:00:09":            day(26, 7, 0, 9),
		"2026-11-27":                    day(27, 0, 0, 0),
		"2026-11-26 06:30":              day(26, 6, 30, 0), // this minute
		"2026-11-26T06:29:30.000+01:00": day(26, 6, 29, 30),
		"07:00":                         day(26, 7, 0, 0),
		"7:00":                          day(26, 7, 0, 0),
		"06:30:16":                      day(26, 6, 30, 16),
		"06:30:15":                      day(27, 6, 30, 15), // it has just been
		"06:30":                         day(27, 6, 30, 0),
		"00:00":                         day(27, 0, 0, 0),
	} {
		if got, err := parseTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, error %v, want %v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                     "not a time: ",
		"noon":                 "not a time: ",
		"25:00":                "not a time: ",
		"2026-11-31 07:00":     "not a time: ",
		"2026-11-26 07:00 CET": "not a time: ",
		"1764140400":           "not a time: ",
		"5m":                   "a duration, not a time: --delay 5m",
		"2026-11-26 06:28":     "that was 2m15s ago",
		"2025-11-26T07:00:00Z": "ago",
		"1700-01-01T00:00:00Z": "that was in 1700",
		"2127-01-01":           "more than 100 years away",
	} {
		if got, err := parseTime(text, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, error %v, want %s", text, got, err, want)
		}
	}
	// On the day that has 23 hours no clock shows 02:30.
	spring := time.Date(2027, 3, 27, 12, 0, 0, 0, berlin)
	if got, err := parseTime("2027-03-28 02:30", spring); err == nil || !strings.Contains(err.Error(), "put forward") {
		t.Errorf("%v, error %v", got, err)
	}
	if got, err := parseTime("02:30", spring); err != nil || !got.Equal(time.Date(2027, 3, 29, 2, 30, 0, 0, berlin)) {
		t.Errorf("%v, error %v", got, err)
	}
	// On the day that has 25 hours the next 07:00 is 25 hours away.
	eve := time.Date(2026, 10, 24, 7, 0, 0, 0, berlin)
	if got, err := parseTime("07:00", eve); err != nil || got.Sub(eve) != 25*time.Hour {
		t.Errorf("after %v: %v, error %v", eve, got, err)
	}
}
