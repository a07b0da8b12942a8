package mcp

import (
	"encoding/json"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/cmd/testbus"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

func TestOlderClientsGetObjects(t *testing.T) {
	b := newBed(t)
	b.offer(bus.Offer{Name: "list", Attributes: map[string]string{"tool": "", "output-schema": `{"type":"array"}`}}, says("[1,2]"))
	b.offer(bus.Offer{Name: "plain"}, says("[1,2]"))
	b.offer(bus.Offer{Name: "odd", Schema: `{"type":"object","properties":{"x":true,"y":false}}`}, says(`{"a":1}`))
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		here, there := sdk.NewInMemoryTransports()
		if _, err := b.server.MCP.Connect(b.ctx, there, nil); err != nil {
			t.Fatal(err)
		}
		session, err := sdk.NewClient(&sdk.Implementation{Name: "an agent"}, nil).Connect(b.ctx, here, &sdk.ClientSessionOptions{ProtocolVersion: version})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { session.Close() })
		var tools map[string]*sdk.Tool
		testbus.Until(t, "the tools", func() bool { tools = b.toolsOf(session); return len(tools) == 3 })
		older := version < anySchema
		if has := tools["list"].OutputSchema != nil; has == older {
			t.Errorf("%s: output schema %v", version, tools["list"].OutputSchema)
		}
		input, _ := json.Marshal(tools["odd"].InputSchema)
		if want := `"properties":{"x":{},"y":{"not":{}}}`; strings.Contains(string(input), want) != older {
			t.Errorf("%s: input schema %s", version, input)
		}
		for _, name := range []string{"list", "plain"} {
			if res := b.call(session, name, nil); res.IsError || (res.StructuredContent == nil) != older || text(res) != "[1,2]" {
				t.Errorf("%s of %s: %v %s", name, version, res.StructuredContent, text(res))
			}
		}
		if res := b.call(session, "odd", nil); res.StructuredContent == nil {
			t.Errorf("%s: no structured content: %s", version, text(res))
		}
	}
}
