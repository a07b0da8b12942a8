package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/cmd/companion"
)

// trial is a mesh on this machine, for as long as demo runs.
type trial struct {
	ctx     context.Context
	dir     string
	fbus    string
	nats    string
	out     io.Writer
	running []*exec.Cmd
	sockets map[string]string // of nodes
	ports   map[string]string // where they listen
}

// demo runs three nodes and their meshes, calls across them, and removes all of it.
func demo(ctx context.Context, stdout io.Writer) (err error) {
	runtime.LockOSThread() // what is started ends with the thread: see start
	defer runtime.UnlockOSThread()
	d := &trial{ctx: ctx, out: stdout, sockets: map[string]string{}, ports: map[string]string{}}
	if d.fbus, err = companion.Fbus(); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "fbus-mesh-"); err != nil {
		return err
	}
	defer func() {
		d.stop()
		if gone := os.RemoveAll(d.dir); err == nil {
			err = gone
		}
	}()
	addr, err := freePort()
	if err != nil {
		return err
	}
	d.nats = "tls://" + addr
	fmt.Fprintf(d.out, "Nodes a, b and c; a is the network's first one, and has a NATS server beside it, %s.\n", d.nats)
	for _, name := range []string{"a", "b", "c"} {
		if err := d.site(name); err != nil {
			return err
		}
	}
	fmt.Fprintln(d.out, "Node b offers hello. Each node offers nap, one call at a time.")
	if err := d.start("b", "offer", "-q", "--slots", "2", "hello", "--", "sh", "-c", `echo "hello $1, from node b to $FBUS_CALLER"`, "sh", "{1}"); err != nil {
		return err
	}
	for name := range d.sockets {
		if err := d.start(name, "offer", "-q", "--slots", "1", "nap", "--", "sleep", "1"); err != nil {
			return err
		}
	}
	if err := d.await("a", "hello", 0, 2); err != nil {
		return err
	}
	if err := d.await("a", "nap", 1, 2); err != nil {
		return err
	}
	for _, words := range [][]string{
		{"call", "hello", "world"},
		{"ls"},
		{"status"},
		{"map", "-j", "3", "nap", "1", "2", "3"},
	} {
		if err := d.show("a", words...); err != nil {
			return err
		}
	}
	return nil
}

// site starts a node and its mesh.
func (d *trial) site(name string) error {
	if err := d.node(name); err != nil {
		return err
	}
	if name == "a" {
		addr := strings.TrimPrefix(d.nats, "tls://")
		if err := d.start("a", "mesh", "-q", "server", "--listen", addr); err != nil {
			return err
		}
		if err := d.until(func() error {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err
		}); err != nil {
			return err
		}
	}
	return d.mesh(name, d.ports[name])
}

// mesh starts the mesh of a node that others reach at addr.
func (d *trial) mesh(name, addr string) error {
	return d.start(name, "mesh", "-q", "--name", name, "--advertise", addr, d.nats)
}

// node starts a node. flags are for the invitation of one that is not the first.
func (d *trial) node(name string, flags ...string) error {
	if name != "a" {
		ticket := filepath.Join(d.dir, name+".ticket")
		if err := d.run("a", nil, append([]string{"invite", "-q", "--for-node", "--name", name, "-o", ticket}, flags...)...); err != nil {
			return err
		}
		if err := d.run(name, nil, "join", "-q", ticket); err != nil {
			return err
		}
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	socket := filepath.Join(d.dir, name+".sock")
	if err := d.start(name, "serve", "-q", "--network", "demo", "--socket", socket, "--listen", port); err != nil {
		return err
	}
	if err := d.until(func() error {
		c, err := bus.Dial(d.ctx, bus.Unix(socket), nil)
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		return err
	}
	d.sockets[name], d.ports[name] = socket, port
	return nil
}

// until tries again and again, for 10 seconds.
func (d *trial) until(try func() error) error {
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := try()
		if err == nil || time.Now().After(until) || d.ctx.Err() != nil {
			return err
		}
	}
}

// await waits until a node knows of certain slots of a function, at its workers and at other nodes.
func (d *trial) await(name, function string, here, elsewhere int) error {
	c, err := bus.Dial(d.ctx, bus.Unix(d.sockets[name]), nil)
	if err != nil {
		return err
	}
	defer c.Close()
	return d.until(func() error {
		text, err := output(d.ctx, c, "fbus.functions", args.List(function))
		if err != nil {
			return err
		}
		var i bus.FunctionInfo
		if len(text) > 0 {
			err = json.Unmarshal(text, &i)
		}
		if err == nil && (i.Slots != here || i.Elsewhere != elsewhere) {
			err = args.Errorf(args.CodeInternal, "node %s knows of %d+%d slots of %s, not of %d+%d", name, i.Slots, i.Elsewhere, function, here, elsewhere)
		}
		return err
	})
}

// freePort returns an address of this machine that nobody listens at.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// command is fbus as the user of a node.
func (d *trial) command(name string, words ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.ctx, d.fbus, words...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "FBUS_") })
	cmd.Env = append(cmd.Env, "FBUS_HOME="+filepath.Join(d.dir, name), "FBUS_STATE="+filepath.Join(d.dir, name+".state"))
	if socket := d.sockets[name]; socket != "" {
		cmd.Env = append(cmd.Env, "FBUS_NODE="+socket)
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd
}

// start starts a command that runs until stop.
func (d *trial) start(name string, words ...string) error {
	cmd := d.command(name, words...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	d.running = append(d.running, cmd)
	return nil
}

// run runs a command, and returns what is wrong with it.
func (d *trial) run(name string, stdout io.Writer, words ...string) error {
	cmd := d.command(name, words...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	if err := cmd.Run(); err != nil {
		return args.Errorf(args.CodeInternal, "fbus %s: %v: %s", strings.Join(words, " "), err, stderr.String())
	}
	return nil
}

// show runs a command as its user would, with its output.
func (d *trial) show(name string, words ...string) error {
	fmt.Fprintf(d.out, "%s$ fbus %s\n", name, strings.Join(words, " "))
	began := time.Now()
	if err := d.run(name, d.out, words...); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "(%v)\n", time.Since(began).Round(time.Millisecond))
	return nil
}

// stop ends what was started, the last first.
func (d *trial) stop() {
	for _, cmd := range slices.Backward(d.running) {
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
	}
}
