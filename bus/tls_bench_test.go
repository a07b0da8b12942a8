//go:build linux

package bus_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"path/filepath"
	"sort"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// BenchmarkCallTLS alternates a call of 64 bytes over TLS with one over the unix
// socket, through one node, at a worker on its machine: "ratio" is between
// the medians, 1.5 is its limit. With the worker over TLS, too, it is "far-ratio".
func BenchmarkCallTLS(b *testing.B) {
	n, err := node.New(node.Config{Network: "test"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(n.Close)
	connect := tlsConnector(b)
	local, far := connectTo(b, n, localPair(b)), connectTo(b, n, connect())
	echo := func(_ context.Context, inv *bus.Invocation) bus.Result {
		return bus.Result{Output: inv.Head()}
	}
	connectTo(b, n, localPair(b)).Offer(context.Background(), bus.Offer{Name: "near", Slots: 1}, echo)
	connectTo(b, n, connect()).Offer(context.Background(), bus.Offer{Name: "far", Slots: 1}, echo)
	kinds := []struct {
		client   *bus.Client
		function string
	}{{local, "near"}, {far, "near"}, {far, "far"}}
	times := make([][]time.Duration, len(kinds))
	args := args.List(string(make([]byte, 64)))
	for b.Loop() {
		for i, k := range kinds {
			t0 := time.Now()
			if _, err := k.client.Call(context.Background(), &bus.Request{Function: k.function, Args: args}); err != nil {
				b.Fatal(err)
			}
			times[i] = append(times[i], time.Since(t0))
		}
	}
	median := func(i int) float64 {
		sort.Slice(times[i], func(j, k int) bool { return times[i][j] < times[i][k] })
		return float64(times[i][len(times[i])/2])
	}
	b.ReportMetric(median(0)/1e3, "unix-µs")
	b.ReportMetric(median(1)/1e3, "tls-µs")
	b.ReportMetric(median(1)/median(0), "ratio")
	b.ReportMetric(median(2)/median(0), "far-ratio")
}

func connectTo(b *testing.B, n *node.Node, ends [2]net.Conn) *bus.Client {
	go n.ServeConn(ends[1], node.Peer{Caller: "uid:1"}) // ends with the connection
	c, err := bus.NewClient(context.Background(), ends[0], nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func localPair(b *testing.B) [2]net.Conn {
	return ends(b, "unix", filepath.Join(b.TempDir(), "s"))
}

func ends(b *testing.B, network, addr string) [2]net.Conn {
	l, err := net.Listen(network, addr)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial(network, l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	return [2]net.Conn{near, far}
}

// tlsConnector makes connections under a self-signed certificate.
func tlsConnector(b *testing.B) func() [2]net.Conn {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return func() [2]net.Conn {
		raw := ends(b, "tcp", "127.0.0.1:0")
		client := tls.Client(wire.NewSocket(raw[0]), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		server := tls.Server(wire.NewSocket(raw[1]), &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true})
		go client.Handshake()
		if err := server.Handshake(); err != nil {
			b.Fatal(err)
		}
		if err := client.Handshake(); err != nil {
			b.Fatal(err)
		}
		return [2]net.Conn{client, server}
	}
}
