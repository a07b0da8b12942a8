package mcp

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// nodeTime bounds what the node does for a call apart from running it: keeping a job, cancelling it.
const nodeTime = 30 * time.Second

// uniqueTime is how long a job that has ended keeps its unique key, in seconds: longer than nodeTime.
const uniqueTime = 60

// keepTime is how long the result of a job is kept, in seconds.
const keepTime = 3600

// call calls a function for an agent: it posts a job and waits for its end, for as long as the agent
// should wait.
func (s *Server) call(ctx context.Context, req *sdk.CallToolRequest, function string, arguments json.RawMessage) (*sdk.CallToolResult, error) {
	s.calls.Add(1)
	defer s.calls.Done()
	f := s.catalog.get(function)
	if f == nil || !f.gone.IsZero() {
		return failure("%s: no worker now: nobody offers this function at the moment. Try again later.", function), nil
	}
	if missing := f.missing(req); missing != nil {
		data, _ := json.Marshal(sdk.MissingRequiredClientCapabilityData{RequiredCapabilities: missing})
		return nil, &jsonrpc.Error{Code: sdk.CodeMissingRequiredClientCapabilities, Message: function + " needs what the client has not declared: " + f.first.Attributes[attrRequires], Data: data}
	}
	if s.cfg.Begin != nil {
		done, err := s.cfg.Begin()
		if err != nil {
			return failure("%s was not run: %s.", function, args.OneLine(err.Error())), nil
		}
		defer done()
	}
	if len(arguments) == 0 || string(arguments) == "null" {
		arguments = json.RawMessage("{}")
	}
	a, input, err := f.form.Pack(arguments)
	if err != nil {
		return badArguments(err), nil
	}
	client, err := s.bus(ctx)
	if err != nil {
		return failure("The bus cannot be reached, and nothing was run: %s", shownError(err)), nil
	}
	j := &job{server: s, client: client, caller: s.caller(req), function: f}
	if err = j.post(ctx, a, input, traceOf(req)); err != nil {
		if errors.Is(err, bus.ErrNodeLost) || errors.Is(err, errUncertain) {
			return failure("It is not known whether %s was run, or still will be: %s. Call it again only if it does no harm to run it twice. The user can look for its job with fbus jobs.", function, shownError(err)), nil
		}
		if ended := recheck(ctx, err); ended != nil {
			return nil, ended
		}
		return failure("%s was not run: %s", function, shownError(err)), nil
	}
	return j.wait(ctx, req)
}

// recheck returns an error if the node has denied something because the caller's credential has ended. The node may
// do that before it says that the credential has ended.
func recheck(ctx context.Context, err error) error {
	a, ok := ctx.Value(accessKey{}).(Access)
	if !ok || a.Recheck == nil || !errors.Is(err, bus.ErrDenied) {
		return nil
	}
	return a.Recheck(ctx)
}

// answer is the result of a job that has ended, or an error if it has ended with the caller's credential.
func (j *job) answer(ctx context.Context, f *followed) (*sdk.CallToolResult, error) {
	if ended := recheck(ctx, f.err); ended != nil {
		return nil, ended
	}
	return j.result(f), nil
}

// traceOf returns the trace that a request belongs to.
func traceOf(req *sdk.CallToolRequest) string {
	text := func(key string) string { value, _ := req.Params.Meta[key].(string); return value }
	return args.Trace(text("traceparent"), text("tracestate"))
}

// shownError formats an error of fbus for an agent.
func shownError(err error) string {
	e := args.AsError(err, args.CodeInternal)
	if e.Hint != "" {
		return fmt.Sprintf("%s (code %s; %s)", args.OneLine(e.Error()), e.Code, args.OneLine(e.Hint))
	}
	return fmt.Sprintf("%s (code %s)", args.OneLine(e.Error()), e.Code)
}

// job is a posted call of a tool.
type job struct {
	server   *Server
	client   *bus.Client
	caller   string
	function *function // nil: not known any more
	name     string    // of the function, if it is not known
	id       string
}

// errUncertain is about a job that may have been kept.
var errUncertain = &bus.Error{Code: args.CodeUncertain}

