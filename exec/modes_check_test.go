package exec

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// What does not go together is refused where it is offered, by the flag's name.
func TestModesRefused(t *testing.T) {
	tests := []struct {
		flag string
		spec Spec
	}{
		{"--warm", Spec{Warm: -1}},
		{"--warm 3 is more than --slots 2", Spec{Warm: 3, Slots: 2}},
		{"--args", Spec{Warm: 1, Args: ArgsArgv, ArgsSet: true}},
		{"--args", Spec{Warm: 1, Argv: []string{"echo", "{1}"}}},
		{"--resident", Spec{Warm: 1, Resident: LineByLine}},
		{"--args", Spec{Resident: LineByLine, Args: ArgsArgv, ArgsSet: true}},
		{"--args", Spec{Resident: JSONRPC, Argv: []string{"echo", "{}"}}},
		{"--encoding", Spec{Resident: JSONRPC, Encoding: NUL}},
		{"--pipeline", Spec{Resident: LineByLine, Pipeline: 2}},
		{"--pipeline", Spec{Resident: JSONRPC, Pipeline: -1}},
		{"--pipeline", Spec{Pipeline: 2}},
		{"--reply-fd", Spec{Resident: LineByLine, ReplyFD: 1}},
		{"--reply-fd", Spec{Resident: LineByLine, ReplyFD: 2}},
		{"--reply-fd", Spec{Resident: LineByLine, ReplyFD: -1}},
		{"--reply-fd", Spec{Resident: LineByLine, ReplyFD: 10}},
		{"--reply-fd", Spec{ReplyFD: 3}},
		{"--max-calls", Spec{Resident: LineByLine, MaxCalls: -1}},
		{"--max-calls", Spec{MaxCalls: 1}},
		{"--max-idle", Spec{Resident: JSONRPC, MaxIdle: -1}},
		{"--max-idle", Spec{Warm: 1, MaxIdle: time.Second}},
		{"--resident", Spec{Resident: 3}},
	}
	for _, tt := range tests {
		if tt.spec.Argv == nil {
			tt.spec.Argv = []string{"cat"}
		}
		f, err := New(tt.spec)
		var e *Error
		if !errors.As(err, &e) || e.Status != StatusUsage || !strings.Contains(e.Msg, tt.flag) {
			t.Errorf("%+v: got %v, want %d about %s", tt.spec, err, StatusUsage, tt.flag)
		}
		if f != nil {
			f.Close()
		}
	}
}

func TestArgumentsInAPhrase(t *testing.T) {
	for want, spec := range map[string]Spec{
		"JSON on stdin":             {},
		"JSON on stdin, warm":       {Warm: 1},
		"lines on stdin, warm":      {Warm: 1, Encoding: Lines},
		"a line on stdin, resident": {Resident: LineByLine},
		"JSON-RPC params, resident": {Resident: JSONRPC},
	} {
		spec.Argv = []string{"cat"}
		if got := offer(t, spec).Arguments(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Arguments are held against Check before a program sees them; input without
// arguments is not.
func TestCheckArguments(t *testing.T) {
	for name, spec := range map[string]Spec{
		"once":  {Argv: []string{"cat"}},
		"argv":  {Argv: []string{"echo", "{1}"}},
		"warm":  {Argv: []string{"cat"}, Warm: 1},
		"lines": {Argv: []string{"cat"}, Resident: LineByLine},
		"json":  {Argv: []string{"cat"}, Resident: JSONRPC},
	} {
		t.Run(name, func(t *testing.T) {
			spec.Check = func(doc []byte) error {
				if string(doc) != `["good"]` {
					return errors.New("not good: " + string(doc))
				}
				return nil
			}
			f := offer(t, spec)
			got := runCall(t.Context(), f, list(t, "bad"))
			check(t, got, Result{Source: SourceFbus, Status: StatusBadInput, Code: "bad_input", Message: `not good: ["bad"]`}, "")
			got = runCall(t.Context(), f, list(t, "\xff"))
			if got.Status != StatusBadInput || !strings.Contains(got.Message, "UTF-8") {
				t.Errorf("%+v", got)
			}
			if name == "json" {
				return // cat answers no message
			}
			if got = runCall(t.Context(), f, list(t, "good")); got.Status != 0 || !strings.Contains(got.out, "good") {
				t.Errorf("%+v", got)
			}
			if got = runCall(t.Context(), f, &Call{Input: []byte("raw\n")}); name != "argv" && (got.Status != 0 || got.out != "raw\n") {
				t.Errorf("%+v", got)
			}
		})
	}
}
