package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/testbus"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// withToken adds a token to requests.
type withToken struct {
	http.RoundTripper
	token string
}

func (w withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+w.token)
	return w.RoundTripper.RoundTrip(r)
}

// TestAgents: an agent sees and calls the tools that its token allows, in both eras of the protocol, and none
// when the token is revoked.
func TestAgents(t *testing.T) {
	x := newSite(t)
	who := func(_ context.Context, inv *bus.Invocation) bus.Result {
		fmt.Fprint(inv.Stdout, inv.Caller)
		return bus.Exit(0)
	}
	x.offer(bus.Offer{Name: "who", Attributes: map[string]string{"tool": ""}}, who)
	x.offer(bus.Offer{Name: "other", Attributes: map[string]string{"tool": ""}}, who)
	x.offer(bus.Offer{Name: "whoever"}, who)
	caller := func(name string) string { return fmt.Sprintf("uid:%d/%s", os.Getuid(), name) }
	if r := x.do("POST", x.far+"/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`); r.StatusCode != 401 {
		t.Errorf("without a token: %s", r.Status)
	}
	connect := func(url string, rt http.RoundTripper, version string) (*sdk.ClientSession, error) {
		return sdk.NewClient(&sdk.Implementation{Name: "an agent"}, nil).Connect(t.Context(),
			&sdk.StreamableClientTransport{Endpoint: url + "/mcp", HTTPClient: &http.Client{Transport: rt}, DisableStandaloneSSE: true}, &sdk.ClientSessionOptions{ProtocolVersion: version})
	}
	answer := func(s *sdk.ClientSession, tool string) string {
		res, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: tool})
		if err != nil {
			return err.Error()
		}
		return res.Content[0].(*sdk.TextContent).Text
	}
	token := x.token("ci", "who*")
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		s, err := connect(x.far, withToken{http.DefaultTransport, token}, version)
		if err != nil {
			t.Fatal(version, err)
		}
		var names []string
		testbus.Until(x.t, "the tools", func() bool {
			names = nil
			for tool, err := range s.Tools(t.Context(), nil) {
				if err != nil {
					t.Fatal(err)
				}
				if tool.Meta["fbus/function"] != nil {
					names = append(names, tool.Name)
				}
			}
			return len(names) > 0
		})
		if len(names) != 1 || names[0] != "who" {
			t.Errorf("%s: tools %v", version, names)
		}
		if got := answer(s, "who"); got != caller("token:ci/mcp:an-agent") {
			t.Errorf("%s: %q", version, got)
		}
		s.Close()
	}
	s, err := connect(x.local, x.http, "2026-07-28")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := answer(s, "other"); got != caller("mcp:an-agent") {
		t.Errorf("on the socket: %q", got)
	}
	if _, _, err := x.a.Revoke("ci"); err != nil {
		t.Fatal(err)
	}
	testbus.Until(x.t, "the token is refused", func() bool {
		return x.do("POST", x.far+"/mcp", "{}", "Authorization", "Bearer "+token).StatusCode == 401
	})
}

