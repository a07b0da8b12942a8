package exec

import (
	"bytes"
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if status, ok := Dispatch(); ok {
		os.Exit(status)
	}
	if err := BecomeReaper(); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// reply is what a call gave.
type reply struct {
	Result
	out, err string
}

func runCall(ctx context.Context, f *Function, c *Call) reply {
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	res := f.Run(ctx, c)
	return reply{res, out.String(), errs.String()}
}

func offer(t testing.TB, spec Spec) *Function {
	t.Helper()
	if spec.Name == "" {
		spec.Name = "f"
	}
	f, err := New(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func TestCat(t *testing.T) {
	f := offer(t, Spec{Argv: []string{"cat"}})
	for range 3 {
		got := runCall(t.Context(), f, &Call{Input: []byte("hello")})
		if got.out != "hello" || got.Result != (Result{SourceProgram, 0, "exit", ""}) {
			t.Fatalf("%+v", got)
		}
	}
}
