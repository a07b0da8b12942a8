package node_test

import (
	"testing"

	"fbus/bus/wire"
)

// relayHello is the HELLO of a client that wants to make calls for others.
func relayHello(rights ...string) *wire.HelloFrame {
	h := hello()
	h.Caps = [][]byte{[]byte(wire.CapRelay)}
	for _, r := range rights {
		h.Rights = append(h.Rights, []byte(r))
	}
	return h
}

// TestRelayIsNamed: the node names the capability relay to a client that has named it and has the right,
// and to no other.
func TestRelayIsNamed(t *testing.T) {
	g := newGuests(t)
	for name, c := range map[string]struct {
		rights []string // of its ticket; nil: it is on this machine
		hello  *wire.HelloFrame
		want   bool
	}{
		"own user":                 {nil, relayHello(), true},
		"own user, not named":      {nil, hello(), false},
		"own user, kept":           {nil, relayHello("call:a", "relay"), true},
		"own user, dropped":        {nil, relayHello("call:a", "admin"), false},
		"ticket":                   {[]string{"call:a", "relay"}, relayHello(), true},
		"ticket, not named":        {[]string{"call:a", "relay"}, hello(), false},
		"ticket, dropped":          {[]string{"call:a", "relay"}, relayHello("call:*"), false},
		"ticket of an admin":       {[]string{"call:a", "admin", "monitor"}, relayHello(), false},
		"ticket that wants it":     {[]string{"call:a"}, relayHello("call:a", "relay"), false},
		"ticket that wants a part": {[]string{"call:*", "relay"}, relayHello("call:a", "relay"), true},
	} {
		t.Run(name, func(t *testing.T) {
			p := rawUnix(t, nil, g.path)
			if c.rights != nil {
				ticket := g.ticket("t", c.rights...)
				defer g.a.Revoke(ticket.Serial)
				p = dialTLS(t, g.addr, ticket.ClientConfig(nil))
			}
			p.send(c.hello)
			if got := want[*wire.HelloFrame](p).Has(wire.CapRelay); got != c.want {
				t.Errorf("named: %v", got)
			}
		})
	}
}
