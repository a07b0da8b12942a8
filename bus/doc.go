// Package bus calls and offers functions on a function bus.
//
// [Connect] finds a node and connects to it, as the commands of fbus do; [Dial] connects
// to a given one. [Client.Call] calls a function:
//
//	c, err := bus.Connect(ctx, nil)
//	...
//	var out bytes.Buffer
//	res, err := c.Call(ctx, &bus.Request{Function: "resize", Args: bus.List("50%"), Input: file, Stdout: &out})
//
// [Client.Offer] offers a function for as long as the connection lasts, and a [Worker]
// for as long as the program runs, also across restarts of the node:
//
//	w := &bus.Worker{Notice: log.Printf}
//	w.Add(bus.Offer{Name: "upper", Slots: 4}, func(ctx context.Context, inv *bus.Invocation) bus.Result {
//		...
//		return bus.Exit(0)
//	})
//
// The types whose names end in Info, Query or Metrics are the JSON objects that the
// node's own functions take and answer.
//
// The protocol is described in PROTOCOL.md next to this file, and implemented in package
// fbus/bus/wire.
//
// All exported types are safe for concurrent use unless their documentation excludes it.
package bus

import "embed"

// Examples holds worked callers and workers in other languages, as
// testdata/clients/caller.py and so on.
//
//go:embed testdata/clients
var Examples embed.FS
