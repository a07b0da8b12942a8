package node_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"fbus/bus/node"
)

// TestDismissedPeerGoes: a peer that was turned away in the handshake, and stays
// silently, is closed within a moment, and takes no handshake's place until then.
func TestDismissedPeerGoes(t *testing.T) {
	n, _ := start(t, node.Config{})
	everybody.open()
	addr := listenTCP(t, n)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "GET / HTTP/1.0\r\n\r\n")
	if got, err := io.ReadAll(nc); err != nil || !strings.HasPrefix(string(got), "HTTP/1.0 400 ") {
		t.Fatalf("%q, error %v", got, err)
	}
	dialTLS(t, addr, everybody.ticket.ClientConfig(nil))
	// Once it is closed, the kernel answers with a reset. Bytes sent before that are
	// dropped, and too few to make the node close for their number.
	eventually(t, "the node closes a peer that it has turned away", func() bool {
		_, err := nc.Write([]byte("x"))
		return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
	})
}
