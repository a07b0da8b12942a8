package store

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock reads the machine's clocks. Delays are measured by Boot, which is independent of
// the date: no delayed job runs early or late because the date is set.
type Clock struct {
	Wall   func() time.Time     // the date, for people and for --at
	Boot   func() time.Duration // since the machine was started, sleep included
	BootID string               // differs for each start of the machine
}

func systemClock() Clock {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return Clock{Wall: time.Now, Boot: sinceBoot, BootID: strings.TrimSpace(string(id))}
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("no clock: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

// stamp is the clock in the store, so that time without a node counts too. All fields are
// nanoseconds.
type stamp struct {
	Time   int64  `json:"time"` // the store's
	Wall   int64  `json:"wall"`
	Boot   int64  `json:"boot"`
	BootID string `json:"boot_id"`
}

// Timeline is the store's time. It begins near the date, and neither jumps nor goes back
// when that is set.
type Timeline struct {
	clock Clock
	base  int64         // the store's time
	boot  time.Duration // the value of Boot then
}

// newTimeline continues from a stamp; the zero stamp begins.
func newTimeline(c Clock, last stamp) *Timeline {
	t := &Timeline{clock: c, boot: c.Boot()}
	wall := c.Wall().UnixNano()
	switch {
	case last.Time == 0:
		t.base = wall
	case last.BootID == c.BootID && int64(t.boot) >= last.Boot:
		t.base = last.Time + int64(t.boot) - last.Boot
	default: // another start of the machine: only the date is known
		t.base = last.Time + max(0, wall-last.Wall)
	}
	return t
}

// Now returns the store's time, in nanoseconds.
func (t *Timeline) Now() int64 { return t.base + int64(t.clock.Boot()-t.boot) }

func (t *Timeline) stamp() stamp {
	return stamp{Time: t.Now(), Wall: t.clock.Wall().UnixNano(), Boot: int64(t.clock.Boot()), BootID: t.clock.BootID}
}

// At returns the store's time at a date, as the clock is set now.
func (t *Timeline) At(date time.Time) int64 { return t.Now() + int64(date.Sub(t.clock.Wall())) }

// Offset is how far the date is ahead of the store's time.
func (t *Timeline) Offset() int64 { return t.clock.Wall().UnixNano() - t.Now() }
