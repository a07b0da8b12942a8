package testscripts

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// farBus is a bus whose node listens on TCP too, and a ticket for whatever it has.
type farBus struct {
	*bus
	addr, ticket string
}

func newFarBus(b *testing.B) *farBus {
	s := &bus{b: b, fbus: release(b), socket: filepath.Join(b.TempDir(), "bus.sock")}
	f := &farBus{bus: s, ticket: filepath.Join(filepath.Dir(s.socket), "ticket")}
	f.node = s.command("serve", "--socket", s.socket, "--listen", "127.0.0.1:0", "--network", "bench")
	f.addr = regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(until(b, f.node, "holders only"))
	invite := s.command("invite", "-q", "--call", "*", "--reusable", "--address", f.addr, "-o", f.ticket)
	if out, err := invite.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return f
}

// far is a command that reaches the node over TLS.
func (f *farBus) far(args ...string) *exec.Cmd {
	cmd := f.command(args...)
	cmd.Env = append(cmd.Env, "FBUS_NODE=", "FBUS_TICKET="+f.ticket)
	return cmd
}

// BenchmarkCallTLS is a whole fbus call over TLS, its handshake included, beside
// the same over the unix socket: 2 is the limit of "ratio".
func BenchmarkCallTLS(b *testing.B) {
	f := newFarBus(b)
	f.background("offering", "offer", "resident", "--resident", "lines", "--", "perl", "-pe", "BEGIN { $| = 1 }")
	f.background("offering", "offer", "once", "--", "cat")
	for _, name := range []string{"once", "resident"} {
		b.Run(name, func(b *testing.B) {
			call := func(cmd *exec.Cmd) *exec.Cmd {
				cmd.Stdin = strings.NewReader("hello")
				return cmd
			}
			pair(b, func() *exec.Cmd { return call(f.far("call", name)) }, func() *exec.Cmd { return call(f.command("call", name)) })
		})
	}
}
