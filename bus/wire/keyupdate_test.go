package wire

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"strings"
	"testing"
)

// records are TLS 1.3 by hand, in one direction: crypto/tls answers a KeyUpdate, but
// asks for none.
type records struct {
	secret []byte
	seq    uint64
}

const (
	recordHandshake = 22
	recordData      = 23
)

// expand is HKDF-Expand-Label of RFC 8446, section 7.1, without a context.
func (r *records) expand(label string, n int) []byte {
	label = "tls13 " + label
	info := append(binary.BigEndian.AppendUint16(nil, uint16(n)), byte(len(label)))
	out, err := hkdf.Expand(sha256.New, r.secret, string(info)+label+"\x00", n)
	if err != nil {
		panic(err)
	}
	return out
}

// next is the cipher and the nonce for one record.
func (r *records) next() (cipher.AEAD, []byte) {
	block, err := aes.NewCipher(r.expand("key", 16))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := r.expand("iv", 12)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^r.seq)
	r.seq++
	return aead, nonce
}

// renew goes on to the next key.
func (r *records) renew() { *r = records{secret: r.expand("traffic upd", 32)} }

func (r *records) seal(typ byte, p []byte) []byte {
	aead, nonce := r.next()
	head := binary.BigEndian.AppendUint16([]byte{recordData, 3, 3}, uint16(len(p)+1+aead.Overhead()))
	return append(head, aead.Seal(nil, nonce, append(bytes.Clone(p), typ), head)...)
}

func (r *records) read(t *testing.T, from io.Reader) (typ byte, p []byte) {
	t.Helper()
	head := make([]byte, 5)
	if _, err := io.ReadFull(from, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(from, body); err != nil {
		t.Fatal(err)
	}
	aead, nonce := r.next()
	p, err := aead.Open(nil, nonce, body, head)
	if err != nil {
		t.Fatal(err)
	}
	return p[len(p)-1], p[:len(p)-1]
}

// TestKeyUpdate: a peer that asks for new keys is answered though nothing is to be
// sent, and goes on with the new ones in both directions.
func TestKeyUpdate(t *testing.T) {
	near, far := pair(t, "tcp")
	defer near.Close()
	server, out, in := sharedSecrets(t, near, far)
	conn := NewConn(server, nil)
	got := make(chan []byte, 4)
	served := make(chan error, 1)
	go func() { served <- conn.Serve(swallow{got}, anyFrame) }()

	data := func(text string) []byte { return Append(nil, &DataFrame{ID: 1, Payload: []byte(text)}) }
	keyUpdate := func(ask byte) []byte { return []byte{24, 0, 0, 1, ask} }
	near.Write(append(out.seal(recordData, data("one")), out.seal(recordHandshake, keyUpdate(1))...))
	out.renew()
	if p := <-got; string(p) != "one" {
		t.Errorf("%q", p)
	}
	if typ, p := in.read(t, near); typ != recordHandshake || !bytes.Equal(p, keyUpdate(0)) {
		t.Errorf("record of type %d: %x", typ, p)
	}
	in.renew()
	near.Write(out.seal(recordData, data("two")))
	if p := <-got; string(p) != "two" {
		t.Errorf("%q", p)
	}
	conn.Send(&EOFFrame{ID: 7})
	if typ, p := in.read(t, near); typ != recordData || !bytes.Equal(p, Append(nil, &EOFFrame{ID: 7})) {
		t.Errorf("record of type %d: %x", typ, p)
	}

	// Who asks for nothing else is not answered for ever.
	var flood []byte
	for range 40 {
		flood = append(flood, out.seal(recordHandshake, keyUpdate(1))...)
		out.renew()
	}
	near.Write(flood)
	if err := <-served; err == nil {
		t.Error("nothing but key updates is no error")
	}
}

// sharedSecrets is a handshake whose client's keys are known afterwards.
func sharedSecrets(t *testing.T, near, far net.Conn) (server *tls.Conn, out, in *records) {
	t.Helper()
	var log bytes.Buffer
	client := tls.Client(near, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, KeyLogWriter: &log})
	server = tls.Server(NewSocket(far), &tls.Config{Certificates: []tls.Certificate{throwAway()}, SessionTicketsDisabled: true})
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if client.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("no AES in this machine: another cipher was chosen")
	}
	secrets := map[string][]byte{}
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); len(f) == 3 {
			secrets[f[0]], _ = hex.DecodeString(f[2])
		}
	}
	return server, &records{secret: secrets["CLIENT_TRAFFIC_SECRET_0"]}, &records{secret: secrets["SERVER_TRAFFIC_SECRET_0"]}
}
