package store

import "testing"

// TestPeek: the beginning of a record is read without the rest, whatever characters it has.
func TestPeek(t *testing.T) {
	for _, p := range []Poster{
		{Caller: "uid:0"}, {Caller: "ticket:a", Owner: "ticket:a@1", Serial: "1"}, {Caller: "ticket:a", Serial: "1"},
		{Caller: `ticket:gw/a"b`, Owner: `ticket:gw@1/a\"<&>`}, {Caller: `ticket:gw/a\`}, {Caller: `a","owner":"b`}, {},
	} {
		j := &Job{Function: "f", State: Done, Poster: p}
		function, state, got, ok := Peek(append([]byte("sum."), j.Encode()...))
		if !ok || function != "f" || state != Done || got.Caller != p.Caller || got.Owner != p.Owner {
			t.Errorf("%+v became %s %s %+v, %t", p, function, state, got, ok)
		}
	}
	full := append([]byte("sum."), (&Job{Function: "f", Poster: Poster{Caller: "a", Owner: `b"`}}).Encode()...)
	for n := range full {
		if _, _, p, ok := Peek(full[:n]); ok && p.Owner != "" && p.Owner != `b"` {
			t.Errorf("of %d bytes: %+v", n, p)
		}
	}
	for key, want := range map[string]string{"uid:0": "uid:0", "ticket:a@0123456789abcdef0123456789abcdef": "ticket:a", "uid:0/token:a@0123456789abcdef0123456789abcdef": "uid:0/token:a", "": ""} {
		if got := callerOf(key); got != want {
			t.Errorf("%s became %s", key, got)
		}
	}
}
