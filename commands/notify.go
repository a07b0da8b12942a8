package commands

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"golang.org/x/sys/unix"
)

// These functions notify the service manager that started fbus, if it asked for that
// (sd_notify(3)). NOTIFY_SOCKET stays in our environment for further messages; programs
// that fbus runs do not get it.

// notifyFails is set while messages to the service manager fail. Only the first failure is
// reported.
var notifyFails atomic.Bool

// notify sends some assignments as one message.
func notify(warn logf, lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err == nil {
		notifyFails.Store(false)
	} else if !notifyFails.Swap(true) {
		// A unit of Type=notify is killed without this message: report the reason.
		warn("cannot notify the service manager of %s: NOTIFY_SOCKET: %v", lines[0], err)
	}
}

func notifyReady(warn logf, status string) {
	notify(warn, daemon.SdNotifyReady, "STATUS="+status)
}

// notifyReloading reports that READY=1 will follow. With the time, the manager knows
// which reload the message is about.
func notifyReloading(warn logf) {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	notify(warn, daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000), "STATUS=reloading")
}

// endMargin is the time after a drain in which programs get TERM, their grace and KILL.
const endMargin = 30 * time.Second

// notifyDraining reports that the process ends within d, and how many calls are still
// open, until stop is called.
func notifyDraining(warn logf, open func() int, d time.Duration) (stop func()) {
	left := open()
	status := func() string { return "STATUS=draining " + plural(left, "call") }
	lines := []string{daemon.SdNotifyStopping, status()}
	if left > 0 { // the unit may be for another --drain
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

// watchdog sends keep-alive messages to a manager that asked for them, until stop is
// called. It calls look before each, which hangs if the process does.
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

// every calls f at that interval, until stop is called.
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