// TestAgentsHaveLimits: a call of a tool counts as a call of its caller.
func TestAgentsHaveLimits(t *testing.T) {
	x := newSite(t, func(c *config) {
		c.Tokens["token:few"] = tokenConfig{limitConfig: limitConfig{Calls: 1}}
		c.Tokens["token:slow"] = tokenConfig{limitConfig: limitConfig{PerMinute: 2}}
	})
	began, goOn := make(chan bool), make(chan struct{})
	x.offer(bus.Offer{Name: "hold", Attributes: map[string]string{"tool": ""}}, func(context.Context, *bus.Invocation) bus.Result {
		began <- true
		<-goOn
		return bus.Exit(0)
	})
	x.offer(bus.Offer{Name: "f", Attributes: map[string]string{"tool": ""}}, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
	testbus.Until(x.t, "the tools", func() bool {
		r := x.tool("tools/list", "")
		return strings.Contains(r.body, `"fbus/function":"f"`) && strings.Contains(r.body, `"fbus/function":"hold"`)
	})
	auth := []string{"Authorization", "Bearer " + x.token("few", "*")}
	replies := make(chan *reply)
	go func() { replies <- x.toolAt(x.far, "tools/call", "hold", auth...) }() // ends with the call
	<-began
	if r := x.toolAt(x.far, "tools/call", "f", auth...); !strings.Contains(r.body, `"isError":true`) || !strings.Contains(r.body, "f was not run: token:few has 1 calls open, which is the limit; try again in 1 s.") {
		t.Error(r.Status, r.body)
	}
	close(goOn)
	if r := <-replies; strings.Contains(r.body, "isError") {
		t.Error(r.body)
	}
	auth = []string{"Authorization", "Bearer " + x.token("slow", "*")}
	for i := range 3 {
		r := x.toolAt(x.far, "tools/call", "f", auth...)
		if said := strings.Contains(r.body, "f was not run: token:slow may make 2 calls a minute; try again in "); said != (i == 2) {
			t.Error(i, r.Status, r.body)
		}
	}
}

// TestAgentsReadUnicode: an answer has no half of a surrogate pair, which parsers of many clients refuse.
func TestAgentsReadUnicode(t *testing.T) {
	x := newSite(t)
	for name, o := range map[string]struct{ attribute, schema, answer string }{
		"output": {"tool", "", `{"a":"\ud800"}`},
		"own":    {"mcp.result", "", `{"content":[{"type":"text","text":"\ud800"}],"structuredContent":{"\ud800":"\ud800"}}`},
		"schema": {"tool", `{"type":"object","properties":{"x":{"const":"\ud800"}}}`, ""},
	} {
		x.offer(bus.Offer{Name: name, Schema: o.schema, Attributes: map[string]string{"tool": "", o.attribute: ""}}, func(context.Context, *bus.Invocation) bus.Result {
			return bus.Result{Output: []byte(o.answer)}
		})
	}
	list := ""
	testbus.Until(x.t, "the tools", func() bool {
		list = x.tool("tools/list", "").body
		return strings.Contains(list, `"fbus/function":"output"`) && strings.Contains(list, `"fbus/function":"own"`)
	})
	for _, text := range []string{list, x.tool("tools/call", "output").body, x.tool("tools/call", "own").body} {
		if strings.Contains(strings.ReplaceAll(text, `\\ud800`, ""), `\ud800`) || strings.Contains(text, "isError") {
			t.Error(text)
		}
	}
}

// TestAgentsFindTheirRequests: an id that an answer cannot repeat is refused, and so are wrong params, in plain words.
func TestAgentsFindTheirRequests(t *testing.T) {
	x := newSite(t)
	if r := x.inSession(x.local, x.session(x.local), `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":5}}`); r.StatusCode != 400 || r.body != `{"error":{"code":-32602,"message":"invalid params: name must be a string"},"id":7,"jsonrpc":"2.0"}`+"\n" {
		t.Error(r.Status, r.body)
	}
	for _, id := range []string{"9007199254740993", "1.5", "null", `"\ud800"`} {
		for _, version := range []string{"2025-03-26", "2026-07-28"} {
			message := `{"jsonrpc":"2.0","id":` + id + `,"method":"ping"}`
			for _, body := range []string{message, "[" + message + "]"} {
				r := x.do("POST", x.local+"/mcp", body, "Content-Type", "application/json", "Accept", "application/json, text/event-stream", "Mcp-Protocol-Version", version)
				if r.StatusCode != 400 || !strings.HasPrefix(r.body, `{"error":{"code":-32600,"message":"the id `) || !strings.HasSuffix(r.body, `"id":null,"jsonrpc":"2.0"}`+"\n") {
					t.Error(version, body, r.Status, r.body)
				}
			}
		}
	}
}

// TestAgentsSendWhatCannotBeRead: it is answered with an error of JSON-RPC, in both eras.
func TestAgentsSendWhatCannotBeRead(t *testing.T) {
	x := newSite(t)
	session := x.session(x.local)
	for body, want := range map[string]string{
		"\xff\xfe": `{"error":{"code":-32700,"message":"this is not JSON: line 1, column 1: it is UTF-16, and must be UTF-8"},"id":null,"jsonrpc":"2.0"}`,
		`null`:     `{"error":{"code":-32600,"message":"a message must be a JSON object"},"id":null,"jsonrpc":"2.0"}`,
		`{"jsonrpc":"1.0","id":1,"method":"ping"}`: `{"error":{"code":-32600,"message":"jsonrpc must be \"2.0\""},"id":null,"jsonrpc":"2.0"}`,
	} {
		modern := x.do("POST", x.local+"/mcp", body, "Content-Type", "application/json", "Accept", "application/json, text/event-stream", "Mcp-Protocol-Version", "2026-07-28")
		for _, r := range []*reply{modern, x.inSession(x.local, session, body)} {
			if r.StatusCode != 400 || r.Header.Get("Content-Type") != "application/json" || r.body != want+"\n" {
				t.Error(body, r.Status, r.body)
			}
		}
	}
}

// TestAgentsDrain: the gateway lets the calls of agents finish when it is told to stop, though their streams
// of events would not end.
func TestAgentsDrain(t *testing.T) {
	x := newSite(t, func(cfg *config) { cfg.Drain = time.Minute })
	started, goOn := make(chan struct{}, 2), make(chan struct{})
	x.offer(bus.Offer{Name: "slow", Slots: 2, Attributes: map[string]string{"tool": ""}}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		started <- struct{}{}
		<-goOn
		return bus.Result{Output: []byte("done")}
	})
	token := x.token("ci", "*")
	answers := make(chan string, 2)
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		s, err := sdk.NewClient(&sdk.Implementation{Name: "an agent"}, nil).Connect(t.Context(), &sdk.StreamableClientTransport{
			Endpoint: x.far + "/mcp", HTTPClient: &http.Client{Transport: withToken{http.DefaultTransport, token}},
		}, &sdk.ClientSessionOptions{ProtocolVersion: version})
		if err != nil {
			t.Fatal(err)
		}
		testbus.Until(x.t, "the tool is known", func() bool {
			for tool, err := range s.Tools(t.Context(), nil) {
				if err != nil {
					t.Fatal(err)
				}
				if tool.Name == "slow" {
					return true
				}
			}
			return false
		})
		go func() { // ends with its call
			res, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "slow"})
			if err != nil {
				answers <- err.Error()
				return
			}
			answers <- res.Content[0].(*sdk.TextContent).Text
		}()
		select {
		case <-started:
		case got := <-answers:
			t.Fatal(version, got)
		}
	}
	stopped := make(chan struct{})
	go func() { // ends with the gateway
		defer close(stopped)
		x.stop()
	}()
	testbus.Until(x.t, "the gateway accepts nothing new", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(x.far, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(goOn)
	for range 2 {
		if got := <-answers; got != "done" {
			t.Error(got)
		}
	}
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Error("the gateway does not end: streams of events are open")
	}
}

