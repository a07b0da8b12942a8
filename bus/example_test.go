//go:build linux

package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
)

// exampleNode is what `fbus serve` runs, for the examples.
func exampleNode() (path string, stop func()) {
	dir, err := os.MkdirTemp("", "fbus")
	if err != nil {
		log.Fatal(err)
	}
	path = filepath.Join(dir, "bus.sock")
	n, err := node.New(node.Config{Network: "example"})
	if err != nil {
		log.Fatal(err)
	}
	l, err := node.Listen(path, false)
	if err != nil {
		log.Fatal(err)
	}
	go n.Serve(l)
	return path, func() {
		l.Close()
		n.Close()
		os.RemoveAll(dir)
	}
}

func ExampleConnect() {
	path, stop := exampleNode()
	defer stop()
	os.Setenv("FBUS_NODE", path) // without it: the socket of this user's node, or a joined network
	defer os.Unsetenv("FBUS_NODE")

	c, err := bus.Connect(context.Background(), &bus.Options{Wait: bus.WaitFor(time.Minute)})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, network := c.Node()
	fmt.Println("network", network)
	// Output:
	// network example
}

func ExampleDial() {
	path, stop := exampleNode() // yours is at /tmp/functionbus.PID.sock
	defer stop()

	c, err := bus.Dial(context.Background(), bus.Unix(path), &bus.Options{Network: "example"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, network := c.Node()
	fmt.Println("network", network)

	_, err = bus.Dial(context.Background(), bus.Unix(path), &bus.Options{Network: "other"})
	var e *bus.Error
	if errors.As(err, &e) {
		fmt.Println(e.Code)
	}
	// Output:
	// network example
	// wrong_network
}

func ExampleClient_Call() {
	path, stop := exampleNode()
	defer stop()
	c, err := bus.Dial(context.Background(), bus.Unix(path), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	c.Offer(context.Background(), bus.Offer{Name: "upper", Slots: 1}, upper)

	var out bytes.Buffer
	res, err := c.Call(context.Background(), &bus.Request{
		Function: "upper",
		Input:    strings.NewReader("hello bus"),
		Stdout:   &out,
		Stderr:   os.Stderr,
	})
	fmt.Println(out.String(), res.Status, err)

	_, err = c.Call(context.Background(), &bus.Request{Function: "lower"})
	fmt.Println(errors.Is(err, bus.ErrNoFunction), err)
	// Output:
	// HELLO BUS 0 <nil>
	// true lower: no such function
}

// upper is a handler: it streams its input back, in capitals.
func upper(ctx context.Context, inv *bus.Invocation) bus.Result {
	buf := make([]byte, 4096)
	for {
		n, err := inv.Input.Read(buf)
		inv.Stdout.Write(bytes.ToUpper(buf[:n]))
		if err == io.EOF {
			return bus.Result{} // success
		}
		if err != nil { // cancelled: nobody waits any more
			return bus.Exit(1)
		}
	}
}

func ExampleClient_Offer() {
	path, stop := exampleNode()
	defer stop()
	c, err := bus.Dial(context.Background(), bus.Unix(path), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	greet := func(ctx context.Context, inv *bus.Invocation) bus.Result {
		words, err := inv.Words()
		if err != nil || len(words) != 1 {
			return bus.Fail(&bus.Error{Code: args.CodeBadInput, Message: "greet takes one name"})
		}
		return bus.Result{Output: []byte("hello " + words[0] + "\n")}
	}
	off, err := c.Offer(context.Background(), bus.Offer{Name: "greet", Slots: 4, Description: "says hello"}, greet)
	if err != nil {
		log.Fatal(err)
	}
	c.Call(context.Background(), &bus.Request{Function: "greet", Args: bus.List("Bob"), Stdout: os.Stdout})
	_, err = c.Call(context.Background(), &bus.Request{Function: "greet", Stdout: os.Stdout})
	fmt.Println(err)
	off.Withdraw(context.Background())
	_, err = c.Call(context.Background(), &bus.Request{Function: "greet", Args: bus.List("Bob"), Stdout: os.Stdout})
	fmt.Println(err)
	// Output:
	// hello Bob
	// greet takes one name
	// greet: no such function
}

func ExampleWorker() {
	path, stop := exampleNode()
	defer stop()

	os.Setenv("FBUS_NODE", path)
	defer os.Unsetenv("FBUS_NODE")
	w := &bus.Worker{Options: &bus.Options{Name: "worker-1"}, Notice: log.Printf}
	w.Add(bus.Offer{Name: "upper", Slots: 4}, upper)
	if err := w.Start(context.Background()); err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }() // finds a node again when this one goes

	c, err := bus.Dial(context.Background(), bus.Unix(path), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	res, err := c.Call(context.Background(), &bus.Request{Function: "upper", Input: strings.NewReader("a\n"), Stdout: os.Stdout})
	fmt.Println(res.Worker, err)

	cancel() // on SIGTERM: take no more, finish what runs, go
	<-done
	w.Drain(context.Background())
	w.Close()
	// Output:
	// A
	// worker-1 <nil>
}
