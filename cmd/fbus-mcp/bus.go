package main

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"

	"fbus/bus"
)

// connector keeps a connection to the node.
type connector struct {
	options bus.Options

	mu     sync.Mutex // protects the fields below; held while connecting
	client *bus.Client
	relay  bool
}

// connectTime is how long a call waits for a node that is being restarted.
const connectTime = 3 * time.Second

// bus makes a connector. Its connections have no rights but to call the tools, and to say for whom.
func (o *options) bus() *connector {
	b := &connector{options: bus.Options{Node: o.node, Wait: bus.WaitFor(connectTime), Rights: []string{"relay"}, Relay: true}}
	tools := o.tools
	if tools == nil {
		tools = []string{"*"}
	}
	for _, glob := range tools {
		b.options.Rights = append(b.options.Rights, "call:"+glob)
	}
	return b
}

// connect returns the connection, a new one if the last has ended.
func (b *connector) connect(ctx context.Context) (*bus.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client != nil && b.client.Err() == nil {
		return b.client, nil
	}
	client, err := bus.Connect(ctx, &b.options)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	var info bus.NodeInfo
	if _, err = client.Call(ctx, &bus.Request{Function: "fbus.nodes", Stdout: &out}); err == nil {
		err = json.Unmarshal(out.Bytes(), &info)
	}
	if err != nil {
		client.Close()
		return nil, err
	}
	b.client, b.relay = client, info.Rights == nil || info.Rights.Relay
	return client, nil
}

// caller names the client of the agent for the node, if the connection may do that.
func (b *connector) caller(client string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.relay {
		return ""
	}
	return "mcp:" + client
}

func (b *connector) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client != nil {
		b.client.Close()
	}
}
