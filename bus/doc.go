// Package bus is the fbus wire protocol and its client.
//
// Programs that want to call or offer functions use [Dial], [Client.Call] and
// [Client.Offer]; a [Worker] keeps its offers alive across restarts of the
// node. The protocol itself is written down in PROTOCOL.md beside this file:
// the frame types below follow its sections, and the node (package
// fbus/bus/node) speaks it through [Conn].
//
// All exported types are safe for concurrent use unless they say otherwise.
package bus
