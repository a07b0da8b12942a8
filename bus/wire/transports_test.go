package wire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// noneLeft returns what waits until all goroutines have ended that began since.
func noneLeft(t testing.TB) (wait func()) {
	before := goleak.IgnoreCurrent()
	return func() {
		for end := time.Now().Add(time.Minute); ; {
			err := goleak.Find(before)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Error(err)
				return
			}
		}
	}
}

// transports are what the tests of Conn run over. pair knows two more: "tcp", and
// "bytewise", which is TLS whose ciphertext comes one byte at a time.
var transports = []string{"pipe", "unix", "tls"}

// pair connects two ends. The far one is for a Conn.
func pair(t testing.TB, kind string) (near, far net.Conn) {
	t.Helper()
	switch kind {
	case "pipe":
		return net.Pipe()
	case "unix":
		return streamPair(t, "unix", t.TempDir()+"/s")
	case "tcp":
		return streamPair(t, "tcp", "127.0.0.1:0")
	}
	near, far = streamPair(t, "tcp", "127.0.0.1:0")
	if kind == "bytewise" {
		near = bytewise{near}
	}
	return handshake(t, near, NewSocket(far))
}

func streamPair(t testing.TB, network, addr string) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// handshake makes TLS of both ends.
func handshake(t testing.TB, near, far net.Conn) (client, server *tls.Conn) {
	t.Helper()
	client = tls.Client(near, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
	server = tls.Server(far, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{throwAway()}, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	})
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return client, server
}

// throwAway is a self-signed certificate.
var throwAway = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// bytewise writes every byte by itself.
type bytewise struct{ net.Conn }

func (b bytewise) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := b.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}
