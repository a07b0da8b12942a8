package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/cmd/companion"
	"fbus/cmd/mcp"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// doctorTime bounds each step of doctor.
const doctorTime = 20 * time.Second

// doctor starts fbus mcp as a client would, and says what it finds.
func (o *options) doctor(ctx context.Context, stdout io.Writer) error {
	o.quiet = true // notices would say again what is printed
	if err := o.examineBus(ctx, stdout); err != nil {
		return err
	}
	if err := o.examineServer(ctx, stdout, append(slices.Clone(o.words), "--quiet")); err != nil {
		return err
	}
	printConfigurations(stdout, o.words)
	return nil
}

// examineBus says which node it is, and what is wrong with functions.
func (o *options) examineBus(ctx context.Context, stdout io.Writer) error {
	ctx, stop := context.WithTimeoutCause(ctx, doctorTime, args.Errorf(args.CodeNoNode, "the node does not answer"))
	defer stop()
	b := o.bus()
	defer b.close()
	client, err := b.connect(ctx)
	if err != nil {
		return err
	}
	name, network := client.Node()
	fmt.Fprintf(stdout, "node      %s of network %s, at %s\n", name, network, client.Addr())
	caller := "the connection's own identity"
	if as := b.caller("CLIENT"); as != "" {
		caller = "…/" + as
	}
	fmt.Fprintf(stdout, "caller    functions see %s in FBUS_CALLER\n", caller)
	catalog := o.catalog(b)
	server := mcp.NewServer(catalog, o.config(b))
	defer server.Close()
	go catalog.Run(ctx) // ends with ctx
	select {
	case <-catalog.Ready():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, fault := range server.Faults() {
		fmt.Fprintf(stdout, "fault     %s\n", args.OneLine(fault))
	}
	functions := slices.Collect(maps.Values(server.Names()))
	for _, name := range slices.Sorted(maps.Keys(o.described)) {
		if !slices.Contains(functions, name) {
			fmt.Fprintf(stdout, "note      %s describes %s, which is not a tool now\n", o.file, name)
		}
	}
	if len(functions) == 0 {
		fmt.Fprintf(stdout, "note      no function is a tool: fbus offer NAME --attr tool makes it one, or fbus mcp --tools GLOB\n")
	}
	return nil
}

// examineServer starts the server, lists its tools and calls one.
func (o *options) examineServer(ctx context.Context, stdout io.Writer, words []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeoutCause(ctx, doctorTime, args.Errorf(args.CodeDeadline, "fbus mcp does not answer"))
	defer stop()
	server := exec.Command(self, words...)
	server.Stderr = os.Stderr
	start := time.Now()
	session, err := sdk.NewClient(&sdk.Implementation{Name: "fbus-mcp-doctor"}, nil).Connect(ctx, &sdk.CommandTransport{Command: server}, nil)
	if err != nil {
		return args.Errorf(args.CodeInternal, "fbus mcp does not start as clients start it: %v", err)
	}
	defer session.Close()
	var tools []*sdk.Tool
	for tool, err := range session.Tools(ctx, nil) {
		if err != nil {
			return args.Errorf(args.CodeInternal, "tools/list: %v", err)
		}
		tools = append(tools, tool)
	}
	fmt.Fprintf(stdout, "start     %d tools after %d ms, by MCP %s\n", len(tools), time.Since(start).Milliseconds(), session.InitializeResult().ProtocolVersion)
	byFinder := slices.ContainsFunc(tools, func(t *sdk.Tool) bool { return t.Name == "find_tool" })
	if byFinder {
		found, total, err := find(ctx, session)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "find      find_tool finds %d functions, which are too many to list\n", total)
		if len(found) < total {
			fmt.Fprintf(stdout, "find      the first %d of them are shown\n", len(found))
		}
		tools = append(tools, found...)
	}
	slices.SortStableFunc(tools, func(a, b *sdk.Tool) int { return cmp.Compare(rank(a), rank(b)) })
	call := &sdk.CallToolParams{Name: "job_result", Arguments: map[string]any{"id": "none"}}
	for _, tool := range tools {
		fmt.Fprintf(stdout, "tool      %s: %s\n", tool.Name, args.Shown(args.OneLine(tool.Description)))
		if rank(tool) == 0 && call.Name == "job_result" && tool.Annotations != nil && tool.Annotations.ReadOnlyHint && !demands(tool.InputSchema) {
			call = &sdk.CallToolParams{Name: tool.Name, Arguments: map[string]any{}}
		}
	}
	name := call.Name
	if byFinder && name != "job_result" {
		call = &sdk.CallToolParams{Name: "call_tool", Arguments: map[string]any{"name": name, "arguments": call.Arguments}}
		name += ", by call_tool,"
	}
	start = time.Now()
	res, err := session.CallTool(ctx, call)
	if err != nil {
		return args.Errorf(args.CodeInternal, "tools/call of %s: %v", call.Name, err)
	}
	text := ""
	if len(res.Content) > 0 {
		if t, ok := res.Content[0].(*sdk.TextContent); ok {
			text = ": " + args.Shown(args.OneLine(strings.TrimSpace(t.Text)))
		}
	}
	switch {
	case call.Name == "job_result":
		fmt.Fprintf(stdout, "call      tools can be called. No function was called: none of these has the attribute read-only and needs no arguments\n")
	case res.IsError:
		fmt.Fprintf(stdout, "call      %s failed after %d ms%s\n", name, time.Since(start).Milliseconds(), text)
	default:
		fmt.Fprintf(stdout, "call      %s answered after %d ms%s\n", name, time.Since(start).Milliseconds(), text)
	}
	return nil
}

