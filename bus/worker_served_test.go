//go:build linux

package bus_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"fbus/bus"
	"fbus/bus/wire"
)

// saying answers every call with one word.
func saying(word string) bus.Handler {
	return func(context.Context, *bus.Invocation) bus.Result {
		return bus.Result{Output: []byte(word)}
	}
}

func say(t testing.TB, c *bus.Client, name string) string {
	t.Helper()
	var out strings.Builder
	if _, err := c.Call(bg(), &bus.Request{Function: name, Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// running starts a worker and ends it with the test.
func running(t testing.TB, w *bus.Worker) {
	t.Helper()
	if err := w.Start(bg()); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(bg())
	ran := make(chan error, 1)
	go func() { ran <- w.Run(ctx) }()
	t.Cleanup(func() {
		end()
		await(t, "Run", ran)
		w.Close()
	})
}

// TestWorkerReplaces: a call that runs ends where it began, the next one is the
// new function's, and no call between them finds nobody.
func TestWorkerReplaces(t *testing.T) {
	noLeaks(t)
	n, path := start(t)
	started, release := make(chan struct{}), make(chan struct{})
	w := newWorker(path, "f", 2, func(context.Context, *bus.Invocation) bus.Result {
		close(started)
		<-release
		return bus.Result{Output: []byte("old")}
	})
	running(t, w)
	c := dial(t, path)
	var out strings.Builder
	ended := later(bg(), c, &bus.Request{Function: "f", Stdout: &out})
	await(t, "a call", started)
	old, err := w.Put(bg(), bus.Offer{Name: "f", Slots: 3, Description: "new"}, saying("new"))
	if err != nil || old == nil {
		t.Fatal(old, err)
	}
	if got := say(t, c, "f"); got != "new" {
		t.Errorf("answered %q", got)
	}
	if f := n.Functions("f"); len(f) != 1 || f[0].Slots != 3 || f[0].Busy != 1 || f[0].Description != "new" {
		t.Errorf("%+v", f)
	}
	ctx, cancel := context.WithCancel(bg())
	cancel()
	if err := old.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("waited: %v", err)
	}
	close(release)
	if err := await(t, "the call", ended); err != nil || out.String() != "old" {
		t.Errorf("answered %q, %v", out.String(), err)
	}
	if err := old.Wait(bg()); err != nil {
		t.Error(err)
	}
	if gone := w.Remove(bg(), "f"); gone == nil || gone.Wait(bg()) != nil || len(n.Functions("f")) != 0 {
		t.Errorf("still there: %+v", n.Functions("f"))
	}
	if w.Remove(bg(), "f") != nil {
		t.Error("removed twice")
	}
	if old, err := w.Put(bg(), bus.Offer{Name: "f", Slots: 1}, saying("again")); old != nil || err != nil {
		t.Fatal(old, err)
	}
	if got := say(t, c, "f"); got != "again" {
		t.Errorf("answered %q", got)
	}
}

// TestWorkerKeepsWhatIsRefused: an offer that the node does not take leaves the
// one before it in its place.
func TestWorkerKeepsWhatIsRefused(t *testing.T) {
	noLeaks(t)
	n, path := start(t)
	w := newWorker(path, "f", 1, saying("old"))
	running(t, w)
	for what, o := range map[string]bus.Offer{
		"no JSON":  {Name: "f", Slots: 1, Schema: "{"},
		"long":     {Name: "f", Slots: 1, Schema: strings.Repeat(" ", wire.MaxSchema) + "1"},
		"reserved": {Name: "fbus.f", Slots: 1},
	} {
		if _, err := w.Put(bg(), o, saying("new")); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if got := say(t, dial(t, path), "f"); got != "old" {
		t.Errorf("answered %q", got)
	}
	if f := n.Functions(); len(f) != 1 {
		t.Errorf("%+v", f)
	}
}

// TestWorkerChangesUnderLoad: of 200 changes no call of another function sees
// anything, and those of the changed one all are answered by some version of it.
func TestWorkerChangesUnderLoad(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(t.TempDir(), "bus.sock")
	serve(t, path)
	w := newWorker(path, "same", 2, saying("same"))
	w.Add(bus.Offer{Name: "other", Slots: 2}, saying("v0"))
	running(t, w)
	var stop atomic.Bool
	var wg sync.WaitGroup
	c := dial(t, path)
	for _, name := range []string{"same", "other"} {
		for range 4 {
			wg.Go(func() {
				for !stop.Load() {
					var out strings.Builder
					_, err := c.Call(bg(), &bus.Request{Function: name, Stdout: &out})
					if err != nil || name == "same" && out.String() != "same" || name == "other" && out.String()[0] != 'v' {
						t.Errorf("%s: %q, %v", name, out.String(), err)
						return
					}
				}
			})
		}
	}
	for i := range 200 {
		old, err := w.Put(bg(), bus.Offer{Name: "other", Slots: 2 + i%3}, saying(fmt.Sprintf("v%d", i)))
		if err != nil || old.Wait(bg()) != nil {
			t.Error(err)
			break
		}
		w.Put(bg(), bus.Offer{Name: "third", Slots: 1}, saying("third"))
		w.SetNote("same", fmt.Sprint(i))
		w.Remove(bg(), "third")
	}
	stop.Store(true)
	wg.Wait()
}

// TestWorkerChangesWithoutNode: what is put, noted and removed while the node is
// away is so when it is back.
func TestWorkerChangesWithoutNode(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(t.TempDir(), "bus.sock")
	_, stop := serve(t, path)
	w := newWorker(path, "f", 1, saying("old"))
	w.Add(bus.Offer{Name: "g", Slots: 1}, saying("g"))
	lost := make(chan struct{}, 1)
	w.Notice = func(format string, _ ...any) {
		if strings.Contains(format, "looking") {
			lost <- struct{}{}
		}
	}
	running(t, w)
	stop()
	await(t, "the loss", lost)
	if old, err := w.Put(bg(), bus.Offer{Name: "f", Slots: 2, Schema: `{"type":"array"}`}, saying("new")); err != nil || old.Wait(bg()) != nil {
		t.Fatal(err)
	}
	w.Put(bg(), bus.Offer{Name: "h", Slots: 1}, saying("h"))
	w.Remove(bg(), "g")
	w.SetNote("h", "not well")
	n, _ := serve(t, path)
	eventually(t, "the offers", func() bool { return len(n.Functions()) == 2 })
	if f := n.Functions("f"); f[0].Slots != 2 || string(f[0].Schema) != `{"type":"array"}` || f[0].Note != "" {
		t.Errorf("%+v", f)
	}
	if f := n.Functions("h"); f[0].Note != "not well" || f[0].Workers[0].Note != "not well" || f[0].Schema != nil {
		t.Errorf("%+v", f)
	}
	if f := n.Functions(); f[0].Schema != nil {
		t.Errorf("a listing has the schema: %s", f[0].Schema)
	}
	w.SetNote("h", "")
	eventually(t, "no note", func() bool { return n.Functions("h")[0].Note == "" })
	if got := say(t, dial(t, path), "f"); got != "new" {
		t.Errorf("answered %q", got)
	}
}
