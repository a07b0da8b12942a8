package mcp

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/cmd/testbus"
)

// TestOneResponseForARequest: a credential that ends when a call has just been answered does not answer it again.
func TestOneResponseForARequest(t *testing.T) {
	b := newBed(t)
	b.offer(bus.Offer{Name: "f"}, says("done"))
	testbus.Until(t, "the tool", func() bool { return b.catalog.get("f") != nil })
	ctx, end := context.WithCancel(t.Context())
	w := httptest.NewRecorder()
	h := NewHandler(b.catalog, func(*http.Request) (Access, error) {
		return Access{Key: "k", Ended: func() error {
			if !strings.Contains(w.Body.String(), `"result"`) {
				return nil
			}
			end() // as the gateway does
			return errors.New("it was revoked")
		}}, nil
	}, true)
	defer h.Close()
	r := httptest.NewRequestWithContext(ctx, "POST", "/mcp", strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"f","arguments":{},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"a","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`))
	for name, value := range map[string]string{"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "f"} {
		r.Header.Set(name, value)
	}
	h.ServeHTTP(w, r)
	if got := w.Body.String(); w.Code != 200 || strings.Count(got, `"id":1`) != 1 || !strings.Contains(got, "done") {
		t.Error(w.Code, got)
	}
}
