package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"fbus/bus/vectors"
)

// bed is the node that a program is judged with, and the program.
type bed struct {
	o    *options
	dir  string
	l    *net.UnixListener
	done chan struct{} // closed when the program has ended

	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr bytes.Buffer
	all            []*vectors.Conn
	serial         int // of connections
}

// newBed listens, and starts the command with those words. The program's input is a pipe.
func newBed(ctx context.Context, o *options, words ...string) (*bed, error) {
	dir, err := os.MkdirTemp("", "fbus-conformance-")
	if err != nil {
		return nil, err
	}
	b := &bed{o: o, dir: dir, done: make(chan struct{})}
	path := filepath.Join(dir, "n.sock")
	if b.l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err == nil {
		err = b.start(ctx, append(os.Environ(), "FBUS_NODE="+path), append(o.cmd[1:len(o.cmd):len(o.cmd)], words...))
	}
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bed) start(ctx context.Context, env, words []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	b.stdin = w
	b.cmd = exec.CommandContext(ctx, b.o.cmd[0], words...)
	b.cmd.Env, b.cmd.Stdin, b.cmd.Stdout, b.cmd.Stderr = env, r, &b.stdout, &b.stderr
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	b.cmd.WaitDelay = time.Second
	if err := b.cmd.Start(); err != nil {
		b.cmd = nil
		return err
	}
	go func() { // ends with the program
		b.cmd.Wait()
		close(b.done)
	}()
	return nil
}

// close ends the program and everything that it has started in its group.
func (b *bed) close() {
	for _, c := range b.all {
		c.Close()
	}
	if b.stdin != nil {
		b.stdin.Close()
	}
	if b.cmd != nil {
		b.signal(syscall.SIGTERM)
		select {
		case <-b.done:
		case <-time.After(2 * time.Second):
		}
		b.signal(syscall.SIGKILL)
		<-b.done
	}
	if b.l != nil {
		b.l.Close()
	}
	os.RemoveAll(b.dir)
}

func (b *bed) signal(s syscall.Signal) { syscall.Kill(-b.cmd.Process.Pid, s) }

// accept waits for a connection of the program.
func (b *bed) accept() (*vectors.Conn, error) {
	b.l.SetDeadline(time.Now().Add(b.o.limit))
	accepted := make(chan struct{})
	defer close(accepted)
	go func() { // ends with the wait
		select {
		case <-b.done:
			b.l.SetDeadline(time.Now())
		case <-accepted:
		}
	}()
	nc, err := b.l.Accept()
	if err != nil {
		select {
		case <-b.done:
			err = fmt.Errorf("it has ended: %s", strings.TrimSpace(b.stderr.String()))
		default:
		}
		return nil, fmt.Errorf("the program does not connect: %w", err)
	}
	nc.SetDeadline(time.Now().Add(b.o.limit))
	c := vectors.NewConn(nc)
	b.all = append(b.all, c)
	return c, nil
}

// greet reads the program's HELLO and answers it.
func (b *bed) greet() (*vectors.Conn, []any, error) {
	c, err := b.accept()
	if err != nil {
		return c, nil, err
	}
	hello, err := c.Expect(vectors.F(1, 1))
	if err == nil {
		b.serial++
		c.Send(vectors.F(1, 1, 1, "conformance", "n", "node", []any{}, fmt.Sprintf("n-%d", b.serial)))
	}
	return c, hello, err
}

// status waits for the end of the program, and returns its exit status.
func (b *bed) status() (int, error) {
	select {
	case <-b.done:
	case <-time.After(b.o.limit):
		return 0, errors.New("the program does not end")
	}
	ws := b.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// both runs two things at the same time, and returns the first error.
func both(a, b func() error) error {
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { errs[0] = a() })
	wg.Go(func() { errs[1] = b() })
	wg.Wait()
	return errors.Join(errs[0], errs[1])
}
