package commands

import (
	"testing"
	"time"

	"fbus/bus/fanout"
)

func TestMeter(t *testing.T) {
	began := time.Unix(0, 0)
	at := func(d time.Duration) time.Time { return began.Add(d) }
	m := newMeter("f", 30, began)
	for _, step := range []struct {
		after time.Duration
		p     fanout.Progress
		want  string
	}{
		{0, fanout.Progress{Running: 2}, "f: 0 failed, 2 running   0% |                    | (0/30, 0 calls/hr) [0s:?]"},
		{2500 * time.Millisecond, fanout.Progress{Ended: 10, Running: 2}, "f: 0 failed, 2 running  33% |██████              | (10/30, 4 calls/s) [2s:5s]"},
		{40 * time.Second, fanout.Progress{Ended: 20, Failed: 1}, "f: 1 failed, 0 running  66% |█████████████       | (20/30, 30 calls/min) [40s:20s]"},
		{50 * time.Second, fanout.Progress{Ended: 30, Failed: 1}, "f: 1 failed, 0 running 100% |████████████████████| (30/30, 36 calls/min) [50s:0s]"},
		{51 * time.Second, fanout.Progress{Ended: 31, Failed: 1}, "f: 1 failed, 0 running 100% |████████████████████| (31/30, 36 calls/min) [51s:0s]"}, // the total was too low
	} {
		if got := m.line(at(step.after), step.p, 100); got != step.want {
			t.Errorf("after %v:\n got %s\nwant %s", step.after, got, step.want)
		}
	}
}

// TestMeterRate holds that the rate and the time left are those of late, not of
// all the time that was spent.
func TestMeterRate(t *testing.T) {
	now := time.Unix(0, 0)
	m := newMeter("f", 1000, now)
	ended := 0
	for range 120 { // 100 calls in the first minute, 100 in each second then
		now = now.Add(500 * time.Millisecond)
		m.line(now, fanout.Progress{Ended: ended}, 100)
	}
	for range 12 {
		now = now.Add(500 * time.Millisecond)
		ended += 50
		m.line(now, fanout.Progress{Ended: ended}, 100)
	}
	want := "f: 0 failed, 0 running  60% |████████████        | (600/1000, 100 calls/s) [1m6s:4s]"
	if got := m.line(now, fanout.Progress{Ended: ended}, 100); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestMeterWithoutTotal holds what is shown where there is no total yet, or no room.
func TestMeterWithoutTotal(t *testing.T) {
	began := time.Unix(0, 0)
	m := newMeter("f", 0, began)
	for _, want := range []string{
		"/ f: 0 failed, 1 running (8/-, 4 calls/s) [2s]",
		"- f: 0 failed, 1 running (8/-, 4 calls/s) [2s]",
	} {
		if got := m.line(began.Add(2*time.Second), fanout.Progress{Ended: 8, Running: 1}, 80); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	m.total = 16
	want := "f: 0 failed, 0 running  50% |██████████          | (8/16, 4 calls/s) [2s:2s]"
	if got := m.line(began.Add(2*time.Second), fanout.Progress{Ended: 8}, 100); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for width, want := range map[int]string{
		68: "f: 0 failed, 0 running  50% |██████      | (8/16, 4 calls/s) [2s:2s]",
		60: "f: 0 failed, 0 running  50% (8/16, 4 calls/s) [2s:2s]",
	} {
		if got := m.line(began.Add(2*time.Second), fanout.Progress{Ended: 8}, width); got != want {
			t.Errorf("width %d: got  %s\nwant %s", width, got, want)
		}
	}
}