// post posts the job. What was sent to the node is not taken back when ctx ends: the job may be there, and is
// cancelled then. If the node is lost meanwhile nobody knows whether it has kept the job. Then the job is posted
// again when the node is back, with the same unique key, so that it is there once. An error with the code
// node_lost or uncertain means that it is still not known.
func (j *job) post(ctx context.Context, a bus.Args, input, trace string) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), nodeTime, args.Errorf(args.CodeNodeLost, "the node did not keep the job in time"))
	defer cancel()
	key := "mcp-" + rand.Text()
	err := j.postOnce(ctx, a, input, trace, key)
	for end := time.Now().Add(readyTime); errors.Is(err, bus.ErrNodeLost) && time.Now().Before(end) && ctx.Err() == nil; {
		client, lost := j.server.bus(ctx)
		if lost != nil {
			if !args.Retryable(lost) {
				return err
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		j.client = client
		if again := j.postOnce(ctx, a, input, trace, key); again == nil {
			return nil
		} else if errors.Is(again, bus.ErrNodeLost) {
			err = again
		} else {
			return args.Errorf(args.CodeNodeLost, "%v, and afterwards: %v", err, again)
		}
	}
	return err
}

// postOnce posts the job, or finds the one with its unique key.
func (j *job) postOnce(ctx context.Context, a bus.Args, input, trace, key string) error {
	options := map[string]any{"at_most_once": true, "keep": keepTime, "kind": "raw", "unique": key, "unique_for": uniqueTime}
	sent := []string{j.function.info.Name, ""}
	switch a.Kind() {
	case args.KindList:
		options["kind"] = "list"
	case args.KindMap:
		options["kind"] = "map"
	case args.KindJSON:
		options["kind"] = "json"
	}
	if a.Kind() != args.KindRaw {
		sent = append(sent, string(a.Data()))
		options["input"] = input != ""
	}
	doc, err := json.Marshal(options)
	if err != nil {
		return err
	}
	sent[1] = string(doc)
	var out bytes.Buffer
	request := &bus.Request{Function: "fbus.post", Args: bus.List(sent...), Stdout: &out, Trace: trace, Caller: j.caller}
	if input != "" || a.Kind() == args.KindRaw {
		request.Input = strings.NewReader(input)
	}
	if _, err := j.client.Call(ctx, request); err != nil {
		return err
	}
	j.id = strings.TrimSpace(out.String())
	return nil
}

// wait waits for the job's end and returns its result. If ctx ends before, nobody waits any more: the job is
// cancelled. After the time that a call may take the answer is the job's id, or a task.
func (j *job) wait(ctx context.Context, req *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(j.server.ctx, stop)()
	limit := time.NewTimer(j.server.cfg.TaskAfter)
	defer limit.Stop()
	f := j.follow(ctx, req)
	select {
	case <-f.done:
		f.stop()
		if ctx.Err() == nil {
			return j.answer(ctx, f)
		}
	case <-limit.C:
		f.stop()
		select {
		case <-f.done: // at the same moment, or by the stop
			if f.ended {
				return j.answer(ctx, f)
			}
		default:
		}
		if takesTasks(req) {
			return nil, j.asTask(ctx)
		}
		return j.pending(), nil
	case <-ctx.Done():
		f.stop()
	}
	j.cancel()
	return nil, context.Cause(ctx)
}

// cancel ends the job, whoever waited for it has gone.
func (j *job) cancel() error {
	ctx, cancel := context.WithTimeout(context.Background(), nodeTime)
	defer cancel()
	_, err := j.client.Call(ctx, &bus.Request{Function: "fbus.cancel", Args: bus.List(j.id), Caller: j.caller})
	return err
}

// followed is a job while somebody waits for it.
type followed struct {
	out      output
	err      error         // of the job; valid when done is closed
	ended    bool          // the job has; valid when done is closed
	done     chan struct{} // closed at the end, or when following has failed
	cancel   context.CancelFunc
	progress *progress // nil: the client wants none
}

// follow reads what the job writes until it ends, or until ctx or the one who waits does.
func (j *job) follow(ctx context.Context, req *sdk.CallToolRequest) *followed {
	f := &followed{done: make(chan struct{})}
	shown := ctx // progress belongs to the request
	ctx, f.cancel = context.WithCancel(ctx)
	if token := req.Params.GetProgressToken(); token != nil {
		f.progress = newProgress(shown, req.Session, token)
		f.out.stderr.each = f.progress.line
		go func() { // ends with the job, or ctx
			doc, _ := json.Marshal(bus.JobWait{IDs: []string{j.id}})
			j.client.Call(ctx, &bus.Request{Function: "fbus.wait", Args: bus.JSON(doc), Caller: j.caller, Stdout: &lines{each: f.progress.report}})
		}()
	}
	go func() { // ends with the job, or ctx
		defer close(f.done)
		_, f.err = j.client.Call(ctx, &bus.Request{
			Function: "fbus.result", Args: bus.List(j.id, `{"follow":true}`), Caller: j.caller, Stdout: &f.out.stdout, Stderr: j.stderr(f),
		})
		f.ended = ctx.Err() == nil && !errors.Is(f.err, errUnfinished)
	}()
	return f
}

// stderr returns what takes the function's stderr, nil if the caller may not see it.
func (j *job) stderr(f *followed) io.Writer {
	if j.server.cfg.HidesStderr {
		return nil
	}
	return &f.out.stderr
}

var errUnfinished = &bus.Error{Code: "unfinished"}

// stop ends the following, and reports.
func (f *followed) stop() {
	if f.progress != nil {
		f.progress.stop()
	}
	f.cancel()
}

// pending is the answer about a job that has not ended in time.
func (j *job) pending() *sdk.CallToolResult {
	res := failure("This is not an error. %s is still running as job %s. Call %s with {\"id\":\"%s\"} to wait for its result, or %s to end it. Do not call the tool again.",
		j.functionName(), j.id, jobWait, j.id, jobCancel)
	// A client refuses a success without the structured content that the tool has announced.
	res.IsError = j.function != nil && j.function.out != nil
	if !res.IsError {
		res.Content[0].(*sdk.TextContent).Text = strings.TrimPrefix(res.Content[0].(*sdk.TextContent).Text, "This is not an error. ")
	}
	res.Meta = sdk.Meta{metaFunction: j.functionName(), metaJob: j.id}
	return res
}

// metaJob is the key in _meta that names the job.
const metaJob = "fbus/job"

func (j *job) functionName() string {
	if j.function != nil {
		return j.function.info.Name
	}
	return j.name
}
