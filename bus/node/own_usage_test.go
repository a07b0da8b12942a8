package node_test

import (
	"strings"
	"testing"

	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// TestOwnUsage: arguments of the node's own functions that are formed wrongly are 64, whatever the
// function.
func TestOwnUsage(t *testing.T) {
	g := newGuests(t)
	id := uint64(100)
	for _, f := range node.OwnNames() {
		id++
		frames := []*wire.CallFrame{documentFrame(id, f, `{"no-such-field":1}`)}
		id++
		frames = append(frames, documentFrame(id, f, `{"a":`))
		id++
		fields := callFrame(id, f, "")
		fields.Kind, fields.Args = args.KindMap, []byte("\x81\xa1a\xa1b")
		frames = append(frames, fields)
		for _, frame := range frames {
			if got := g.root.says(frame); !strings.HasPrefix(got, "64 usage: ") {
				t.Errorf("%s, kind %d, %q: %s", f, frame.Kind, frame.Args, got)
			}
		}
	}
}

// TestCancelForms: fbus.cancel takes its JSON object in each of the forms of an object.
func TestCancelForms(t *testing.T) {
	g := newGuests(t)
	object := `{"batch":"b"}`
	for i, f := range []*wire.CallFrame{documentFrame(1, "fbus.cancel", object), wordsFrame(2, "fbus.cancel", object), callFrame(3, "fbus.cancel", object)} {
		if got := g.root.says(f); got != "65 bad_input: b: no such batch\nhint: a batch is there while it has jobs: fbus jobs lists them" {
			t.Errorf("form %d: %s", i+1, got)
		}
	}
	for i, object := range []string{`{"batch":"b","older":60}`, `{"batch":"b","limit":1}`, `{"batch":"b","dead":true}`} {
		if got := g.root.says(documentFrame(uint64(10+i), "fbus.cancel", object)); !strings.HasPrefix(got, "64 usage: ") {
			t.Errorf("%s: %s", object, got)
		}
	}
}