// TestSessionEnds: with its session a running call ends, whether its client still waits for it or not. What
// is asked of the session, then and later, is answered with 404 and an error of JSON-RPC.
func TestSessionEnds(t *testing.T) {
	const noSession = `{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"session not found"}}` + "\n"
	x := newSite(t)
	started, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	x.offer(bus.Offer{Name: "hold", Attributes: map[string]string{"tool": ""}}, func(ctx context.Context, _ *bus.Invocation) bus.Result {
		started <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return bus.Exit(0)
	})
	testbus.Until(x.t, "the tool", func() bool { return strings.Contains(x.tool("tools/list", "").body, `"fbus/function":"hold"`) })
	send := func(ctx context.Context, method, session, body string) (*http.Response, error) {
		r, err := http.NewRequestWithContext(ctx, method, x.local+"/mcp", strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
		if session != "" {
			r.Header.Set("Mcp-Session-Id", session)
			r.Header.Set("Mcp-Protocol-Version", "2025-11-25")
		}
		return x.http.RoundTrip(r)
	}
	for _, leaves := range []bool{false, true} {
		r, err := send(t.Context(), "POST", "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}`)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		session := r.Header.Get("Mcp-Session-Id")
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		answer := make(chan string, 1)
		go func() { // ends with the request
			r, err := send(ctx, "POST", session, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"hold","arguments":{}}}`)
			if err != nil {
				answer <- err.Error()
				return
			}
			defer r.Body.Close()
			text, _ := io.ReadAll(r.Body)
			answer <- r.Status + " " + string(text)
		}()
		wait(t, started)
		if leaves {
			leave()
			<-answer
		}
		if r, err = send(t.Context(), "DELETE", session, ""); err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		wait(t, ended)
		if !leaves {
			select {
			case text := <-answer:
				if text != "404 Not Found "+noSession {
					t.Error(text)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the request goes on")
			}
		}
		if r, err = send(t.Context(), "POST", session, `{"jsonrpc":"2.0","id":3,"method":"tools/list"}`); err != nil {
			t.Fatal(err)
		}
		if text, _ := io.ReadAll(r.Body); r.StatusCode != 404 || string(text) != noSession {
			t.Errorf("%s: %s", r.Status, text)
		}
		r.Body.Close()
		if r, err = send(t.Context(), "DELETE", session, ""); err != nil || r.StatusCode != 404 {
			t.Errorf("the session is still there: %v, %v", r, err)
		}
		r.Body.Close()
	}
}

// TestSessionsAreBounded: of too many sessions of a caller those end that were not used for the longest time. One
// with a call stays.
func TestSessionsAreBounded(t *testing.T) {
	x := newSite(t)
	began, goOn := make(chan bool), make(chan struct{})
	x.offer(bus.Offer{Name: "hold", Attributes: map[string]string{"tool": ""}}, func(context.Context, *bus.Invocation) bus.Result {
		began <- true
		<-goOn
		return bus.Exit(0)
	})
	testbus.Until(x.t, "the tool", func() bool { return strings.Contains(x.tool("tools/list", "").body, `"fbus/function":"hold"`) })
	send := func(session, body string) *reply { return x.inSession(x.local, session, body) }
	begin := func() string { return x.session(x.local) }
	const ping = `{"jsonrpc":"2.0","id":3,"method":"ping"}`
	calls, used, unused := begin(), begin(), begin()
	replies := make(chan *reply)
	go func() {
		replies <- send(calls, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"hold","arguments":{}}}`)
	}() // ends with the call
	<-began
	if r := send(used, ping); r.StatusCode != 200 {
		t.Error(r.Status, r.body)
	}
	last := ""
	for range 98 {
		last = begin()
	}
	for session, want := range map[string]int{calls: 200, used: 200, unused: 404, last: 200} {
		if r := send(session, ping); r.StatusCode != want {
			t.Error(r.Status, want, r.body)
		}
	}
	close(goOn)
	if r := <-replies; r.StatusCode != 200 || strings.Contains(r.body, "rror") {
		t.Error(r.Status, r.body)
	}
}

// TestAgentsHearTheEndOfTheirToken: a call that waits is answered with 401, or with an error if its stream has begun.
func TestAgentsHearTheEndOfTheirToken(t *testing.T) {
	x := newSite(t)
	began := make(chan bool)
	x.offer(bus.Offer{Name: "hold", Slots: 3, Attributes: map[string]string{"tool": ""}}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		inv.Progress(bus.Progress{Text: "it has begun"})
		began <- true
		<-ctx.Done()
		return bus.Exit(0)
	})
	testbus.Until(x.t, "the tool", func() bool { return strings.Contains(x.tool("tools/list", "").body, `"fbus/function":"hold"`) })
	auth := []string{"Authorization", "Bearer " + x.token("gone", "*")}
	replies := make(chan *reply, 2)
	go func() { replies <- x.toolAt(x.far, "tools/call", "hold", auth...) }() // ends with the token
	session := x.session(x.far, auth...)
	go func() { // ends with the token
		replies <- x.inSession(x.far, session, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"hold","arguments":{}}}`, auth...)
	}()
	r, err := http.NewRequestWithContext(t.Context(), "POST", x.far+"/mcp", strings.NewReader(`{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"hold","arguments":{},"_meta":{"progressToken":1}}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, "Mcp-Session-Id": {session}, "Mcp-Protocol-Version": {"2025-11-25"}, "Authorization": auth[1:]}
	stream := make(chan *http.Response, 1)
	go func() { // ends with the first event
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Error(err)
		}
		stream <- resp
	}()
	for range 3 {
		<-began
	}
	begun := <-stream
	defer begun.Body.Close()
	x.g.link.tokens.ended(func(*admitted) bool { return true }) // as when the node says so before it ends the jobs
	for range 2 {
		if r := <-replies; r.StatusCode != 401 || r.Header.Get("WWW-Authenticate") == "" || !strings.Contains(r.body, "revoked") {
			t.Error(r.Status, r.Header, r.body)
		}
	}
	text, err := io.ReadAll(begun.Body)
	if err != nil || !strings.Contains(string(text), `{"error":{"code":-32603,"message":"token:gone was revoked or has expired"},"id":"c","jsonrpc":"2.0"}`) {
		t.Error(string(text), err)
	}
}

