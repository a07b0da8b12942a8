package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// TestRevokedOverNATS: node b cannot reach the first node, but its mesh hears NATS. What is revoked at
// the first node is closed at b, and what somebody else publishes changes nothing there.
func TestRevokedOverNATS(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := startServer("127.0.0.1:0", &server.Options{})
	must(err)
	t.Cleanup(func() { stopServer(s) })
	d := newNodes(t, s.ClientURL())
	nc, err := nats.Connect(s.ClientURL())
	must(err)
	defer nc.Close()
	lists := make(chan *nats.Msg, 100)
	_, err = nc.ChanSubscribe("fbus.demo.trust", lists)
	must(err)
	must(nc.Flush())

	must(d.node("a"))
	between := newCable(t, d.ports["a"])
	must(d.node("b", "--address", between.Addr().String()))
	guest := d.ticket(t, "guest", "--call", "*")
	var client *bus.Client
	must(d.until(func() (err error) {
		client, err = bus.Dial(d.ctx, bus.TCP(d.ports["b"]), &bus.Options{Identity: find.ForTicket(guest)})
		return err
	}))
	defer client.Close()
	b := d.client("b")
	state := func() *trust.SecondInfo {
		t.Helper()
		info, err := infoOf(d.ctx, b)
		must(err)
		return info.Trust
	}
	between.set(true)
	must(d.until(func() error {
		if state().Away == "" {
			return args.Errorf(args.CodeInternal, "node b still reaches the first node")
		}
		return nil
	}))
	must(d.trial.mesh("b", d.ports["b"]))
	must(d.trial.mesh("a", d.ports["a"]))
	var old, last notice
	next := func() (n notice) {
		t.Helper()
		for {
			select {
			case msg := <-lists:
				if json.Unmarshal(msg.Data, &n); n.List != "" {
					return n
				}
			case <-time.After(20 * time.Second):
				t.Fatal("no list is published")
			}
		}
	}
	old = next()
	at := time.Now()
	must(d.run("a", nil, "revoke", "-q", "guest"))
	select {
	case <-client.Done():
		t.Logf("closed after %v", time.Since(at))
		if code(client.Err()) != args.CodeRevoked {
			t.Error(client.Err())
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a connection of the revoked ticket is not closed within 5 s")
	}
	for last = next(); last.Number == old.Number; last = next() {
	}
	was := state()
	if was.Number != last.Number || was.Revoked != 1 || was.From != trust.FromRelay || was.Away == "" {
		t.Errorf("%+v", was)
	}

	// Another key signs a list in the CA's name.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(last.Number + 1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
	}, &x509.Certificate{RawSubject: guest.CA.RawSubject, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: guest.CA.SubjectKeyId}, key)
	must(err)
	forged := notice{List: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))}
	publish := func(n notice) {
		n.From = "x"
		data, err := json.Marshal(n)
		must(err)
		must(nc.Publish("fbus.demo.trust", data))
	}
	publish(forged)
	var refused []string
	must(d.until(func() error {
		text, err := output(context.Background(), b, "fbus.log", args.JSON([]byte(`{"function":"fbus.trust"}`)))
		if err != nil {
			return err
		}
		refused = slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool { return !strings.Contains(line, `"refused"`) })
		if len(refused) == 0 {
			return args.Errorf(args.CodeInternal, "refused: %s", text)
		}
		return nil
	}))
	if i := state(); i.Number != was.Number || i.Revoked != was.Revoked {
		t.Errorf("%+v after %+v", i, was)
	}
	// A node whose list is older gets the newer one, though it does not ask.
	for len(lists) > 0 {
		<-lists
	}
	publish(old)
	for n := next(); n.Number != last.Number; n = next() {
	}

	// The server beside b hears of revocations from b, as it cannot reach the first node either.
	t.Setenv("FBUS_HOME", filepath.Join(d.dir, "b"))
	t.Setenv("FBUS_NODE", d.sockets["b"])
	gone := make(chan error, 10)
	relay, err := enter(serveNATS(t), d.ticket(t, "relay", "--relay"), gone)
	must(err)
	defer relay.Close()
	must(d.run("a", nil, "revoke", "-q", "relay"))
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Error("a revoked mesh stays at the NATS server beside b")
	}
}
