package node_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
)

// TestPostedInOrder: of posts that are under way at once the one that was sent first
// has the lower id, and is so the older job, whichever was on disk first; and the older
// one is run first.
func TestPostedInOrder(t *testing.T) {
	_, path := startWithJobs(t, node.Config{}, jobs.Config{Volatile: true})
	c := dial(t, path)
	const posts = 200
	ran := make(chan string, posts)
	offerFunc(t, dial(t, path), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		words, _ := inv.Words()
		ran <- strings.Join(words, " ")
		return bus.Result{}
	})
	ids := make([]string, posts)
	var under sync.WaitGroup
	for i := range posts {
		opened := make(chan struct{}, 1)
		under.Go(func() {
			var out bytes.Buffer
			req := &bus.Request{Function: "fbus.post", Args: args.List("f", `{"kind":"json"}`, fmt.Sprint("[\"", i, "\"]")), Stdout: &out, Opened: func(string) { opened <- struct{}{} }}
			if _, err := c.Call(bg(), req); err != nil {
				t.Error(err)
			}
			ids[i] = out.String()
		})
		await(t, "its sending", opened)
	}
	under.Wait()
	for i := range posts - 1 {
		if ids[i] >= ids[i+1] {
			t.Errorf("post %d has the id %spost %d has %s", i, ids[i], i+1, ids[i+1])
		}
	}
	for i := range posts {
		if got := await(t, "a run", ran); got != fmt.Sprint(i) {
			t.Fatalf("%s was run as number %d", got, i)
		}
	}
}
