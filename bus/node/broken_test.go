package node_test

import (
	"testing"

	"fbus/bus/node"
	"fbus/bus/wire"
)

// TestBrokenRules: an error about a frame names the frame, its stream and the call.
func TestBrokenRules(t *testing.T) {
	data := func(id uint64) wire.Frame { return &wire.DataFrame{ID: id, Payload: []byte("xy")} }
	for message, send := range map[string][]wire.Frame{
		"DATA of stream 0 for call 3: 2 bytes with a credit of 0":                            {openFrame(3, "f"), data(3)},
		"EOF for call 3: it comes after the input's end":                                     {callFrame(3, "f", ""), &wire.EOFFrame{ID: 3}},
		"GRANT of stream 1 for call 3: credit of 4456448 bytes exceeds the limit of 4194304": {callFrame(3, "f", ""), &wire.GrantFrame{ID: 3, Stream: wire.Output, Bytes: 4 << 20}},
		"CALL for call 2: element 1 (id) must be above 3, the last one":                      {callFrame(3, "f", ""), callFrame(2, "f", "")},
		"DATA of stream 0 for call 7, which was never opened":                                {data(7)},
		"OFFERED is sent by a node, not by a client":                                         {&wire.OfferedFrame{}},
	} {
		_, path := start(t, node.Config{})
		worker := rawUnix(t, nil, path).greet()
		worker.offer("f", 1, 0)
		p := rawUnix(t, nil, path).greet()
		for _, f := range send {
			p.send(f)
		}
		if e := want[*wire.ErrorFrame](p); string(e.Message) != message || string(e.Code) != "protocol" {
			t.Errorf("%s: %s; want %s", e.Code, e.Message, message)
		}
	}
}

// TestAttributeTwice: an offer that has an attribute twice is refused.
func TestAttributeTwice(t *testing.T) {
	_, path := start(t, node.Config{})
	p := rawUnix(t, nil, path).greet()
	twice := [][]byte{[]byte("x.a"), []byte("1"), []byte("x.a"), []byte("2")}
	p.send(&wire.OfferFrame{Seq: 1, Name: []byte("f"), Slots: 1, Attributes: twice})
	if a := want[*wire.OfferedFrame](p); string(a.Code) != "usage" {
		t.Errorf("%q: %s", a.Code, a.Message)
	}
}
