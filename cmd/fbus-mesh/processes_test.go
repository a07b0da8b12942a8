package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus"

	"github.com/nats-io/nats-server/v2/server"
)

// processes is nodes of one network and their meshes, each a process of its own that can be
// killed, and a NATS server in this one.
type processes struct {
	*trial
	t      testing.TB
	server *server.Server
	serves map[string]*exec.Cmd
	meshes map[string]*exec.Cmd
}

// newProcesses starts nodes, and a mesh beside each.
func newProcesses(t testing.TB, names ...string) *processes {
	t.Helper()
	s, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := newNodes(t, s.ClientURL(), names...)
	d.server = s
	t.Cleanup(func() { stopServer(d.server) })
	for _, name := range names {
		d.mesh(name)
	}
	return d
}

// newNodes starts nodes without meshes.
func newNodes(t testing.TB, urls string, names ...string) *processes {
	t.Helper()
	dir, err := os.MkdirTemp("", "mesh")
	if err != nil {
		t.Fatal(err)
	}
	d := &processes{
		trial:  &trial{ctx: context.Background(), dir: dir, fbus: "fbus", nats: urls, out: io.Discard, sockets: map[string]string{}, ports: map[string]string{}},
		t:      t,
		serves: map[string]*exec.Cmd{}, meshes: map[string]*exec.Cmd{},
	}
	t.Cleanup(func() {
		d.stop()
		os.RemoveAll(dir)
	})
	for _, name := range names {
		d.serve(name)
	}
	return d
}

// serve starts a node, and waits for it.
func (d *processes) serve(name string) {
	d.t.Helper()
	socket := filepath.Join(d.dir, name+".sock")
	d.serves[name] = d.begin(name, "serve", "-q", "--network", "t", "--no-tcp", "--socket", socket)
	d.sockets[name] = socket
	d.client(name)
}

// mesh starts the mesh of a node.
func (d *processes) mesh(name string, flags ...string) {
	d.t.Helper()
	d.meshes[name] = d.begin(name, append([]string{"mesh", "-q", "--name", name, d.nats}, flags...)...)
}

// freeURLs returns URLs at which NATS servers can listen.
func freeURLs(t testing.TB, count int) (urls []string) {
	t.Helper()
	for range count {
		addr, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		urls = append(urls, "nats://"+addr)
	}
	return urls
}

// natsMember starts one of the NATS servers of a cluster, in a process of its own.
func (d *processes) natsMember(i int, urls, routes []string) *exec.Cmd {
	d.t.Helper()
	path := filepath.Join(d.dir, fmt.Sprint("nats", i, ".conf"))
	text := fmt.Sprintf("server_name: n%d\nlisten: %q\ncluster { name: t, listen: %q, routes: [ %s ] }\n",
		i, strings.TrimPrefix(urls[i], "nats://"), strings.TrimPrefix(routes[i], "nats://"), strings.Join(routes, ", "))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	cmd := d.command("nats", path)
	var err error
	if cmd.Path, err = exec.LookPath("nats-server"); err != nil {
		d.t.Fatal(err)
	}
	cmd.Args[0], cmd.Stderr = "nats-server", os.Stderr
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.running = append(d.running, cmd)
	return cmd
}

// begin starts a command that runs until it is killed, or until the end of the test.
func (d *processes) begin(name string, words ...string) *exec.Cmd {
	d.t.Helper()
	if err := d.start(name, words...); err != nil {
		d.t.Fatal(err)
	}
	return d.running[len(d.running)-1]
}

// offer offers a function at a node, with one slot, and waits until it is there. The program is
// a shell script.
func (d *processes) offer(name, function, script string, flags ...string) *exec.Cmd {
	d.t.Helper()
	words := append([]string{"offer", "-q", "--slots", "1", "--grace", "200ms"}, flags...)
	cmd := d.begin(name, append(words, function, "--", "sh", "-c", script)...)
	d.slots(name, function, 1, 0)
	return cmd
}

// client connects to a node.
func (d *processes) client(name string) *bus.Client {
	d.t.Helper()
	var c *bus.Client
	if err := d.until(func() (err error) {
		c, err = bus.Dial(d.ctx, bus.Unix(d.sockets[name]), &bus.Options{Name: "test"})
		return err
	}); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}

// slots waits until a node knows of certain slots of a function, here and elsewhere.
func (d *processes) slots(name, function string, here, elsewhere int) {
	d.t.Helper()
	if err := d.await(name, function, here, elsewhere); err != nil {
		d.t.Fatal(err)
	}
}

// kill kills a process, and waits for its end.
func (d *processes) kill(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// running is a command whose end is of interest.
type ending struct {
	cmd    *exec.Cmd
	out    bytes.Buffer
	ended  chan struct{}
	at     time.Time // when it has ended
	status int
}

// fbus runs a command.
func (d *processes) fbusRuns(name string, words ...string) *ending {
	d.t.Helper()
	e := &ending{cmd: d.command(name, words...), ended: make(chan struct{})}
	e.cmd.Stdout, e.cmd.Stderr = &e.out, &e.out
	if err := e.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { e.cmd.Process.Kill(); <-e.ended })
	go func() { // ends with the command
		e.cmd.Wait()
		e.at, e.status = time.Now(), e.cmd.ProcessState.ExitCode()
		close(e.ended)
	}()
	return e
}

// ends waits for the end of a command, and checks its status and how long after a moment it
// ended.
func (d *processes) ends(what string, e *ending, status int, after time.Time, within time.Duration) {
	d.t.Helper()
	select {
	case <-e.ended:
	case <-time.After(30 * time.Second):
		d.t.Fatalf("%s: %v goes on", what, e.cmd.Args)
	}
	if e.status != status {
		d.t.Errorf("%s: %v ends with %d, want %d: %s", what, e.cmd.Args, e.status, status, &e.out)
	}
	if took := e.at.Sub(after); within > 0 && took > within {
		d.t.Errorf("%s: %v ends after %v, want %v", what, e.cmd.Args, took, within)
	}
}

// file waits until a file is there, and returns it.
func (d *processes) file(name string) string {
	d.t.Helper()
	var text []byte
	if err := d.until(func() (err error) {
		if text, err = os.ReadFile(filepath.Join(d.dir, name)); err == nil && !bytes.HasSuffix(text, []byte("\n")) {
			return io.ErrUnexpectedEOF
		}
		return err
	}); err != nil {
		d.t.Fatal(err)
	}
	return string(text)
}

// gone waits until no process has a pid of a file any more.
func (d *processes) gone(what, name string) {
	d.t.Helper()
	for pid := range bytes.FieldsSeq([]byte(d.file(name))) {
		var n int
		fmt.Sscan(string(pid), &n)
		if err := d.until(func() error {
			if err := syscall.Kill(n, 0); err == nil {
				return fmt.Errorf("process %d runs", n)
			}
			return nil
		}); err != nil {
			d.t.Errorf("%s: %v", what, err)
		}
	}
	os.Remove(filepath.Join(d.dir, name))
}
