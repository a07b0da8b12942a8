package mcp

import (
	"context"
	"errors"
	"io"
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

// TestStreamsEndWithTheirSession: a call whose stream has begun is answered with an error when its session ends.
func TestStreamsEndWithTheirSession(t *testing.T) {
	b := newBed(t)
	ended := make(chan bool, 1)
	b.offer(bus.Offer{Name: "hold"}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		inv.Progress(bus.Progress{Text: "it has begun"})
		<-ctx.Done()
		ended <- true
		return bus.Exit(0)
	})
	testbus.Until(t, "the tool", func() bool { return b.catalog.get("hold") != nil })
	h := NewHandler(b.catalog, func(*http.Request) (Access, error) { return Access{Key: "k"}, nil }, true)
	defer h.Close()
	web := httptest.NewServer(h)
	defer web.Close()
	send := func(method, session, body string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, web.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
		if session != "" {
			r.Header.Set("Mcp-Session-Id", session)
			r.Header.Set("Mcp-Protocol-Version", "2025-06-18")
		}
		resp, err := web.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	for name, end := range map[string]func(session string){
		"by its client":   func(session string) { send("DELETE", session, "") },
		"for another one": func(string) { h.serverOf("k").boundSessions(0) },
	} {
		session := send("POST", "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}`).Header.Get("Mcp-Session-Id")
		stream := send("POST", session, `{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"hold","arguments":{},"_meta":{"progressToken":1}}}`)
		end(session)
		text, err := io.ReadAll(stream.Body)
		want := "event: message\ndata: " + `{"error":{"code":-32001,"message":"session not found"},"id":"c","jsonrpc":"2.0"}` + "\n\n"
		if err != nil || !strings.Contains(string(text), "notifications/progress") || !strings.HasSuffix(string(text), want) || strings.Count(string(text), `"id":"c"`) != 1 {
			t.Error(name, string(text), err)
		}
		<-ended
	}
}
