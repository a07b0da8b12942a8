package commands

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestLoggerIsLimited checks that a flood of messages of one kind is counted, and hides no other
// message.
func TestLoggerIsLimited(t *testing.T) {
	defer func(d time.Duration) { messageTime = d }(messageTime)
	messageTime = 400 * time.Millisecond
	var out locked
	log, all := logger(&out)
	for i := range 2000 {
		log("connection %d of %s closed: %v", i, "uid:1", "malformed\nframe")
	}
	log("the log cannot be written")
	all("call %s", "a")
	got := out.String()
	if n := strings.Count(got, "malformed frame\n"); n != messageBurst || !strings.Contains(got, "fbus: the log cannot be written\n") {
		t.Errorf("%d messages: %.300s", n, got)
	}
	waitUntil(t, "the count is printed", func() bool {
		return strings.Contains(out.String(), fmt.Sprintf("connection 1999 of uid:1 closed: malformed frame (the last of %d messages like this that were not printed)\n", 2000-messageBurst))
	})
	log("connection %d of %s closed: %v", 1, "uid:1", "x")
	if !strings.HasSuffix(out.String(), "fbus: connection 1 of uid:1 closed: x\n") {
		t.Errorf("later messages are not printed: %.300s", out.String())
	}
}

// TestNotifyFails checks that a dead NOTIFY_SOCKET is reported once, and again after it has
// worked.
func TestNotifyFails(t *testing.T) {
	n := 0
	warn := func(string, ...any) { n++ }
	for _, failing := range []bool{true, false, true} {
		t.Setenv("NOTIFY_SOCKET", map[bool]string{true: t.TempDir() + "/gone"}[failing])
		for range 100 {
			notify(warn, "WATCHDOG=1")
		}
	}
	if n != 2 {
		t.Errorf("%d messages", n)
	}
	notifyFails.Store(false)
}
