package node_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"fbus/bus"
	"fbus/bus/node"
)

// BenchmarkWorkers keeps 64 calls outstanding with 4, 100 and 1000 workers on connections of their
// own. The floor is a program that passes messages of the same size from one connection to the
// worker that has been idle longest, and nothing else. "kept" is the rate over that with 4
// workers; the share that fbus keeps is at least 0.8 of the share that the floor keeps.
func BenchmarkWorkers(b *testing.B) {
	const outstanding, batch = 64, 20000
	counts := []int{4, 100, 1000}
	ours, floor := map[int][]float64{}, map[int][]float64{}
	for b.Loop() {
		for _, workers := range counts { // in turns: the machine's speed drifts
			ours[workers] = append(ours[workers], workersRate(b, workers, batch, outstanding))
			floor[workers] = append(floor[workers], floorRate(b, workers, batch, outstanding))
		}
	}
	for _, workers := range counts {
		o, f := median(ours[workers]), median(floor[workers])
		b.ReportMetric(o, fmt.Sprintf("calls/s-%d", workers))
		b.ReportMetric(f, fmt.Sprintf("floor/s-%d", workers))
		if workers > counts[0] {
			b.ReportMetric(o/median(ours[counts[0]]), fmt.Sprintf("kept-%d", workers))
			b.ReportMetric(f/median(floor[counts[0]]), fmt.Sprintf("floor-kept-%d", workers))
		}
	}
}

// workersRate returns how many calls a second a node passes on.
func workersRate(b *testing.B, workers, batch, outstanding int) float64 {
	n, err := node.New(node.Config{Network: "test"})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	path := filepath.Join(b.TempDir(), "bus.sock")
	l, err := node.Listen(path, false)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go n.Serve(l) // ends with the listener
	for range workers {
		c, err := bus.Dial(context.Background(), bus.Unix(path), nil)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		offerFunc(b, c, "echo", outstanding, echo)
	}
	c := dial(b, path)
	defer c.Close()
	return callRate(b, c, batch, outstanding)
}

// floorRate returns how many messages a second the floor passes on.
func floorRate(b *testing.B, workers, batch, outstanding int) float64 {
	path := filepath.Join(b.TempDir(), "floor.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	connect := func() (near, far net.Conn) {
		near, err := net.Dial("unix", path)
		if err == nil {
			far, err = l.Accept()
		}
		if err != nil {
			b.Fatal(err)
		}
		return near, far
	}
	near, caller := connect()
	defer near.Close()
	defer caller.Close()
	idle := make(chan net.Conn, workers*outstanding) // a connection for each slot, in the order of their use
	var conns []net.Conn
	var back sync.Mutex // protects writes to the caller
	for range workers {
		worker, far := connect()
		defer worker.Close()
		defer far.Close()
		go func() { // the worker; ends with its connection
			in, buf := bufio.NewReaderSize(worker, 64<<10), make([]byte, callSize)
			for {
				if _, err := io.ReadFull(in, buf); err != nil {
					return
				}
				worker.Write(buf)
			}
		}()
		go func() { // takes its answers; ends with its connection
			in, buf := bufio.NewReaderSize(far, 64<<10), make([]byte, callSize)
			for {
				if _, err := io.ReadFull(in, buf); err != nil {
					return
				}
				back.Lock()
				caller.Write(buf)
				back.Unlock()
				idle <- far
			}
		}()
		conns = append(conns, far)
	}
	for range outstanding {
		for _, far := range conns {
			idle <- far
		}
	}
	go func() { // passes messages on; ends with the caller's connection
		in, buf := bufio.NewReaderSize(caller, 64<<10), make([]byte, callSize)
		for {
			if _, err := io.ReadFull(in, buf); err != nil {
				return
			}
			(<-idle).Write(buf)
		}
	}()
	return relayRate(b, near, batch, outstanding)
}
