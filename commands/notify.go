package commands

import (
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"golang.org/x/sys/unix"
)

// What is said here goes to the service manager that has started us, if it wants
// to know: sd_notify(3). NOTIFY_SOCKET stays in our environment, for more than
// one message; programs that we run do not get it.

// logf is where messages for people go.
type logf = func(format string, args ...any)

// notify sends some assignments as one message.
func notify(warn logf, lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		// A unit of Type=notify is killed when this message does not come: say why.
		warn("cannot notify the service manager of %s: NOTIFY_SOCKET: %v", lines[0], err)
	}
}

// notifyReady says that what others wait for is there.
func notifyReady(warn logf, status string) {
	notify(warn, daemon.SdNotifyReady, "STATUS="+status)
}

// notifyReloading says that READY=1 will come again. The time tells the manager
// whether that was before it asked for another reload.
func notifyReloading(warn logf) {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	notify(warn, daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000), "STATUS=reloading")
}

// endMargin is what may follow a drain that was too short: programs get TERM,
// their grace and KILL.
const endMargin = 30 * time.Second

// notifyDraining says that we are going, in at most d, and how many calls are
// still open, until stop is called.
func notifyDraining(warn logf, open func() int, d time.Duration) (stop func()) {
	left := open()
	status := func() string { return "STATUS=draining " + plural(left, "call") }
	lines := []string{daemon.SdNotifyStopping, status()}
	if left > 0 { // the unit may have been written for another --drain
		lines = append(lines, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (d+endMargin).Microseconds()))
	}
	notify(warn, lines...)
	return every(time.Second, func() {
		if now := open(); now != left {
			left = now
			notify(warn, status())
		}
	})
}

// watchdog tells a manager that asks for it that we live, until stop is called:
// as often as look returns. What it looks at hangs if we do.
func watchdog(warn logf, look func()) (stop func()) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		warn("the service manager's watchdog: %v", err)
	}
	if limit == 0 {
		return func() {}
	}
	return every(limit/2, func() {
		look()
		notify(warn, daemon.SdNotifyWatchdog)
	})
}

// every calls f once in a while, until stop is called.
func every(pause time.Duration, f func()) (stop func()) {
	done := make(chan struct{})
	go func() { // ends with stop
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}
