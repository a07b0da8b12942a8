package commands

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/fanout"
	"fbus/bus/node"
)

// TestRelay: what commands show of a function that another node offers, and how they call it there.
func TestRelay(t *testing.T) {
	t.Setenv("FBUS_HOME", t.TempDir())
	n, err := node.New(node.Config{Network: "test", Name: "a"})
	must(t, err)
	defer n.Close()
	socket := filepath.Join(t.TempDir(), "bus.sock")
	l, err := node.Listen(socket, false)
	must(t, err)
	defer l.Close()
	go n.Serve(l) // ends with the listener
	relay, err := bus.Dial(context.Background(), bus.Unix(socket), &bus.Options{Name: "@b", Relay: true})
	must(t, err)
	defer relay.Close()
	off, err := relay.Offer(context.Background(), bus.Offer{Name: "f", Relay: true, Elsewhere: 3, Behind: []string{"w1", "w2"}}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		return bus.Result{Output: fmt.Appendf(nil, "at %q\n", inv.On)}
	})
	must(t, err)
	if slots, err := fanout.Slots(context.Background(), relay, "f", ""); slots != 3 || err != nil {
		t.Errorf("map makes %d calls at once, error %v", slots, err)
	}
	local, err := bus.Dial(context.Background(), bus.Unix(socket), &bus.Options{Name: "w"})
	must(t, err)
	defer local.Close()

	check := func(status int, pattern string, words ...string) {
		t.Helper()
		words = append([]string{words[0], "--node=" + socket}, words[1:]...)
		got, stdout, stderr := runs(words...)
		if got != status || !regexp.MustCompile(pattern).MatchString(stdout+stderr) {
			t.Errorf("fbus %s: status %d\n%s%s", strings.Join(words, " "), got, stdout, stderr)
		}
	}
	check(0, `(?m)^f +1 +0\+3 +0 `, "ls")
	check(0, `(?s)slots +0, 0 busy\nelsewhere +3 slots at other nodes\n.*\n@b +uid:\d+ +0 `, "describe", "f")
	check(0, `0 slots free here; calls also go to other nodes, 3 slots`, "doctor", "f")
	check(75, `f: no slot is free`, "call", "--no-wait", "-n", "f")
	must(t, off.SetSlots(context.Background(), 3))
	_, err = local.Offer(context.Background(), bus.Offer{Name: "f", Slots: 1}, func(context.Context, *bus.Invocation) bus.Result {
		return bus.Result{Output: []byte("here\n")}
	})
	must(t, err)
	check(0, `(?m)^f +2 +1\+3 +0 `, "ls")
	for _, line := range []string{`@b/w1\tat "w1"`, `@b/w2\tat "w2"`, `w\there`} {
		check(0, `(?m)^`+line+`$`, "call", "--all", "--tag", "-n", "f")
	}
	check(0, `"worker":"@b/w2",.*"worker_id":"[^"]+/w2"`, "call", "--all", "--json", "-n", "f")
}
