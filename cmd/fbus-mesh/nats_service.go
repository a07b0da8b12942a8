package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

const (
	// maxEndpoints and maxAbout bound what a service tells of itself in one message: its
	// endpoints, and the bytes of their metadata beside the names.
	maxEndpoints = 500
	maxAbout     = 400 << 10
	// maxAnswer bounds the output of a call. NATS takes 1 MiB in a message by default.
	maxAnswer = 512 << 10
	// maxErrorTail is how much of the end of stderr goes into a header.
	maxErrorTail = 4 << 10
	// maxNATSCalls bounds the calls of all clients of NATS, waiting and running. Each may hold a
	// message of input and maxAnswer of output.
	maxNATSCalls = 256
	// natsCaller is what the functions see behind the mesh's own identity. NATS does not say who
	// has sent a request.
	natsCaller = "nats"
)

// Headers of an answer.
const (
	headerStatus = "Fbus-Status" // the exit status
	headerCode   = "Fbus-Code"   // exit, the name of a signal, or a code of fbus
	headerCall   = "Fbus-Call"   // the id of the call
	headerStderr = "Fbus-Stderr" // the end of stderr, escaped as in a Go string
)

// service registers functions of the own node with NATS as endpoints of one micro service, so that
// clients of NATS can find and call them.
type service struct {
	mesh *mesh
	ctx  context.Context // of the calls

	room  chan struct{} // has a token of each call
	ended int           // tokens that no call can have any more

	mu      sync.Mutex                   // protects the fields below
	about   map[string]map[string]string // by function: metadata
	current micro.Service                // nil: there are no functions
	said    map[string]bool              // notices that are not repeated
	paused  bool                         // the own node does not answer: there are no endpoints
	left    bool                         // they are gone for good
}

func newService(ctx context.Context, m *mesh) *service {
	return &service{mesh: m, ctx: ctx, room: make(chan struct{}, maxNATSCalls), about: map[string]map[string]string{}, said: map[string]bool{}}
}

// has reports whether a function is to be registered.
func (s *service) has(name string) bool {
	return matches(s.mesh.cfg.NATSService, name)
}

// update takes what is now known of some functions of the own node.
func (s *service) update(names []string, now map[string]entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, name := range names {
		if !s.has(name) {
			continue
		}
		var is map[string]string
		if e, has := now[name]; has && !e.stopped() {
			is = map[string]string{"function": name, "description": e.Description, "arguments": e.Arguments, "schema": e.Schema}
			maps.DeleteFunc(is, func(_, v string) bool { return v == "" })
		}
		if maps.Equal(s.about[name], is) {
			continue
		}
		changed = true
		if delete(s.about, name); is != nil {
			s.about[name] = is
		}
	}
	if changed && !s.left {
		s.register()
	}
}

// register starts a service with the functions of now, in place of the current one: the library has
// no means to remove or change an endpoint. Both get requests for a moment, and none is lost.
func (s *service) register() {
	old := s.current
	s.current = nil
	if endpoints := s.endpoints(); len(endpoints) > 0 && !s.paused {
		m := s.mesh
		names := make([]string, len(endpoints))
		for i, e := range endpoints {
			names[i] = e.about["function"]
		}
		list := strings.Join(names, ", ")
		if len(list) > 200 {
			list = list[:200] + "…"
		}
		current, err := micro.AddService(m.nc, micro.Config{
			Name: "fbus", Version: "1.0.0", Description: "functions of node " + m.self.Node + ": " + list,
			Metadata: map[string]string{"network": m.network, "node": m.self.Node},
		})
		for i, e := range endpoints {
			if err == nil {
				err = current.AddEndpoint(e.name, s.handler(names[i]), micro.WithEndpointSubject(e.subject), micro.WithEndpointMetadata(e.about))
			}
		}
		if err != nil && !m.nc.IsClosed() {
			m.note("the functions cannot be registered with NATS: %v", err)
		}
		s.current = current
	}
	if old != nil {
		old.Stop()
	}
}

// endpoint is a function as NATS shows it.
type endpoint struct {
	name, subject string
	about         map[string]string
}

// endpointName returns the name of a function's endpoint. NATS takes no dot there.
func endpointName(function string) string { return strings.ReplaceAll(function, ".", "_") }

// subjectOf returns the subject of a function's requests: its name, unless that has an empty part
// between dots, which NATS does not take.
func subjectOf(function string) string {
	if slices.Contains(strings.Split(function, "."), "") {
		return endpointName(function)
	}
	return function
}

// endpoints returns the functions as endpoints.
func (s *service) endpoints() []endpoint {
	var list []endpoint
	holders := map[string]string{} // of names of endpoints
	about := 0
	for _, function := range slices.Sorted(maps.Keys(s.about)) {
		e := endpoint{name: endpointName(function), subject: subjectOf(function), about: maps.Clone(s.about[function])}
		if other := holders[e.name]; other != "" {
			s.once("function %s is not registered with NATS: %s has its name there, %s", function, other, e.name)
			continue
		}
		if len(list) == maxEndpoints {
			s.once("only the first %d functions that match --nats-service, by name, are registered with NATS", maxEndpoints)
			break
		}
		holders[e.name] = function
		for _, key := range []string{"description", "arguments", "schema"} {
			text, _ := json.Marshal(e.about[key])
			if about += len(text); about > maxAbout {
				about -= len(text)
				delete(e.about, key)
			}
		}
		list = append(list, e)
	}
	return list
}

