package jobs

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells the time. Delays are measured by Boot, which no correction of the
// date reaches: a clock that is set a day forward runs no delayed job early, and
// one that is set back keeps none from running.
type Clock struct {
	Wall   func() time.Time     // the date, for people and for --at
	Boot   func() time.Duration // since the machine was started, sleep included
	BootID string               // tells one start of the machine from another
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

// stamp is what the store keeps of the clock, so that the time in which no node
// ran counts as well. All are nanoseconds.
type stamp struct {
	Time   int64  `json:"time"` // the store's
	Wall   int64  `json:"wall"`
	Boot   int64  `json:"boot"`
	BootID string `json:"boot_id"`
}

// timeline is the store's time: it never goes back and never jumps, whatever is
// done to the date. It is close to it in the beginning.
type timeline struct {
	clock Clock
	base  int64         // the store's time
	boot  time.Duration // when Boot said this
}

// newTimeline goes on where the stamp was made; the zero stamp begins.
func newTimeline(c Clock, last stamp) *timeline {
	t := &timeline{clock: c, boot: c.Boot()}
	wall := c.Wall().UnixNano()
	switch {
	case last.Time == 0:
		t.base = wall
	case last.BootID == c.BootID && int64(t.boot) >= last.Boot:
		t.base = last.Time + int64(t.boot) - last.Boot
	default: // another start of the machine: the date is all there is
		t.base = last.Time + max(0, wall-last.Wall)
	}
	return t
}

func (t *timeline) now() int64 { return t.base + int64(t.clock.Boot()-t.boot) }

func (t *timeline) stamp() stamp {
	return stamp{Time: t.now(), Wall: t.clock.Wall().UnixNano(), Boot: int64(t.clock.Boot()), BootID: t.clock.BootID}
}

// at is the store's time at a date, as the date stands now.
func (t *timeline) at(date time.Time) int64 { return t.now() + int64(date.Sub(t.clock.Wall())) }
