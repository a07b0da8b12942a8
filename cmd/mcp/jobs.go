package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"fbus/bus"
	"fbus/bus/args"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// addOwn adds the tools about jobs, and their outputs as resources.
func (s *Server) addOwn() {
	id := json.RawMessage(`{"type":"object","properties":{"id":{"type":"string","minLength":1,"description":"The id of the job."}},"required":["id"],"additionalProperties":false}`)
	never, yes := false, true
	for _, t := range []struct {
		name, description string
		notes             sdk.ToolAnnotations
		serve             func(context.Context, *sdk.CallToolRequest, *job) (*sdk.CallToolResult, error)
	}{
		{jobWait, "Waits for the end of a job that a tool has started, and returns its result. If that takes too long it says so: then call it again.",
			sdk.ToolAnnotations{ReadOnlyHint: true, DestructiveHint: &never}, func(ctx context.Context, req *sdk.CallToolRequest, j *job) (*sdk.CallToolResult, error) {
				return j.await(ctx, req)
			}},
		{jobResult, "Returns the result of a job that a tool has started, or says that it has not ended yet.",
			sdk.ToolAnnotations{ReadOnlyHint: true, DestructiveHint: &never}, func(ctx context.Context, req *sdk.CallToolRequest, j *job) (*sdk.CallToolResult, error) {
				return j.fetch(ctx)
			}},
		{jobCancel, "Ends a job that a tool has started, with all its processes.",
			sdk.ToolAnnotations{IdempotentHint: true, DestructiveHint: &yes}, func(_ context.Context, _ *sdk.CallToolRequest, j *job) (*sdk.CallToolResult, error) {
				if err := j.cancel(); err != nil {
					return failure("Job %s was not cancelled: %s", j.id, shownError(err)), nil
				}
				return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: fmt.Sprintf("Job %s of %s has ended, or is being ended now.", j.id, j.name)}}, Meta: j.meta()}, nil
			}},
	} {
		s.addBuiltIn(&sdk.Tool{Name: t.name, Description: t.description, InputSchema: id, Annotations: &t.notes}, func(ctx context.Context, req *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
			var in struct {
				ID string `json:"id"`
			}
			if err := json.Unmarshal(req.Params.Arguments, &in); err != nil {
				return badArguments(err), nil
			}
			s.calls.Add(1)
			defer s.calls.Done()
			j, _, err := s.job(ctx, in.ID, s.caller(req))
			if ended := recheck(ctx, err); ended != nil {
				return nil, ended
			}
			if errors.Is(err, bus.ErrBadInput) || errors.Is(err, bus.ErrDenied) {
				return failure("There is no job %s of a tool. The id of a job is in the answer of the tool that has started it, and a job is kept for an hour after its end.", args.Shown(in.ID)), nil
			}
			if err != nil {
				return failure("%s", shownError(err)), nil
			}
			return t.serve(ctx, req, j)
		})
	}
	s.MCP.AddResourceTemplate(&sdk.ResourceTemplate{
		Name: "output of a job", URITemplate: jobScheme + "{id}/output", Description: "What a job has written, to the last byte.",
	}, s.readOutput)
}

const jobScheme = "fbus://job/"

// jobURI is the resource that the output of a job is.
func jobURI(id string) string { return jobScheme + id + "/output" }

// job looks a job up. It must be one of a function that is a tool: the connection may see others.
func (s *Server) job(ctx context.Context, id, caller string) (*job, *bus.JobInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeTime)
	defer cancel()
	client, err := s.bus(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !isClosed(s.catalog.Ready()) { // whenReady has waited
		return nil, nil, args.Errorf(args.CodeNoNode, "the node does not say which functions there are")
	}
	doc, err := json.Marshal(bus.JobQuery{IDs: []string{id}})
	if err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	if _, err = client.Call(ctx, &bus.Request{Function: "fbus.jobs", Args: bus.JSON(doc), Stdout: &out, Caller: caller}); err != nil {
		return nil, nil, err
	}
	var info bus.JobInfo
	if err := json.NewDecoder(&out).Decode(&info); err != nil {
		return nil, nil, args.Errorf(args.CodeProtocol, "fbus.jobs: %v", err)
	}
	if !s.cfg.allowed(info.Function) || !s.catalog.knows(info.Function) && !s.catalog.wants(&bus.FunctionInfo{Name: info.Function}) {
		return nil, nil, args.BadInput("%s: no such job of a tool", args.Shown(id))
	}
	return &job{server: s, client: client, caller: caller, function: s.catalog.get(info.Function), name: info.Function, id: id}, &info, nil
}

// await waits for the end of a job that goes on without this: if ctx ends, or the time for a call is over,
// it still runs.
func (j *job) await(ctx context.Context, req *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
	limit, stop := context.WithTimeout(ctx, j.server.cfg.TaskAfter)
	defer stop()
	defer context.AfterFunc(j.server.ctx, stop)()
	f := j.follow(limit, req)
	select {
	case <-f.done:
		f.stop()
		if limit.Err() == nil {
			return j.answer(ctx, f)
		}
	case <-limit.Done():
		f.stop()
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return j.pending(), nil
}

// fetch returns the result of a job as it is now.
func (j *job) fetch(ctx context.Context) (*sdk.CallToolResult, error) {
	f := j.read(ctx)
	if errors.Is(f.err, errUnfinished) {
		return j.pending(), nil
	}
	return j.answer(ctx, f)
}

// read reads the result of a job that has ended.
func (j *job) read(ctx context.Context) *followed {
	f := &followed{ended: true}
	_, f.err = j.client.Call(ctx, &bus.Request{
		Function: "fbus.result", Args: bus.List(j.id, `{"wait":false}`), Caller: j.caller, Stdout: &f.out.stdout, Stderr: j.stderr(f),
	})
	return f
}

// mostRead is how large an output can be read as a resource: it is one message.
const mostRead = 16 << 20

// readOutput reads the output of a job as a resource.
func (s *Server) readOutput(ctx context.Context, req *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
	id, ok := strings.CutSuffix(strings.TrimPrefix(req.Params.URI, jobScheme), "/output")
	if !ok {
		return nil, sdk.ResourceNotFoundError(req.Params.URI)
	}
	caller := ""
	if s.cfg.Caller != nil {
		caller = s.cfg.Caller(clientName(req.ClientInfo()))
	}
	j, info, err := s.job(ctx, id, caller)
	switch {
	case errors.Is(err, bus.ErrBadInput), errors.Is(err, bus.ErrDenied):
		return nil, sdk.ResourceNotFoundError(req.Params.URI)
	case err != nil:
		return nil, err
	case info.Out > mostRead:
		return nil, fmt.Errorf("the output has %d bytes, and at most %d are read as a resource: fbus result %s prints it", info.Out, mostRead, id)
	}
	var out bytes.Buffer
	_, err = j.client.Call(ctx, &bus.Request{Function: "fbus.result", Args: bus.List(id, `{"wait":false}`), Caller: caller, Stdout: &out})
	var exit *bus.ExitError
	if err != nil && !errors.As(err, &exit) && out.Len() == 0 {
		return nil, err
	}
	c := &sdk.ResourceContents{URI: req.Params.URI, Meta: j.meta()}
	if c.MIMEType = mediaType(out.Bytes()); c.MIMEType == "" {
		c.MIMEType, c.Text = "text/plain", strings.ToValidUTF8(out.String(), "\ufffd")
	} else {
		c.Blob = out.Bytes()
	}
	return &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{c}}, nil
}
