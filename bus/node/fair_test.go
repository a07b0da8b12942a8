package node_test

import (
	"context"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// TestFairWriting: a small answer does not stand behind the megabytes that other
// calls of its connection have been granted, and that their peer is slow to take.
func TestFairWriting(t *testing.T) {
	over(t, func(t *testing.T, connect func(testing.TB, *node.Node, string) *raw) {
		n, path := start(t, node.Config{})
		w := dial(t, path)
		offerFunc(t, w, "bulk", 2, func(ctx context.Context, inv *bus.Invocation) bus.Result { return endlessly(ctx, inv.Stdout) })
		asked := make(chan bool, 2)
		offerFunc(t, w, "small", 1, func(context.Context, *bus.Invocation) bus.Result {
			asked <- true
			return bus.Result{Output: []byte("small")}
		})
		r := connect(t, n, path).greet()
		for id := uint64(1); id <= 2; id++ {
			f := callFrame(id, "bulk", "")
			f.WindowOutput = wire.MaxWindow
			r.send(f)
		}
		// It reads next to nothing: what is granted lines up in the node. A first frame may find
		// the node still at writing, and then nothing is granted until some was read.
		const lined = 3 << 20
		for next := time.Now(); n.Books().Budget < lined; time.Sleep(time.Millisecond) {
			if time.Now().Before(next) {
				continue
			}
			if _, err := r.next(); err != nil {
				t.Fatal(err)
			}
			next = time.Now().Add(100 * time.Millisecond)
		}
		r.send(callFrame(3, "small", ""))
		await(t, "the call", asked)
		<-post(bg(), dial(t, path), bus.Request{Function: "small"}) // the one slot is free again: it has answered
		before := 0
		for {
			f, err := r.next()
			if err != nil {
				t.Fatal(err)
			}
			switch f := f.(type) {
			case *wire.DataFrame:
				before += len(f.Payload)
				continue
			case *wire.EndFrame:
				if f.ID != 3 || string(f.Output) != "small" {
					t.Fatalf("%+v", f)
				}
			default:
				continue
			}
			break
		}
		t.Logf("%d bytes came before the answer", before)
		if before > lined/2 {
			t.Errorf("%d bytes came before the answer: it has waited for what others send", before)
		}
	})
}
