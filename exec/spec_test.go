package exec

import (
	"errors"
	"strings"
	"testing"
	"time"

	"fbus/bus/args"
)

// What does not go together is refused where it is offered, by the option's name.
func TestModesRefused(t *testing.T) {
	tests := []struct {
		flag string
		spec Spec
	}{
		{"`warm", Spec{Warm: -1}},
		{"`warm 3` is more than `slots 2`", Spec{Warm: 3, Slots: 2}},
		{"`args", Spec{Warm: 1, Args: ArgsArgv, ArgsSet: true}},
		{"`args", Spec{Warm: 1, Argv: []string{"echo", "{1}"}}},
		{"`resident", Spec{Warm: 1, Resident: LineByLine}},
		{"`args", Spec{Resident: LineByLine, Args: ArgsArgv, ArgsSet: true}},
		{"`args", Spec{Resident: JSONRPC, Argv: []string{"echo", "{}"}}},
		{"`encoding", Spec{Resident: JSONRPC, Encoding: args.EncodeNUL}},
		{"`pipeline", Spec{Resident: LineByLine, Pipeline: 2}},
		{"`pipeline", Spec{Resident: JSONRPC, Pipeline: -1}},
		{"`pipeline", Spec{Pipeline: 2}},
		{"`reply-fd", Spec{Resident: LineByLine, ReplyFD: 1}},
		{"`reply-fd", Spec{Resident: LineByLine, ReplyFD: 2}},
		{"`reply-fd", Spec{Resident: LineByLine, ReplyFD: -1}},
		{"`reply-fd", Spec{Resident: LineByLine, ReplyFD: 10}},
		{"`reply-fd", Spec{ReplyFD: 3}},
		{"`max-calls", Spec{Resident: LineByLine, MaxCalls: -1}},
		{"`max-calls", Spec{MaxCalls: 1}},
		{"`max-idle", Spec{Resident: JSONRPC, MaxIdle: -1}},
		{"`max-idle", Spec{Warm: 1, MaxIdle: time.Second}},
		{"`resident", Spec{Resident: 3}},
	}
	for _, tt := range tests {
		if tt.spec.Argv == nil {
			tt.spec.Argv = []string{"cat"}
		}
		f, err := New(tt.spec)
		var e *args.Error
		if !errors.As(err, &e) || e.Code != args.CodeUsage || !strings.Contains(e.Message, tt.flag) {
			t.Errorf("%+v: got %v, want a usage error about %s", tt.spec, err, tt.flag)
		}
		if f != nil {
			f.Close()
		}
	}
}

func TestArgumentsInAPhrase(t *testing.T) {
	t.Parallel()
	for want, spec := range map[string]Spec{
		"JSON on stdin":             {},
		"JSON on stdin, warm":       {Warm: 1},
		"lines on stdin, warm":      {Warm: 1, Encoding: args.EncodeLines},
		"a line on stdin, resident": {Resident: LineByLine},
		"JSON-RPC params, resident": {Resident: JSONRPC},
	} {
		spec.Argv = []string{"cat"}
		if got := offer(t, spec).Arguments(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, e := range []args.Encoding{args.EncodeJSON, args.EncodeMsgpack, args.EncodeLines, args.EncodeNUL} {
		if got, err := args.ParseEncoding(e.String()); got != e || err != nil {
			t.Errorf("%v: %v, %v", e, got, err)
		}
	}
	for _, m := range []ArgMode{ArgsStdin, ArgsArgv} {
		if got, err := ParseArgMode(m.String()); got != m || err != nil {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	if _, err := args.ParseEncoding("xml"); err == nil {
		t.Error("xml is an encoding")
	}
	if _, err := ParseArgMode("env"); err == nil {
		t.Error("env is an argument mode")
	}
}
