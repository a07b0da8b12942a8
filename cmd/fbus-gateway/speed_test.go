package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/tuning"
	"fbus/cmd/testbus"
)

// bare is a program that makes the same call for each request as the gateway, and does nothing else: what net/http
// permits. It serves at its second argument, for the node at its first.
func bare() {
	own, err := bus.Dial(context.Background(), bus.Unix(os.Args[1]), nil)
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	defer tuning.Start(memoryMark).Stop()
	log.Fatal(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if _, err := own.Call(r.Context(), &bus.Request{Function: "shout", Input: bytes.NewReader(in), Stdout: w}); err != nil {
			w.WriteHeader(http.StatusBadGateway)
		}
	})))
}

// processes starts a node, a gateway and a bare server, each a process of its own, and returns connections to the
// node and to the sockets of the others. f is offered at the node.
func processes(b *testing.B, f bus.Offer, serve bus.Handler) (node *bus.Client, gateway, plain *http.Transport) {
	dir := testbus.Dir(b)
	socket, served, simple := filepath.Join(dir, "node"), filepath.Join(dir, "gateway"), filepath.Join(dir, "bare")
	start := func(path string, words ...string) {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Env = append(os.Environ(), "FBUS_HOME="+filepath.Join(dir, "home"), "FBUS_STATE="+filepath.Join(dir, "state"))
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		testbus.Until(b, path, func() bool {
			c, err := net.Dial("unix", path)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
	dial := func() *bus.Client {
		c, err := bus.Dial(b.Context(), bus.Unix(socket), nil)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		return c
	}
	start(socket, "fbus", "serve", "-q", "--no-tcp", "--socket", socket)
	if _, err := dial().Offer(b.Context(), f, serve); err != nil {
		b.Fatal(err)
	}
	start(served, "fbus-gateway", "--node", socket, "--socket", served, "--listen", "127.0.0.1:0")
	start(simple, "fbus-bare", socket, simple)
	to := func(path string) *http.Transport {
		t := &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}}
		b.Cleanup(t.CloseIdleConnections)
		return t
	}
	return dial(), to(served), to(simple)
}

// BenchmarkCall calls over a kept connection, and with 64 outstanding, beside the same calls by the Go client and
// through a bare server. The node and the servers are processes of their own. Limits: 1.6 times as long as by the
// client, and a quarter of its rate; the bare server says how much of that net/http takes.
func BenchmarkCall(b *testing.B) {
	own, proxy, plain := processes(b, bus.Offer{Name: "shout", Slots: 64}, upper)
	client := func() error {
		_, err := own.Call(b.Context(), &bus.Request{Function: "shout", Input: strings.NewReader("hello"), Stdout: io.Discard})
		return err
	}
	through := func(transport *http.Transport) func() error {
		return func() error {
			r, err := http.NewRequest("POST", "http://gateway/call/shout", strings.NewReader("hello"))
			if err != nil {
				return err
			}
			resp, err := transport.RoundTrip(r)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if out, err := io.ReadAll(resp.Body); err != nil || string(out) != "HELLO" {
				return fmt.Errorf("%s %q %v", resp.Status, out, err)
			}
			return nil
		}
	}
	gateway, server := through(proxy), through(plain)
	testbus.Until(b, "the gateway is connected", func() bool { return gateway() == nil })
	for outstanding, name := range map[int]string{1: "one", 64: "64"} {
		b.Run(name, func(b *testing.B) {
			took := func(call func() error) time.Duration {
				at := time.Now()
				var wg sync.WaitGroup
				for range outstanding {
					wg.Go(func() {
						for range 50 {
							if err := call(); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				return time.Since(at)
			}
			var limit, least, ours time.Duration
			for b.Loop() {
				limit, least, ours = limit+took(client), least+took(server), ours+took(gateway)
			}
			calls := float64(50 * outstanding * b.N)
			b.ReportMetric(limit.Seconds()*1e6/calls, "client-µs/call")
			b.ReportMetric(least.Seconds()*1e6/calls, "bare-µs/call")
			b.ReportMetric(ours.Seconds()*1e6/calls, "gateway-µs/call")
			b.ReportMetric(least.Seconds()/limit.Seconds(), "bare-ratio")
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ours.Seconds()/limit.Seconds(), "ratio")
		})
	}
}

// BenchmarkToolCall calls a tool, beside the same job by POST /jobs and GET ?wait. The node and the gateway are
// processes of their own. The ratio should be below 2.
func BenchmarkToolCall(b *testing.B) {
	offer := bus.Offer{Name: "f", Slots: 1, Attributes: map[string]string{"tool": ""}}
	_, transport, _ := processes(b, offer, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
	x := &site{t: b, local: "http://gateway", http: transport}
	testbus.Until(b, "the tool", func() bool { return strings.Contains(x.tool("tools/list", "").body, `"fbus/function":"f"`) })
	tool := func() {
		if r := x.tool("tools/call", "f"); r.StatusCode != 200 || strings.Contains(r.body, "rror") {
			b.Fatal(r.Status, r.body)
		}
	}
	job := func() {
		r := x.do("POST", x.local+"/jobs/f", "")
		if r = x.do("GET", x.local+r.Header.Get("Location")+"?wait=30s", nil); r.StatusCode != 200 || !strings.Contains(r.body, `"done"`) {
			b.Fatal(r.Status, r.body)
		}
	}
	const times = 50 // in turns: the machine's speed drifts
	took := func(call func()) time.Duration {
		at := time.Now()
		for range times {
			call()
		}
		return time.Since(at)
	}
	var limit, ours time.Duration
	for b.Loop() {
		limit, ours = limit+took(job), ours+took(tool)
	}
	calls := float64(times * b.N)
	b.ReportMetric(limit.Seconds()*1e6/calls, "job-µs/call")
	b.ReportMetric(ours.Seconds()*1e6/calls, "tool-µs/call")
	b.ReportMetric(ours.Seconds()/limit.Seconds(), "ratio")
}