// find returns functions as find_tool finds them, and how many there are.
func find(ctx context.Context, session *sdk.ClientSession) ([]*sdk.Tool, int, error) {
	res, err := session.CallTool(ctx, &sdk.CallToolParams{Name: "find_tool", Arguments: map[string]any{"limit": 100}})
	var found struct {
		Tools []*sdk.Tool `json:"tools"`
		Total int         `json:"total"`
	}
	if err == nil {
		var text []byte
		if text, err = json.Marshal(res.StructuredContent); err == nil {
			err = json.Unmarshal(text, &found)
		}
	}
	if err != nil {
		return nil, 0, args.Errorf(args.CodeInternal, "tools/call of find_tool: %v", err)
	}
	return found.Tools, found.Total, nil
}

// rank puts the functions before the tools of fbus mcp itself.
func rank(tool *sdk.Tool) int {
	if _, ours := tool.Meta["fbus/function"]; ours {
		return 0
	}
	return 1
}

// demands reports whether a schema has required properties.
func demands(schema any) bool {
	o, _ := schema.(map[string]any)
	required, _ := o["required"].([]any)
	return len(required) > 0
}

// printConfigurations prints what to enter into some clients. They are often started without a shell's
// environment: paths are absolute, and variables are written out, but no ticket.
func printConfigurations(stdout io.Writer, words []string) {
	command, err := companion.Fbus()
	if err == nil {
		words = append([]string{"mcp"}, words...)
	} else if command, err = os.Executable(); err != nil {
		command = "fbus-mcp"
	}
	env := map[string]string{}
	for _, name := range []string{"FBUS_NODE", "FBUS_HOME", "FBUS_NODE_USER"} {
		if value := os.Getenv(name); value != "" {
			env[name] = value
		}
	}
	server := map[string]any{"command": command, "args": append([]string{}, words...)}
	flags, table := "", ""
	if len(env) > 0 {
		server["env"] = env
		for _, name := range []string{"FBUS_NODE", "FBUS_HOME", "FBUS_NODE_USER"} {
			if env[name] != "" {
				flags += " -e " + args.Quote(name+"="+env[name])
				table += fmt.Sprintf("%s = %s, ", name, asJSON(env[name], ""))
			}
		}
	}
	fmt.Fprintf(stdout, "\nClaude Code\n\n  claude mcp add bus%s -- %s\n", flags, args.Quote(append([]string{command}, words...)...))
	fmt.Fprintf(stdout, "\nClaude Desktop, claude_desktop_config.json; Cursor, ~/.cursor/mcp.json\n\n  %s\n", asJSON(map[string]any{"mcpServers": map[string]any{"bus": server}}, "  "))
	server["type"] = "stdio"
	fmt.Fprintf(stdout, "\nVS Code, .vscode/mcp.json\n\n  %s\n", asJSON(map[string]any{"servers": map[string]any{"bus": server}}, "  "))
	fmt.Fprintf(stdout, "\nCodex, ~/.codex/config.toml\n\n  [mcp_servers.bus]\n  command = %s\n  args = %s\n", asJSON(command, ""), asJSON(words, ""))
	if table != "" {
		fmt.Fprintf(stdout, "  env = { %s }\n", strings.TrimSuffix(table, ", "))
	}
	if os.Getenv("FBUS_TICKET") != "" {
		fmt.Fprintf(stdout, "\nFBUS_TICKET is set here, and is not shown: give it to the client as another variable, or join the network with fbus join.\n")
	}
}

// asJSON formats a value; with an indent over several lines.
func asJSON(v any, indent string) string {
	if words, ok := v.([]string); ok && words == nil {
		return "[]"
	}
	if indent == "" {
		text, _ := json.Marshal(v)
		return string(text)
	}
	text, _ := json.MarshalIndent(v, indent, "  ")
	return string(text)
}
