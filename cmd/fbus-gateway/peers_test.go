package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/testbus"

	"golang.org/x/sync/errgroup"
)

// start starts a program that runs until the test ends, and waits until it serves.
func (x *site) start(ready func() bool, words ...string) {
	x.t.Helper()
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), "FBUS_HOME="+filepath.Join(x.dir, "home"), "FBUS_STATE="+filepath.Join(x.dir, "state"), "FBUS_NODE="+filepath.Join(x.dir, "node"))
	if err := cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	testbus.Until(x.t, words[0]+" serves", ready)
}

func (x *site) write(name, text string, mode os.FileMode) string {
	x.t.Helper()
	path := filepath.Join(x.dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		x.t.Fatal(err)
	}
	return path
}

// listens reports whether somebody listens there.
func listens(network, addr string) bool {
	nc, err := net.Dial(network, addr)
	if err == nil {
		nc.Close()
	}
	return err == nil
}

// peer is one that is measured.
type peer struct {
	name string
	call func() error
}

// measure calls two peers in turns, so that what else the machine does slows both down: one call after the
// other, and 64 at a time. The ratio is the second one's time over that of the first.
func measure(b *testing.B, peers ...peer) {
	for _, crowd := range []int{1, 64} {
		b.Run(fmt.Sprint("outstanding=", crowd), func(b *testing.B) {
			round := func(p peer) time.Duration {
				began, each := time.Now(), new(errgroup.Group)
				for range crowd {
					each.Go(func() error { return errors.Join(p.call(), p.call()) })
				}
				if err := each.Wait(); err != nil {
					b.Fatal(p.name, err)
				}
				return time.Since(began)
			}
			took := make([]time.Duration, len(peers))
			for _, p := range peers {
				round(p) // connections and processes that are kept
			}
			for b.Loop() {
				for i, p := range peers {
					took[i] += round(p)
				}
			}
			for i, p := range peers {
				b.ReportMetric(took[i].Seconds()*1e6/float64(2*crowd*b.N), p.name+"-µs/call")
			}
			b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkOnce runs a script for each request, beside Debian's webhook. The limit is a ratio of 1.
func BenchmarkOnce(b *testing.B) {
	if _, err := exec.LookPath("webhook"); err != nil {
		b.Skip(err)
	}
	x := newSite(b)
	built := b.TempDir() // this binary is larger than theirs, and fbus starts anew for each call
	if out, err := exec.Command("go", "build", "-o", built, "fbus", "fbus/cmd/fbus-gateway").CombinedOutput(); err != nil {
		b.Skipf("fbus cannot be built here: %v: %s", err, out)
	}
	b.Setenv("PATH", built+":"+os.Getenv("PATH"))
	script := x.write("script", "#!/bin/sh\necho hello\n", 0o700)
	x.start(func() bool { return x.g.link.function("hello") != nil }, "fbus", "offer", "-q", "--slots", "64", "hello", "--", script)
	hooks := x.write("hooks.json", fmt.Sprintf(`[{"id":"hello","execute-command":%q,"include-command-output-in-response":true}]`, script), 0o600)
	port := freePort(b)
	x.start(func() bool { return listens("tcp", "127.0.0.1:"+port) }, "webhook", "-hooks", hooks, "-ip", "127.0.0.1", "-port", port)
	p, auth := x.process(nil), "Bearer "+x.token("ci", "hello")
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	defer tr.CloseIdleConnections()
	post := func(url string) func() error {
		return func() error {
			r, err := http.NewRequest("POST", url, nil)
			if err != nil {
				return err
			}
			r.Header.Set("Authorization", auth)
			resp, err := tr.RoundTrip(r)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if out, err := io.ReadAll(resp.Body); err != nil || string(out) != "hello\n" {
				return fmt.Errorf("%s %q %v", resp.Status, out, err)
			}
			return nil
		}
	}
	measure(b, peer{"webhook", post("http://127.0.0.1:" + port + "/hooks/hello")}, peer{"gateway", post("http://" + p.addr + "/call/hello")})
}

// freePort returns a port that was free just now.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// BenchmarkBulk moves 16 MiB a request, beside nginx as a proxy before a server that does the same. The
// limit is a ratio of 2.
func BenchmarkBulk(b *testing.B) {
	const size = 16 << 20
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if nginx, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			b.Skip(err)
		}
	}
	x := newSite(b)
	buf := make([]byte, 64<<10)
	source := func(w io.Writer) error {
		for range size / len(buf) {
			if _, err := w.Write(buf); err != nil {
				return err
			}
		}
		return nil
	}
	sink := func(r io.Reader) string {
		n, err := io.Copy(io.Discard, r)
		return fmt.Sprint(n, err)
	}
	x.offer(bus.Offer{Name: "source", Slots: 64}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		if err := source(inv.Stdout); err != nil {
			return bus.Fail(err)
		}
		return bus.Exit(0)
	})
	x.offer(bus.Offer{Name: "sink", Slots: 64}, func(_ context.Context, inv *bus.Invocation) bus.Result {
		return bus.Result{Output: []byte(sink(inv.Input))}
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "source") {
			source(w)
		} else {
			io.WriteString(w, sink(r.Body))
		}
	}))
	defer server.Close()
	p := x.process(nil)
	proxy := &process{socket: filepath.Join(x.dir, "nginx")}
	config := x.write("nginx.conf", fmt.Sprintf(`
		user root; daemon off; pid %[1]s/nginx.pid; error_log stderr crit; worker_processes 1;
		events {}
		http {
			access_log off; client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
			server {
				listen unix:%[2]s;
				client_max_body_size 0;
				location / { proxy_pass %[3]s; proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off; }
			}
		}
	`, x.dir, proxy.socket, server.URL), 0o600)
	x.start(func() bool { return listens("unix", proxy.socket) }, nginx, "-p", x.dir, "-c", config)
	for _, path := range []string{"source", "sink"} {
		b.Run(path, func(b *testing.B) {
			var peers []peer
			for _, to := range []struct {
				name string
				*process
			}{{"nginx", proxy}, {"gateway", p}} {
				client := to.client(b)
				peers = append(peers, peer{to.name, func() error {
					var body io.Reader
					if path == "sink" {
						body = io.LimitReader(&endless{}, size)
					}
					r, err := http.NewRequest("POST", "http://x/call/"+path, body)
					if err != nil {
						return err
					}
					if body != nil {
						r.ContentLength = size
					}
					resp, err := client.Do(r)
					if err != nil {
						return err
					}
					defer resp.Body.Close()
					if path == "source" {
						if got := sink(resp.Body); got != fmt.Sprint(int64(size), nil) {
							return fmt.Errorf("%s %s", resp.Status, got)
						}
						return nil
					}
					if out, err := io.ReadAll(resp.Body); err != nil || string(out) != fmt.Sprint(int64(size), nil) {
						return fmt.Errorf("%s %q %v", resp.Status, out, err)
					}
					return nil
				}})
			}
			measure(b, peers...)
		})
	}
}
