package main

import (
	"context"
	"io"
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
	"fbus/cmd/testbus"
)

// processes starts a node and a gateway, each a process of its own, and returns connections to the node and
// to the gateway's socket. f is offered at the node.
func processes(b *testing.B, f bus.Offer, serve bus.Handler) (node *bus.Client, gateway *http.Transport) {
	dir := testbus.Dir(b)
	socket, served := filepath.Join(dir, "node"), filepath.Join(dir, "gateway")
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
	gateway = &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", served)
	}}
	b.Cleanup(gateway.CloseIdleConnections)
	return dial(), gateway
}

// BenchmarkCall calls over a kept connection, and with 64 outstanding, beside the same calls by the Go client.
// The node and the gateway are processes of their own. Limits: 1.6 times as long, a quarter of the rate.
func BenchmarkCall(b *testing.B) {
	own, transport := processes(b, bus.Offer{Name: "shout", Slots: 64}, upper)
	client := func() error {
		_, err := own.Call(b.Context(), &bus.Request{Function: "shout", Input: strings.NewReader("hello"), Stdout: io.Discard})
		return err
	}
	gateway := func() error {
		r, err := http.NewRequest("POST", "http://gateway/call/shout", strings.NewReader("hello"))
		if err != nil {
			return err
		}
		resp, err := transport.RoundTrip(r)
		if err != nil {
			return err
		}
		io.Copy(io.Discard, resp.Body)
		return resp.Body.Close()
	}
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
			var limit, ours time.Duration
			for b.Loop() {
				limit, ours = limit+took(client), ours+took(gateway)
			}
			calls := float64(50 * outstanding * b.N)
			b.ReportMetric(limit.Seconds()*1e6/calls, "client-µs/call")
			b.ReportMetric(ours.Seconds()*1e6/calls, "gateway-µs/call")
			b.ReportMetric(ours.Seconds()/limit.Seconds(), "ratio")
		})
	}
}

// BenchmarkToolCall calls a tool, beside the same job by POST /jobs and GET ?wait. The node and the gateway are
// processes of their own. The ratio should be below 2.
func BenchmarkToolCall(b *testing.B) {
	offer := bus.Offer{Name: "f", Slots: 1, Attributes: map[string]string{"tool": ""}}
	_, transport := processes(b, offer, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
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
