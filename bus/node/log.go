package node

import (
	"context"
	"errors"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// maxLogWait bounds how long a call of fbus.log waits for an entry; it ends well
// before the limit of such calls.
const maxLogWait = 8 * time.Second

// serveLog answers log entries, and where the next call goes on. If there are more than fit
// one answer, it answers the first of them.
func serveLog(ctx context.Context, q *asked) error {
	var d bus.LogQuery
	if err := q.document(&d); err != nil {
		return err
	}
	if d.Last < 0 || d.Wait < 0 {
		return usageError("fbus.log: last and wait must not be negative")
	}
	q.pass() // it may wait
	entries, next, err := q.node.cfg.Log.Read(ctx, calllog.Query{
		After: d.After, Last: d.Last, Function: d.Function, Caller: d.Caller, Event: d.Event,
		Wait: time.Duration(min(d.Wait, maxLogWait.Seconds()) * float64(time.Second)),
	})
	switch {
	case errors.Is(err, calllog.ErrQuery):
		return usageError("fbus.log: %v", err)
	case errors.Is(err, calllog.ErrClosed):
		return args.Errorf(args.CodeDraining, "fbus.log: %v", err)
	case err != nil:
		return args.Errorf(args.CodeInternal, "fbus.log: %v", err)
	}
	for i := range entries {
		q.out.Write(calllog.AppendLine(nil, &entries[i]))
	}
	q.line(bus.LogNext{Next: next})
	return nil
}

// log keeps how a call ended. What a caller was denied is an entry of its own kind, and
// calls of the node's own functions have none.
func (c *call) log(f *wire.EndFrame) {
	switch {
	case c.state == created && string(f.Code) == args.CodeDenied:
		p := c.peer()
		c.node.denied(&p, c.fn.name, string(f.Message))
		return
	case c.fn.own != nil:
		return
	}
	now := time.Now()
	e := bus.LogEntry{
		Time: now, Event: calllog.EventCall, Call: c.name(), Relayed: c.given.call, Caller: c.caller(), From: c.session.peer.From, Function: c.fn.name,
		In: c.flows[wire.Input].passed, Out: c.flows[wire.Output].passed, Source: f.Source.String(), Status: int(f.Status), Code: string(f.Code),
		Waited: now.Sub(c.arrived).Seconds(),
	}
	e.Trace, _ = args.SplitTrace(c.trace)
	if f.Source == args.FromBus {
		e.Message = string(f.Message)
	}
	if c.offer != nil {
		e.Worker = c.offer.session.name
		e.Waited, e.Ran = c.started.Sub(c.arrived).Seconds(), now.Sub(c.started).Seconds()
	}
	c.node.cfg.Log.Append(&e)
}

// refused counts and logs that a connection was not let in. The caller is known on this machine;
// over TLS the identity names it, if the network's CA has signed that.
func (n *Node) refused(from, caller string, id *trust.Identity, err error) {
	e := denial(err)
	n.mu.Lock()
	n.refusedEntries[e.Code]++
	n.mu.Unlock()
	if id == nil {
		if g, ok := n.cfg.Gate.(interface{ Shown(error) *trust.Identity }); ok {
			id = g.Shown(err)
		}
	}
	entry := bus.LogEntry{Event: calllog.EventRefused, Caller: caller, From: from, Code: e.Code, Message: err.Error()}
	if id != nil {
		entry.Caller, entry.Name, entry.Serial = id.Caller(), id.Name, id.Serial
	}
	who := ""
	if entry.Caller != "" {
		who = " of " + entry.Caller
	}
	n.cfg.Log.Append(&entry)
	n.cfg.Note("connection from %s%s refused: %v", from, who, err)
}

// denied logs that a peer wanted more than its rights allow.
func (n *Node) denied(p *Peer, function, msg string) {
	n.cfg.Log.Append(&bus.LogEntry{
		Event: calllog.EventRefused, Caller: p.Caller, From: p.From, Function: function, Code: args.CodeDenied, Message: msg, Serial: p.Serial,
	})
}