// TestAgentsAreAnsweredOnceAtTheEndOfTheirToken: the node revokes a token and ends its jobs at the same time. A call
// is answered with 401, or once with an error in a stream that has begun; never with the end of the job.
func TestAgentsAreAnsweredOnceAtTheEndOfTheirToken(t *testing.T) {
	x := newSite(t)
	const calls = 8
	began := make(chan bool)
	x.offer(bus.Offer{Name: "hold", Slots: 4 * calls, Attributes: map[string]string{"tool": ""}}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		inv.Progress(bus.Progress{Text: "it has begun"})
		began <- true
		<-ctx.Done()
		return bus.Exit(0)
	})
	testbus.Until(x.t, "the tool", func() bool { return strings.Contains(x.tool("tools/list", "").body, `"fbus/function":"hold"`) })
	auth := []string{"Authorization", "Bearer " + x.token("gone", "*")}
	session := x.session(x.far, auth...)
	replies := make(chan *reply, 3*calls)
	for id := range calls { // each ends with the token
		go func() { replies <- x.toolAt(x.far, "tools/call", "hold", auth...) }()
		for _, meta := range []string{"", fmt.Sprintf(`,"_meta":{"progressToken":%d}`, id)} {
			body := fmt.Sprintf(`{"jsonrpc":"2.0","id":"%d%d","method":"tools/call","params":{"name":"hold","arguments":{}%s}}`, len(meta), id, meta)
			go func() { replies <- x.inSession(x.far, session, body, auth...) }()
		}
	}
	for range 3 * calls {
		<-began
	}
	if _, _, err := x.a.Revoke("gone"); err != nil {
		t.Fatal(err)
	}
	for range 3 * calls {
		r := <-replies
		begun := r.StatusCode == 200 && strings.Contains(r.body, "notifications/progress") && strings.Count(r.body, `"id":`) == 1 && strings.Contains(r.body, `"code":-32603`)
		if !begun && (r.StatusCode != 401 || !strings.Contains(r.body, "revoked")) {
			t.Error(r.Status, r.body)
		}
	}
}

