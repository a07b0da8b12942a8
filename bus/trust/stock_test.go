package trust

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStockClients checks that OpenSSL and Python can use a reusable ticket unchanged.
func TestStockClients(t *testing.T) {
	c := &clock{t: time.Now()} // other programs use the real clock
	a := openTest(t, privateTemp(t), c)
	n := serve(t, a, c.now)
	text, err := issue(t, a, Request{Reusable: true, Rights: rights(t, "call:re?ize*", "offer:[^a]")}).Format()
	must(t, err)
	file := filepath.Join(t.TempDir(), "ci.ticket")
	must(t, os.WriteFile(file, text, 0o600))
	host, port, _ := strings.Cut(n.addr, ":")
	const python = `
import socket, ssl, sys
ticket, host, port = sys.argv[1:]
c = ssl.create_default_context(cafile=ticket)
c.verify_flags |= ssl.VERIFY_X509_STRICT
c.minimum_version = ssl.TLSVersion.TLSv1_3
c.load_cert_chain(ticket)
with c.wrap_socket(socket.create_connection((host, int(port)), 60), server_hostname="net.fbus.invalid") as s:
    s.sendall(b"x")
    print(s.recv(10).decode())
`
	for _, cmd := range []*exec.Cmd{
		exec.Command("python3", "-c", python, file, host, port),
		exec.Command("openssl", "s_client", "-connect", n.addr, "-cert", file, "-key", file, "-CAfile", file, "-tls1_3", "-alpn", ALPN,
			"-servername", "net.fbus.invalid", "-verify_hostname", "net.fbus.invalid", "-verify_return_error", "-quiet", "-no_ign_eof"),
	} {
		t.Run(cmd.Args[0], func(t *testing.T) {
			if _, err := exec.LookPath(cmd.Args[0]); err != nil {
				t.Skip(err)
			}
			in, err := cmd.StdinPipe()
			must(t, err)
			var out, errs strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &errs
			must(t, cmd.Start())
			in.Write([]byte("x"))
			select {
			case id := <-n.ids:
				if id.Rights.String() != "call re?ize*, offer [^a]" {
					t.Errorf("%+v", id)
				}
				<-n.handled
			case e := <-n.refused:
				t.Error(e)
			case <-time.After(time.Minute):
				t.Error("nobody came")
				cmd.Process.Kill()
			}
			// The client ends when the node hangs up. At an end of its input it may not read the
			// rest.
			if err := cmd.Wait(); strings.TrimSpace(out.String()) != "x" {
				t.Errorf("%q, %v, %s", out.String(), err, errs.String())
			}
		})
	}
}
