package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/cmd/schema"
)

// link is the connection to the node. It is made again whenever it is lost, and watches which functions
// there are and which tokens end.
type link struct {
	opts bus.Options
	note func(format string, a ...any)

	mu        sync.RWMutex // protects what follows
	client    *bus.Client  // nil: there is no connection
	own       *trust.Rights
	functions map[string]*bus.FunctionInfo
	schemas   map[string]*schema.Schema // of those that were asked for; nil: there is none
	changes   uint64                    // of offers
	tokens    *tokens
	asked     *probe // that the node has not answered yet; nil: there is none

	expiries expiries
	heard    atomic.Uint64 // how often something has come from the node
}

// rights are the only ones that the gateway has on its connection, whoever runs it.
var rights = []string{"call:*", "relay", "monitor"}

// run keeps the connection until ctx ends. It returns an error if the node denies entry, or what a gateway needs,
// the first time.
func (l *link) run(ctx context.Context) error {
	said := ""
	for entered, pause := false, 50*time.Millisecond; ; {
		c, err := bus.Connect(ctx, &l.opts)
		if err == nil {
			err = l.use(ctx, c, func() { entered, pause, said = true, 50*time.Millisecond, "" })
			c.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
		if !entered && !args.Retryable(err) {
			return err
		}
		if text := err.Error(); text != said {
			l.note("%s: looking for the node", text)
			if hint := args.AsError(err, args.CodeInternal).Hint; hint != "" {
				l.note("hint: %s", hint)
			}
			said = text
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, 2*time.Second)
		case <-ctx.Done():
			return nil
		}
	}
}

// use serves requests over a connection until it is lost. It calls entered once it can.
func (l *link) use(ctx context.Context, c *bus.Client, entered func()) error {
	text, err := output(ctx, c, "", "fbus.nodes", bus.Args{})
	if err != nil {
		return err
	}
	var info bus.NodeInfo
	if err := json.Unmarshal(text, &info); err != nil {
		return args.Errorf(args.CodeInternal, "the node's answer cannot be read: %v", err)
	}
	if info.Rights != nil && !info.Rights.Relay {
		return args.Errorf(args.CodeDenied, "%s may not make calls for others", info.Caller).WithHint("it needs the right relay: fbus invite --relay --monitor --call '*'")
	}
	l.mu.Lock()
	l.client, l.own, l.functions, l.schemas = c, info.Rights, map[string]*bus.FunctionInfo{}, map[string]*schema.Schema{}
	l.mu.Unlock()
	entered()
	l.note("connected to node %s of network %s as %s", info.Name, info.Network, info.Caller)
	defer func() {
		l.mu.Lock()
		l.client, l.functions, l.schemas = nil, nil, nil
		l.mu.Unlock()
		l.tokens.forget()
	}()
	for {
		err := l.watch(ctx, c)
		l.tokens.forget()
		if ctx.Err() != nil || c.Err() != nil || !args.Retryable(err) {
			return err
		}
		select { // the node is too busy to watch
		case <-time.After(time.Second):
		case <-c.Done():
			return c.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch follows what changes at the node.
func (l *link) watch(ctx context.Context, c *bus.Client) error {
	in, out := io.Pipe()
	read := make(chan struct{})
	go func() { // ends with the call
		defer close(read)
		lines := bufio.NewReaderSize(in, 1<<16)
		for {
			line, err := lines.ReadSlice('\n')
			for long := bytes.Clone(line); errors.Is(err, bufio.ErrBufferFull); line = long {
				var more []byte
				more, err = lines.ReadSlice('\n')
				long = append(long, more...)
			}
			if err != nil {
				return
			}
			l.changed(line)
		}
	}()
	l.tokens.watched()
	l.expiries.forget()
	_, err := c.Call(ctx, &bus.Request{
		Function: "fbus.watch", Args: args.JSON([]byte(`{"types":["function","worker","ticket"],"every":20}`)), Stdout: out,
	})
	out.Close()
	<-read
	if err == nil {
		err = args.Errorf(args.CodeNodeLost, "the node no longer says what changes")
	}
	return err
}

// changed takes a line of fbus.watch.
func (l *link) changed(line []byte) {
	l.heard.Add(1)
	var what struct {
		bus.Change
		Name     string `json:"name"`
		Function string `json:"function"`
		Serial   string `json:"serial"`
	}
	if json.Unmarshal(line, &what) != nil {
		return
	}
	switch what.Type {
	case "resync":
		l.mu.Lock()
		clear(l.functions)
		clear(l.schemas)
		l.changes++
		l.mu.Unlock()
		l.tokens.watched() // a snapshot follows
	case "ticket":
		if l.expiries.changed(line, what.Gone); what.Gone {
			l.tokens.ended(func(a *admitted) bool { return a.Serial == what.Serial })
		}
	case "worker":
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.schemas, what.Function)
		l.changes++
	case "function":
		info := new(bus.FunctionInfo)
		if !what.Gone && json.Unmarshal(line, info) != nil {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.functions == nil {
			return
		}
		if what.Gone {
			delete(l.functions, what.Name)
		} else {
			l.functions[what.Name] = info
		}
	}
}

// connected returns the connection, or an error that says that there is none.
func (l *link) connected() (*bus.Client, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.client == nil || l.client.Err() != nil {
		return nil, args.Errorf(args.CodeNoNode, "the gateway is not connected to its node")
	}
	return l.client, nil
}

// function returns what is known of a function, nil if it is not on the bus. The result must not be changed.
func (l *link) function(name string) *bus.FunctionInfo {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.functions[name]
}

// rights returns what the gateway itself may do, nil if that is everything.
func (l *link) rights() *trust.Rights {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.own
}

// mayCall reports whether the gateway itself may call a function.
func (l *link) mayCall(name string) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.own == nil || l.own.MayCall(name)
}

// output calls a function of the node for somebody, and returns its output.
func (l *link) output(ctx context.Context, caller, function string, a bus.Args) ([]byte, error) {
	var out bytes.Buffer
	_, err := l.call(ctx, &bus.Request{Function: function, Args: a, Stdout: &out, Caller: caller})
	return out.Bytes(), err
}

func output(ctx context.Context, c *bus.Client, caller, function string, a bus.Args) ([]byte, error) {
	var out bytes.Buffer
	_, err := c.Call(ctx, &bus.Request{Function: function, Args: a, Stdout: &out, Caller: caller})
	return out.Bytes(), err
}
