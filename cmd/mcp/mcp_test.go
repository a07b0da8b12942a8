package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/node"
	"fbus/cmd/testbus"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// bed is a node with a store of jobs, and a server of its functions.
type bed struct {
	*testbus.Node
	t      testing.TB
	ctx    context.Context
	client *bus.Client // the server's
	server *Server

	catalog *Catalog

	mu    sync.Mutex // protects the field below
	notes []string
}

// newBed starts a node, and a server for its functions.
func newBed(t testing.TB, change ...func(*Catalog, *Config)) *bed {
	t.Helper()
	b := &bed{t: t, Node: testbus.Start(t, node.Config{Name: "n", Jobs: testbus.Jobs(t)})}
	var cancel context.CancelFunc
	b.ctx, cancel = context.WithCancel(context.Background())
	b.client = b.Dial(&bus.Options{Relay: true, Rights: []string{"relay", "call:*"}})
	b.catalog = &Catalog{
		Connect: func(context.Context) (*bus.Client, error) { return b.client, nil },
		Note: func(format string, a ...any) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.notes = append(b.notes, fmt.Sprintf(format, a...))
		},
	}
	cfg := Config{Caller: func(client string) string { return "mcp:" + client }}
	for _, f := range change {
		f(b.catalog, &cfg)
	}
	b.server = NewServer(b.catalog, cfg)
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		b.catalog.Run(b.ctx)
	}()
	t.Cleanup(func() {
		b.server.Close()
		cancel()
		<-ended
	})
	return b
}