func wait(t *testing.T, event <-chan struct{}) {
	t.Helper()
	select {
	case <-event:
	case <-time.After(20 * time.Second):
		t.Fatal("it did not happen")
	}
}

// tool makes a request of version 2026-07-28 on the socket.
func (x *site) tool(method, name string) *reply {
	x.t.Helper()
	return x.toolAt(x.local, method, name)
}

// session begins a session of version 2025-11-25 and returns its id.
func (x *site) session(url string, headers ...string) string {
	x.t.Helper()
	r := x.inSession(url, "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}`, headers...)
	id := r.Header.Get("Mcp-Session-Id")
	x.inSession(url, id, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, headers...)
	return id
}

// inSession sends a message of a session.
func (x *site) inSession(url, session, body string, headers ...string) *reply {
	x.t.Helper()
	headers = append([]string{"Content-Type", "application/json", "Accept", "application/json, text/event-stream"}, headers...)
	if session != "" {
		headers = append(headers, "Mcp-Session-Id", session, "Mcp-Protocol-Version", "2025-11-25")
	}
	return x.do("POST", url+"/mcp", body, headers...)
}

// toolAt makes a request of version 2026-07-28.
func (x *site) toolAt(url, method, name string, headers ...string) *reply {
	x.t.Helper()
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":%q,"params":{"name":%q,"arguments":{},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"b","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`, method, name)
	headers = append([]string{"Content-Type", "application/json", "Accept", "application/json, text/event-stream", "Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", method}, headers...)
	if name != "" {
		headers = append(headers, "Mcp-Name", name)
	}
	return x.do("POST", url+"/mcp", body, headers...)
}
