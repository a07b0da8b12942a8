//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/cmd/mcp"
	"fbus/cmd/testbus"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// startNode starts a node at a socket, and offers functions that answer their names.
func startNode(t testing.TB, socket string, names ...string) *testbus.Node {
	t.Helper()
	n := testbus.Start(t, node.Config{Name: "n", Address: socket, Jobs: testbus.Jobs(t)})
	worker := n.Dial(nil)
	for _, name := range names {
		if _, err := worker.Offer(t.Context(), bus.Offer{Name: name, Slots: 1, Attributes: map[string]string{"tool": ""}}, func(_ context.Context, inv *bus.Invocation) bus.Result {
			return bus.Result{Output: []byte(name)}
		}); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// TestToolsBoundRights: with --tools the node itself refuses all other functions.
func TestToolsBoundRights(t *testing.T) {
	n := startNode(t, "", "look.up", "other")
	for _, c := range []struct {
		tools    []string
		function string
		denied   bool
	}{{[]string{"look*"}, "look.up", false}, {[]string{"look*"}, "other", true}, {nil, "other", false}, {nil, "fbus.drain", true}, {nil, "fbus.invite", true}} {
		o := options{node: n.Path, tools: c.tools}
		b := o.bus()
		client, err := b.connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Call(t.Context(), &bus.Request{Function: c.function})
		if denied := errors.Is(err, bus.ErrDenied); denied != c.denied || !denied && err != nil {
			t.Errorf("%s with %v: %v", c.function, c.tools, err)
		}
		b.close()
	}
}

// TestNodeRestarts: the list stands while the node is away, and the session goes on when it is back.
func TestNodeRestarts(t *testing.T) {
	n := startNode(t, "", "f")
	o := options{node: n.Path, note: t.Logf}
	b := o.bus()
	defer b.close()
	catalog := o.catalog(b)
	server := mcp.NewServer(catalog, o.config(b))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		catalog.Run(ctx)
	}()
	defer func() { cancel(); <-ended }()
	here, there := sdk.NewInMemoryTransports()
	if _, err := server.MCP.Connect(ctx, there, nil); err != nil {
		t.Fatal(err)
	}
	session, err := sdk.NewClient(&sdk.Implementation{Name: "a test"}, nil).Connect(ctx, here, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	listed := func() bool {
		for tool, err := range session.Tools(ctx, nil) {
			if err == nil && tool.Name == "f" {
				return true
			}
		}
		return false
	}
	answer := func() string {
		res, err := session.CallTool(ctx, &sdk.CallToolParams{Name: "f"})
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(res.IsError, " ", res.Content[0].(*sdk.TextContent).Text)
	}
	if !listed() { // at once: the first list waits for the node
		t.Error("the tool is not in the first list")
	}
	if got := answer(); got != "false f" {
		t.Error(got)
	}
	n.Stop()
	if !listed() {
		t.Error("the list does not stand while the node is away")
	}
	startNode(t, n.Path, "f")
	testbus.Until(t, "the answer after the restart", func() bool { return answer() == "false f" })
}
