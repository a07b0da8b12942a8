package mcp

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"fbus/bus/args"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// Tools that every server has. A function cannot have one of these names.
const (
	findTool  = "find_tool"
	callTool  = "call_tool"
	jobWait   = "job_wait"
	jobResult = "job_result"
	jobCancel = "job_cancel"
)

var ownTools = map[string]bool{findTool: true, callTool: true, jobWait: true, jobResult: true, jobCancel: true}

// longestName is what clients accept.
const longestName = 64

// toolName returns the name of a function as a tool.
func (s *Server) toolName(function string) (string, error) {
	name := function
	if !s.cfg.ExactNames {
		name = strings.ReplaceAll(function, ".", "_")
		if len(name) > longestName {
			return "", args.Errorf(args.CodeUsage, "%s: the name of a tool may have %d characters", function, longestName).WithHint("fbus mcp --names exact, if the client takes it")
		}
	}
	if ownTools[name] {
		return "", args.Errorf(args.CodeUsage, "%s: fbus mcp has a tool of that name", function)
	}
	return name, nil
}

// A listed tool is a function under the name that agents use.
type listed struct {
	name string
	f    *function
}

// tools returns the tools, by name, and what is wrong with the functions that are left out.
func (s *Server) tools() (list []listed, faults []string) {
	s.mu.Lock()
	holders := s.holders
	s.mu.Unlock()
	return s.toolsAfter(holders)
}

// toolsAfter is tools, given which functions have had the names. Of functions that would have one name it is
// the one that has it, so that an agent never calls another one by it; else the one that is called exactly so.
func (s *Server) toolsAfter(holders map[string]string) (list []listed, faults []string) {
	type named struct {
		listed
		err  error
		rank int
	}
	var all []named
	for _, f := range s.catalog.list() {
		if !s.cfg.allowed(f.info.Name) {
			continue
		}
		n := named{listed: listed{f: f}}
		if n.name, n.err = s.toolName(f.info.Name); n.err == nil && f.err != nil {
			n.err = fmt.Errorf("%s: %s", f.info.Name, args.OneLine(f.err.Error()))
		}
		switch f.info.Name {
		case holders[n.name]:
			n.rank = 0
		case n.name:
			n.rank = 1
		default:
			n.rank = 2
		}
		all = append(all, n)
	}
	slices.SortStableFunc(all, func(a, b named) int { return cmp.Compare(a.rank, b.rank) })
	has := map[string]*function{}
	for _, n := range all {
		switch {
		case n.err != nil:
			faults = append(faults, n.err.Error())
		case has[n.name] != nil:
			faults = append(faults, fmt.Sprintf("%s: its name as a tool would be %s, as that of %s", n.f.info.Name, n.name, has[n.name].info.Name))
		default:
			has[n.name] = n.f
			list = append(list, n.listed)
		}
	}
	return list, faults
}

// describe makes the description of a tool. What its worker says is marked so: an agent must be able
// to distinguish it from what its user wants.
func (s *Server) describe(f *function) string {
	if text := s.cfg.Descriptions[f.info.Name]; text != "" {
		return text
	}
	text := strings.TrimSpace(plain(cmp.Or(f.first.Description, f.info.Description)))
	if text == "" {
		return fmt.Sprintf("Calls the function %s. Its worker does not describe it.", f.info.Name)
	}
	return fmt.Sprintf("Function %s, as its worker describes it: %s", f.info.Name, text)
}

// tool makes the tool of a function.
func (s *Server) tool(t listed) *sdk.Tool {
	has := func(name string) bool { _, ok := t.f.first.Attributes[name]; return ok }
	destructive := has("destructive")
	notes := &sdk.ToolAnnotations{ReadOnlyHint: has("read-only"), IdempotentHint: t.f.first.Idempotent}
	if destructive || notes.ReadOnlyHint { // else a client assumes the worst
		notes.DestructiveHint = &destructive
	}
	tool := &sdk.Tool{
		Name: t.name, Description: s.describe(t.f), InputSchema: t.f.form.Text, Annotations: notes,
		Meta: sdk.Meta{metaFunction: t.f.info.Name},
	}
	if t.f.out != nil {
		tool.OutputSchema = t.f.out.Text
	}
	return tool
}

//lint:file-ignore SA1019 a tool can need what newer versions deprecate, sampling and roots

// attrRequires is the attribute with the capabilities of clients that a tool needs, separated by commas:
// sampling, elicitation, roots, or the id of an extension, which has a slash.
const attrRequires = "mcp.requires"

// missing returns the capabilities that the tool needs and the client has not declared; nil: none.
func (f *function) missing(req *sdk.CallToolRequest) *sdk.ClientCapabilities {
	requires := f.first.Attributes[attrRequires]
	if requires == "" { // the library reads the capabilities each time that it is asked
		return nil
	}
	declared := cmp.Or(req.ClientCapabilities(), &sdk.ClientCapabilities{})
	missing, any := &sdk.ClientCapabilities{}, false
	for name := range strings.SplitSeq(requires, ",") {
		_, extension := declared.Extensions[name]
		switch {
		case name == "" || extension:
			continue
		case name == "sampling" && declared.Sampling == nil:
			missing.Sampling = &sdk.SamplingCapabilities{}
		case name == "elicitation" && declared.Elicitation == nil:
			missing.Elicitation = &sdk.ElicitationCapabilities{}
		case name == "roots" && declared.RootsV2 == nil:
			missing.RootsV2 = &sdk.RootCapabilities{}
		case strings.Contains(name, "/"):
			missing.AddExtension(name, nil)
		default:
			continue
		}
		any = true
	}
	if !any {
		return nil
	}
	return missing
}

// metaFunction is the key in _meta that names the function that something comes from.
const metaFunction = "fbus/function"