// handler returns what handles the requests for a function. The library hands it one at a time.
func (s *service) handler(function string) micro.Handler {
	return micro.HandlerFunc(func(req micro.Request) {
		select {
		case s.room <- struct{}{}:
			go func() { // ends with the call
				defer func() { <-s.room }()
				s.call(function, req)
			}()
		default:
			err := args.Errorf(args.CodeBusy, "this node runs %d calls for clients of NATS, and takes no more", maxNATSCalls)
			s.answer(req, bus.Result{}, err, nil, nil)
		}
	})
}

// call makes the call that a request asks for. Also without anybody to answer to: that is how
// programs send what needs no answer.
func (s *service) call(function string, req micro.Request) {
	stdout, stderr := &limited{}, &tail{}
	r := &bus.Request{
		Function: function, Caller: natsCaller, Stdout: stdout, Stderr: stderr,
		Trace: args.Trace(req.Headers().Get("traceparent"), req.Headers().Get("tracestate")),
	}
	if len(req.Data()) > 0 {
		r.Input = bytes.NewReader(req.Data())
	}
	res, err := s.mesh.node.Call(s.ctx, r)
	var exit *bus.ExitError
	switch {
	case err == nil, errors.As(err, &exit), errors.Is(err, bus.ErrDraining): // the last was not run
	case s.mesh.node.Err() != nil, errors.Is(context.Cause(s.ctx), bus.ErrNodeLost):
		err = args.Errorf(args.CodeNodeLost, "the connection to the node was lost: the call may have run")
	case s.ctx.Err() != nil:
		err = args.Errorf(args.CodeNodeLost, "the mesh has ended: the call may have run")
	}
	s.answer(req, res, err, stdout.Bytes(), stderr.text())
}

// answer answers a request. It does not use the library's means for that, which are not for other
// goroutines than the handler's.
func (s *service) answer(req micro.Request, res bus.Result, err error, stdout, stderr []byte) {
	if req.Reply() == "" {
		return
	}
	end := res.End
	var exit *bus.ExitError
	if errors.As(err, &exit) {
		end = exit.End
	} else if err != nil {
		end = args.AsError(err, args.CodeInternal).End()
	}
	msg := nats.NewMsg(req.Reply())
	msg.Data = stdout
	msg.Header.Set(headerStatus, strconv.Itoa(end.Status))
	msg.Header.Set(headerCode, end.Code)
	if res.Call != "" {
		msg.Header.Set(headerCall, res.Call)
	}
	if len(stderr) > 0 {
		msg.Header.Set(headerStderr, escape(stderr))
	}
	if err != nil {
		msg.Header.Set(micro.ErrorCodeHeader, strconv.Itoa(end.Status))
		msg.Header.Set(micro.ErrorHeader, args.OneLine(err.Error()))
	}
	if perr := s.mesh.nc.PublishMsg(msg); errors.Is(perr, nats.ErrMaxPayload) && len(stdout) > 0 {
		s.answer(req, res, args.Errorf(args.CodeOutputLimit, "output of %d bytes exceeds what the NATS server takes in a message", len(stdout)), nil, stderr)
	}
}

// escape returns text as it is between the quotes of a Go string, so that it is one line.
func escape(text []byte) string {
	quoted := strconv.Quote(string(text))
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// once passes on a notice the first time.
func (s *service) once(format string, a ...any) {
	if text := fmt.Sprintf(format, a...); !s.said[text] {
		s.said[text] = true
		s.mesh.note("%s", text)
	}
}

// pause removes the endpoints for as long as the own node does not answer, or adds them again.
func (s *service) pause(on bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused = on; !s.left {
		s.register()
	}
}

// leave removes the endpoints for good. Requests that have come are handled.
func (s *service) leave() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = true
	if s.current != nil {
		s.current.Stop()
		s.current = nil
		s.mesh.nc.FlushTimeout(time.Second) // the server sends no more
	}
}

// wait waits until no call runs, or until the limit.
func (s *service) wait(limit <-chan struct{}) {
	if s == nil {
		return
	}
	for ; s.ended < cap(s.room); s.ended++ {
		select {
		case s.room <- struct{}{}:
		case <-limit:
			return
		}
	}
}

// limited is the output of a call. If there is too much of it, the call ends with an error.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxAnswer {
		l.Reset()
		return 0, args.Errorf(args.CodeOutputLimit, "output exceeds the limit of %d bytes for clients of NATS", maxAnswer)
	}
	return l.Buffer.Write(p)
}

// tail is the end of what is written.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if more := len(t.kept) - maxErrorTail; more > maxErrorTail {
		t.kept = append(t.kept[:0], t.kept[more:]...)
	}
	return len(p), nil
}

// text returns it without the line's end.
func (t *tail) text() []byte {
	return bytes.TrimRight(t.kept[max(0, len(t.kept)-maxErrorTail):], "\r\n")
}
