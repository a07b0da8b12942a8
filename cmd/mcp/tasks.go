package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// The extension for tasks (SEP-2663): a tool call that takes long is answered with a task. A task is a
// job, and its id is the job's, which is on disk before anybody hears of it.
const tasksExtension = "io.modelcontextprotocol/tasks"

var taskMethods = map[string]bool{"tasks/get": true, "tasks/update": true, "tasks/cancel": true}

// pollTime is how often a client should ask for a task, in milliseconds.
const pollTime = 1000

// task is what a client is told of a task.
type task struct {
	ID      string     `json:"taskId"`
	Status  string     `json:"status"`
	Message string     `json:"statusMessage,omitempty"`
	Created time.Time  `json:"createdAt"`
	Updated time.Time  `json:"lastUpdatedAt"`
	TTL     int64      `json:"ttlMs"`
	Poll    int64      `json:"pollIntervalMs"`
	Result  any        `json:"result,omitempty"` // completed: of the tool
	Error   *taskError `json:"error,omitempty"`  // failed
}

// taskError is a JSON-RPC error in a task.
type taskError struct {
	Code    int64  `json:"code"`
	Message string `json:"message"`
}

// taskResult answers tools/call with a task, and tasks/get.
type taskResult struct {
	sdk.ResultBase
	ResultType string `json:"resultType"`
	task
}

// taskAck answers tasks/update and tasks/cancel.
type taskAck struct {
	sdk.ResultBase
	ResultType string `json:"resultType"`
}

// taskParams are those of tasks/get, tasks/update and tasks/cancel.
type taskParams struct {
	sdk.ParamsBase
	ID     string          `json:"taskId"`
	Inputs json.RawMessage `json:"inputResponses,omitempty"`
}

// errTask says that a call has become a task. The middleware makes a result of it, which a handler of a
// tool cannot.
type errTask struct{ *taskResult }

func (errTask) Error() string { return "the call has become a task" }

// taskRequest is what all requests of clients have.
type taskRequest interface {
	ClientCapabilities() *sdk.ClientCapabilities
	ClientInfo() *sdk.Implementation
}

// takesTasks reports whether the client has declared the extension.
func takesTasks(req any) bool {
	r, ok := req.(taskRequest)
	if !ok {
		return false
	}
	capabilities := r.ClientCapabilities()
	if capabilities == nil {
		return false
	}
	_, declared := capabilities.Extensions[tasksExtension]
	return declared
}

// addTasks adds the methods of the extension.
func (s *Server) addTasks() error {
	s.MCP.AddReceivingMiddleware(s.tasks)
	for _, err := range []error{
		sdk.AddReceivingCustomMethod(s.MCP, "tasks/get", func(ctx context.Context, _ *sdk.ServerSession, p *taskParams) (*taskResult, error) {
			return s.getTask(ctx, p.ID)
		}),
		sdk.AddReceivingCustomMethod(s.MCP, "tasks/update", func(ctx context.Context, _ *sdk.ServerSession, p *taskParams) (*taskAck, error) {
			_, _, err := s.taskJob(ctx, p.ID) // no task asks for input
			return &taskAck{ResultType: "complete"}, err
		}),
		sdk.AddReceivingCustomMethod(s.MCP, "tasks/cancel", func(ctx context.Context, _ *sdk.ServerSession, p *taskParams) (*taskAck, error) {
			j, info, err := s.taskJob(ctx, p.ID)
			if err == nil && !info.State.Finished() {
				err = j.cancel()
			}
			return &taskAck{ResultType: "complete"}, err
		}),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// callerKey is where the context of tasks/… has the caller.
type callerKey struct{}

// tasks is the middleware of the extension.
func (s *Server) tasks(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
		if taskMethods[method] {
			if !takesTasks(req) {
				data, _ := json.Marshal(map[string]any{"requiredCapabilities": map[string]any{"extensions": map[string]any{tasksExtension: struct{}{}}}})
				return nil, &jsonrpc.Error{Code: sdk.CodeMissingRequiredClientCapabilities, Message: "the client has not declared " + tasksExtension, Data: data}
			}
			if s.cfg.Caller != nil {
				ctx = context.WithValue(ctx, callerKey{}, s.cfg.Caller(clientName(req.(taskRequest).ClientInfo())))
			}
		}
		res, err := next(ctx, method, req)
		if t := (errTask{}); errors.As(err, &t) {
			return t.taskResult, nil
		}
		return res, err
	}
}

// taskJob looks the job of a task up.
func (s *Server) taskJob(ctx context.Context, id string) (*job, *bus.JobInfo, error) {
	caller, _ := ctx.Value(callerKey{}).(string)
	j, info, err := s.job(ctx, id, caller)
	if errors.Is(err, bus.ErrBadInput) || errors.Is(err, bus.ErrDenied) {
		err = &jsonrpc.Error{Code: jsonrpc.CodeInvalidParams, Message: "there is no task " + args.Shown(id)}
	}
	return j, info, err
}

// getTask answers tasks/get.
func (s *Server) getTask(ctx context.Context, id string) (*taskResult, error) {
	j, info, err := s.taskJob(ctx, id)
	if err != nil {
		return nil, err
	}
	res := newTask(info, "complete")
	switch {
	case !info.State.Finished():
		return res, nil
	case info.State == "cancelled":
		res.Status = "cancelled"
		return res, nil
	}
	f := j.read(ctx)
	var e *bus.Error
	if errors.As(f.err, &e) { // fbus's own fault, not the function's
		res.Status, res.Message = "failed", args.OneLine(e.Error())
		res.Error = &taskError{Code: jsonrpc.CodeInternalError, Message: shownError(e)}
		return res, nil
	}
	res.Status, res.Result = "completed", j.result(f)
	return res, nil
}

// newTask describes a job as a task that runs.
func newTask(info *bus.JobInfo, resultType string) *taskResult {
	t := task{ID: info.ID, Status: "working", Message: args.OneLine(info.Note), Created: info.Posted, Updated: info.Posted, TTL: keepTime * 1000, Poll: pollTime}
	for _, at := range []time.Time{info.Started, info.Ended} {
		if at.After(t.Updated) {
			t.Updated = at
		}
	}
	// A task exists for the time that its result is kept, which begins when it has ended.
	t.TTL += t.Updated.Sub(t.Created).Milliseconds()
	if p := info.Progress; p != nil && p.Text != "" {
		t.Message = plain(p.Text)
	}
	return &taskResult{ResultType: resultType, task: t}
}

// asTask answers a call with a task.
func (j *job) asTask(ctx context.Context) error {
	_, info, err := j.server.job(ctx, j.id, j.caller)
	if err != nil {
		return err
	}
	return errTask{newTask(info, "task")}
}
