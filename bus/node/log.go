package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/wire"
)

// maxLogWait bounds how long a call of fbus.log waits for an entry; it ends well
// before the limit of such calls.
const maxLogWait = 8 * time.Second

// ServeLog returns what serves fbus.log from a log. It answers the entries, one
// JSON object a line, and a [LogNext]. If there are more than it gives at once, it
// gives the first of them.
func ServeLog(j *calllog.Log) bus.Handler {
	return func(ctx context.Context, inv *bus.Invocation) bus.Result {
		q, err := logQuery(inv)
		if err != nil {
			return logFailure("fbus.log: " + err.Error())
		}
		entries, next, err := j.Read(ctx, q)
		switch {
		case ctx.Err() != nil: // nobody waits for it
			return bus.Result{End: bus.End{Source: args.FromBus, Status: args.StatusOf(args.CodeCancelled), Code: args.CodeCancelled}}
		case errors.Is(err, calllog.ErrQuery):
			return logFailure("fbus.log: " + err.Error())
		case errors.Is(err, calllog.ErrClosed):
			return bus.Result{End: bus.End{Source: args.FromBus, Status: args.StatusOf(args.CodeDraining), Code: args.CodeDraining, Message: "fbus.log: " + err.Error()}}
		case err != nil:
			return bus.Result{End: bus.End{Source: args.FromBus, Status: args.StatusOf(args.CodeInternal), Code: args.CodeInternal, Message: "fbus.log: " + err.Error()}}
		}
		res := bus.Result{}
		res.Output = logLines(entries, next)
		return res
	}
}

func logFailure(msg string) bus.Result {
	return bus.Result{End: bus.End{Source: args.FromBus, Status: args.StatusOf(args.CodeBadInput), Code: args.CodeBadInput, Message: msg}}
}

func serveLog(ctx context.Context, q *asked) error {
	res := ServeLog(q.node.cfg.Log)(ctx, q.Invocation)
	q.result = &res
	return nil
}

func logLines(entries []bus.LogEntry, next uint64) []byte {
	var out []byte
	for i := range entries {
		out = calllog.AppendLine(out, &entries[i])
	}
	out = strconv.AppendUint(append(out, `{"next":`...), next, 10)
	return append(out, "}\n"...)
}

// logQuery reads what a call asks for: a JSON document as arguments, or as input.
func logQuery(inv *bus.Invocation) (calllog.Query, error) {
	var doc []byte
	switch inv.Kind {
	case args.KindJSON:
		doc = inv.Args
	case args.KindRaw:
		doc = bytes.TrimSpace(inv.Head())
	default:
		return calllog.Query{}, errors.New("expected one JSON object: {\"last\":50}")
	}
	var q bus.LogQuery
	if len(doc) > 0 {
		dec := json.NewDecoder(bytes.NewReader(doc))
		dec.DisallowUnknownFields() // a filter that is not known would show what was not asked for
		if err := dec.Decode(&q); err != nil {
			return calllog.Query{}, fmt.Errorf("not a query: %v", err)
		}
		if _, err := dec.Token(); err != io.EOF {
			return calllog.Query{}, errors.New("not a query: more than one JSON object")
		}
	}
	if q.Last < 0 || q.Wait < 0 {
		return calllog.Query{}, errors.New("last and wait must not be negative")
	}
	wait := maxLogWait
	if q.Wait < maxLogWait.Seconds() {
		wait = time.Duration(q.Wait * float64(time.Second))
	}
	return calllog.Query{After: q.After, Last: q.Last, Function: q.Function, Caller: q.Caller, Event: q.Event, Wait: wait}, nil
}

// log keeps how a call ended. What a caller was denied is an entry of its own kind, and
// calls of the node's own functions have none.
func (c *call) log(f *wire.EndFrame) {
	switch {
	case c.state == created && string(f.Code) == args.CodeDenied:
		c.node.denied(&c.session.peer, c.fn.name, string(f.Message))
		return
	case c.fn.own != nil:
		return
	}
	now := time.Now()
	e := bus.LogEntry{
		Time: now, Event: calllog.EventCall, Call: c.name(), Caller: c.caller(), From: c.session.peer.From, Function: c.fn.name,
		In: c.bytesIn, Out: c.bytesOut, Source: f.Source.String(), Status: int(f.Status), Code: string(f.Code),
		Waited: now.Sub(c.arrived).Seconds(),
	}
	if f.Source == args.FromBus {
		e.Message = string(f.Message)
	}
	if c.offer != nil {
		e.Worker = c.offer.session.name
		e.Waited, e.Ran = c.started.Sub(c.arrived).Seconds(), now.Sub(c.started).Seconds()
	}
	c.node.cfg.Log.Append(&e)
}