// offer offers a function, on a connection of its own.
func (b *bed) offer(o bus.Offer, h bus.Handler) *bus.Client {
	b.t.Helper()
	c := b.Dial(&bus.Options{})
	if o.Slots == 0 {
		o.Slots = 8
	}
	if o.Attributes == nil {
		o.Attributes = map[string]string{"tool": ""}
	}
	if _, err := c.Offer(b.ctx, o, h); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// says is a handler that answers a text.
func says(text string) bus.Handler {
	return func(_ context.Context, inv *bus.Invocation) bus.Result {
		inv.Stdout.Write([]byte(text))
		return bus.Exit(0)
	}
}

// connect connects an agent to the server.
func (b *bed) connect(o *sdk.ClientOptions) *sdk.ClientSession {
	b.t.Helper()
	here, there := sdk.NewInMemoryTransports()
	if _, err := b.server.MCP.Connect(b.ctx, there, nil); err != nil {
		b.t.Fatal(err)
	}
	session, err := sdk.NewClient(&sdk.Implementation{Name: "an agent"}, o).Connect(b.ctx, here, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { session.Close() })
	return session
}

// toolsOf lists the tools, without those about jobs.
func (b *bed) toolsOf(session *sdk.ClientSession) map[string]*sdk.Tool {
	b.t.Helper()
	tools := map[string]*sdk.Tool{}
	for tool, err := range session.Tools(b.ctx, nil) {
		if err != nil {
			b.t.Fatal(err)
		}
		if !strings.HasPrefix(tool.Name, "job_") {
			tools[tool.Name] = tool
		}
	}
	return tools
}

func (b *bed) call(session *sdk.ClientSession, tool string, arguments any) *sdk.CallToolResult {
	b.t.Helper()
	res, err := session.CallTool(b.ctx, &sdk.CallToolParams{Name: tool, Arguments: arguments})
	if err != nil {
		b.t.Fatalf("%s: %v", tool, err)
	}
	return res
}

// text returns the texts of a result.
func text(res *sdk.CallToolResult) string {
	var list []string
	for _, c := range res.Content {
		if t, ok := c.(*sdk.TextContent); ok {
			list = append(list, t.Text)
		}
	}
	return strings.Join(list, "|")
}

func TestToolsAreOffersWithTheAttribute(t *testing.T) {
	b := newBed(t)
	b.offer(bus.Offer{
		Name: "look.up", Description: "finds a customer", Schema: `{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}`, Idempotent: true,
		Attributes: map[string]string{"tool": "", "read-only": ""},
	}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		fmt.Fprintf(inv.Stdout, "%s for %s in %q, job %v", inv.Args, inv.Caller, inv.Trace, inv.Job != "")
		return bus.Exit(0)
	})
	b.offer(bus.Offer{Name: "other", Attributes: map[string]string{"read-only": ""}}, says("no tool"))
	session := b.connect(nil)
	var tools map[string]*sdk.Tool
	testbus.Until(t, "the tool", func() bool { tools = b.toolsOf(session); return tools["look_up"] != nil })
	tool := tools["look_up"]
	if len(tools) != 1 || !strings.Contains(tool.Description, "Function look.up, as its worker describes it: finds a customer") {
		t.Error(tools, tool.Description)
	}
	if schema, _ := json.Marshal(tool.InputSchema); !strings.Contains(string(schema), `"required":["name"]`) {
		t.Errorf("schema %s", schema)
	}
	if a := tool.Annotations; !a.ReadOnlyHint || !a.IdempotentHint || *a.DestructiveHint {
		t.Errorf("annotations %+v", a)
	}
	parent := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	res, err := session.CallTool(b.ctx, &sdk.CallToolParams{Meta: sdk.Meta{"traceparent": parent}, Name: "look_up", Arguments: object{"name": "Bob"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := text(res), fmt.Sprintf(`{"name":"Bob"} for uid:%d/mcp:an-agent in %q, job true`, os.Getuid(), parent); got != want || res.IsError {
		t.Errorf("%q, want %q", got, want)
	}
	if res := b.call(session, "look_up", object{"name": 3}); !res.IsError || !strings.Contains(text(res), "/name: got number, want string") {
		t.Error(text(res))
	}
}

func TestTheListFollowsTheBus(t *testing.T) {
	b := newBed(t, func(c *Catalog, _ *Config) { c.Linger = 300 * time.Millisecond })
	session := b.connect(nil)
	worker := b.offer(bus.Offer{Name: "now"}, says("x"))
	testbus.Until(t, "the tool", func() bool { return b.toolsOf(session)["now"] != nil })
	worker.Close()
	testbus.Until(t, "the end of the worker", func() bool {
		b.catalog.mu.Lock()
		defer b.catalog.mu.Unlock()
		return !b.catalog.tools["now"].gone.IsZero()
	})
	if b.toolsOf(session)["now"] == nil {
		t.Error("the tool went at once")
	}
	if res := b.call(session, "now", nil); !res.IsError || !strings.Contains(text(res), "no worker now") {
		t.Error(text(res))
	}
	testbus.Until(t, "the end of the tool", func() bool { return b.toolsOf(session)["now"] == nil })
}

func TestNamesThatBecomeTheSame(t *testing.T) {
	b := newBed(t)
	for _, name := range []string{"a.b", "a_b", "job_wait", strings.Repeat("x", 65)} {
		b.offer(bus.Offer{Name: name}, says(name))
	}
	testbus.Until(t, "the functions", func() bool { return len(b.catalog.list()) == 4 })
	b.server.Close()
	b.server = NewServer(b.catalog, b.server.cfg) // one that finds all of them at its start
	session := b.connect(nil)
	testbus.Until(t, "the tools and the faults", func() bool { return len(b.toolsOf(session)) == 1 && len(b.server.Faults()) == 3 })
	if got := text(b.call(session, "a_b", nil)); got != "a_b" {
		t.Errorf("a_b called %s", got)
	}
	faults := strings.Join(b.server.Faults(), "\n")
	for _, want := range []string{"a.b: its name as a tool would be a_b, as that of a_b", "job_wait: fbus mcp has a tool of that name", "the name of a tool may have 64 characters"} {
		if !strings.Contains(faults, want) {
			t.Errorf("faults %s, want %s", faults, want)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.ContainsFunc(b.notes, func(n string) bool { return strings.HasPrefix(n, "not a tool: a.b: ") }) {
		t.Errorf("notes %q", b.notes)
	}
}

func TestNamesStayWithTheirFunctions(t *testing.T) {
	b := newBed(t, func(c *Catalog, _ *Config) { c.Linger = 300 * time.Millisecond })
	session := b.connect(nil)
	first := b.offer(bus.Offer{Name: "my.tool"}, says("the first"))
	testbus.Until(t, "the tool", func() bool { return b.toolsOf(session)["my_tool"] != nil })
	b.offer(bus.Offer{Name: "my_tool"}, says("the second"))
	testbus.Until(t, "the fault", func() bool { return len(b.server.Faults()) == 1 })
	if got := text(b.call(session, "my_tool", nil)); got != "the first" {
		t.Errorf("another function has taken the name: %s", got)
	}
	if got := b.server.Faults()[0]; got != "my_tool: its name as a tool would be my_tool, as that of my.tool" {
		t.Error(got)
	}
	first.Close()
	testbus.Until(t, "the end of the worker", func() bool {
		f := b.catalog.get("my.tool")
		return f == nil || !f.gone.IsZero()
	})
	testbus.Until(t, "the free name", func() bool {
		function := b.toolsOf(session)["my_tool"].Meta[metaFunction]
		if function != "my.tool" && function != "my_tool" {
			t.Fatal(function)
		}
		return function == "my_tool"
	})
	if got := text(b.call(session, "my_tool", nil)); got != "the second" || len(b.server.Faults()) > 0 {
		t.Error(got, b.server.Faults())
	}
}

func TestManyToolsBecomeTwo(t *testing.T) {
	b := newBed(t, func(list *Catalog, c *Config) { list.Linger, c.MaxTools = time.Millisecond, 3 })
	var workers []*bus.Client
	for i := range 5 {
		workers = append(workers, b.offer(bus.Offer{Name: fmt.Sprintf("f%d", i), Description: fmt.Sprintf("number %d", i)}, says(fmt.Sprint("this is ", i))))
	}
	session := b.connect(nil)
	testbus.Until(t, "the two tools", func() bool {
		tools := b.toolsOf(session)
		return len(tools) == 2 && tools["find_tool"] != nil && tools["call_tool"] != nil && len(b.server.Names()) == 5
	})
	if res := b.call(session, "find_tool", object{"query": "number 3"}); !strings.HasPrefix(text(res), `{"tools":[{"_meta":{"fbus/function":"f3"}`) {
		t.Error(text(res))
	}
	if res := b.call(session, "call_tool", object{"name": "f3", "arguments": object{}}); text(res) != "this is 3" {
		t.Error(text(res))
	}
	for tool, wrong := range map[string]object{"find_tool": {"limit": 0}, "call_tool": {"name": "f3", "argument": object{}}, "job_wait": {"id": ""}} {
		if res := b.call(session, tool, wrong); !res.IsError || !strings.Contains(text(res), "do not match the input schema") {
			t.Errorf("%s with %v: %s", tool, wrong, text(res))
		}
	}
	if res := b.call(session, "call_tool", object{"name": "nothing"}); !res.IsError {
		t.Error(text(res))
	}
	// A client that knows a tool from before can still call it.
	if res := b.call(session, "f3", nil); text(res) != "this is 3" {
		t.Error(text(res))
	}
	if res := b.call(session, "nothing", nil); !res.IsError || !strings.Contains(text(res), "find_tool lists those") {
		t.Error(text(res))
	}
	if said := session.InitializeResult().Instructions; !strings.Contains(said, "find_tool finds them, and call_tool calls them") {
		t.Error(said)
	}
	for _, worker := range workers[3:] {
		worker.Close()
	}
	testbus.Until(t, "the list", func() bool { tools := b.toolsOf(session); return len(tools) == 3 && tools["f2"] != nil })
	if got := text(b.call(session, "f2", nil)); got != "this is 2" {
		t.Error(got)
	}
	if _, err := session.CallTool(b.ctx, &sdk.CallToolParams{Name: "call_tool", Arguments: object{"name": "f2"}}); err == nil {
		t.Error("call_tool is still there")
	}
}

// object is a JSON object.
type object map[string]any
