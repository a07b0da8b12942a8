package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/cmd/testbus"
)

func TestMain(m *testing.M) {
	testbus.Main(m, map[string]func(){
		"fbus-conformance": main,
		"worker":           func() { os.Exit(worker()) },
	})
}

// worker offers the four functions by package bus.
func worker() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	w := &bus.Worker{}
	for name, h := range map[string]bus.Handler{"echo": echo, "args": showArgs, "sleep": sleep, "exit": exit} {
		w.Add(bus.Offer{Name: name, Slots: 2}, h)
	}
	if err := w.Start(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := w.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w.Drain(context.Background())
	w.Close()
	return 0
}

func echo(_ context.Context, inv *bus.Invocation) bus.Result {
	if inv.Kind == args.KindRaw {
		io.Copy(inv.Stdout, inv.Input)
		return bus.Exit(0)
	}
	words, err := inv.Words()
	if err != nil {
		return bus.Fail(args.BadInput("%v", err))
	}
	for _, w := range words {
		fmt.Fprintln(inv.Stdout, w)
	}
	return bus.Exit(0)
}

func showArgs(_ context.Context, inv *bus.Invocation) bus.Result {
	values, err := args.Decode(inv.Kind, inv.Args)
	if err != nil {
		return bus.Fail(err)
	}
	text := func(v args.Value) []byte {
		if v.JSON {
			return v.Text
		}
		return args.AppendString(nil, v.Text)
	}
	var out bytes.Buffer
	switch inv.Kind {
	case args.KindJSON:
		out.Write(values.Doc)
	case args.KindMap:
		object := map[string]json.RawMessage{}
		for i, v := range values.List {
			object[values.Keys[i]] = text(v)
		}
		json.NewEncoder(&out).Encode(object)
	default:
		array := []json.RawMessage{}
		for _, v := range values.List {
			array = append(array, text(v))
		}
		json.NewEncoder(&out).Encode(array)
	}
	return bus.Result{Output: out.Bytes()}
}

func sleep(ctx context.Context, inv *bus.Invocation) bus.Result {
	words, err := inv.Words()
	if err != nil || len(words) != 1 {
		return bus.Fail(args.BadInput("it takes a number of seconds"))
	}
	seconds, _ := strconv.ParseFloat(words[0], 64)
	select {
	case <-time.After(time.Duration(seconds * float64(time.Second))):
	case <-ctx.Done():
	}
	return bus.Exit(0)
}

func exit(_ context.Context, inv *bus.Invocation) bus.Result {
	words, err := inv.Words()
	if err != nil || len(words) != 1 {
		return bus.Fail(args.BadInput("it takes a status"))
	}
	status, _ := strconv.Atoi(words[0])
	return bus.Exit(status)
}

// python is a Python that can run the examples; "": there is none.
var python = sync.OnceValue(func() string {
	for _, program := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(program, "-c", "import sys, msgpack; assert sys.version_info >= (3, 10)").Run() == nil {
			return program
		}
	}
	return ""
})

// TestScripts runs fbus conformance as its users do.
func TestScripts(t *testing.T) {
	clients, err := filepath.Abs("../../bus/testdata/clients")
	if err != nil {
		t.Fatal(err)
	}
	testbus.Scripts(t, func(name string) (bool, error) {
		switch name {
		case "soak":
			return os.Getenv("FBUS_SOAK") != "", nil
		case "python":
			return python() != "", nil
		case "perl":
			return exec.Command("perl", "-MData::MessagePack=1.00", "-e", "1").Run() == nil, nil
		}
		return false, fmt.Errorf("no condition %q", name)
	}, "CLIENTS="+clients, "PYTHON="+python())
}
