package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"fbus/bus/trust"
	"fbus/bus/vectors"
)

// conns are the connections of a check. They are closed when its context ends, so that it does.
type conns struct {
	mu     sync.Mutex // protects what is below, while the check runs
	all    []*vectors.Conn
	closed bool
	stop   func() bool
}

// until has the connections, and what else is given, closed with the context.
func (s *conns) until(ctx context.Context, more ...io.Closer) {
	s.stop = context.AfterFunc(ctx, func() {
		s.closeAll()
		for _, c := range more {
			c.Close()
		}
	})
}

func (s *conns) add(c *vectors.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, c)
	if s.closed {
		c.Close()
	}
}

func (s *conns) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.all {
		c.Close()
	}
}

// verdict returns how a check has ended: a rule that was broken in any frame counts before what the
// check was about.
func (s *conns) verdict(c *vectors.Conn, err error) (*vectors.Conn, error) {
	for _, other := range s.all {
		if err == nil {
			other.Settle()
		}
	}
	for _, other := range s.all {
		if other.Broken != nil {
			return other, other.Broken
		}
	}
	if c == nil { // the one with the last frame
		for _, other := range s.all {
			if c == nil || len(other.Log) > 0 {
				c = other
			}
		}
	}
	return c, err
}

// bed is the node that a program is judged with, and the program.
type bed struct {
	o      *options
	dir    string
	l      listener
	env    []string
	done   chan struct{} // closed when the program has ended
	trust  *trust.Authority
	others []*trust.Authority
	config *tls.Config // nil: without TLS

	cmd            *exec.Cmd
	stdin          *os.File
	stdout, stderr bytes.Buffer
	serial         int // of connections

	ctx context.Context
	conns
}

type listener interface {
	net.Listener
	SetDeadline(t time.Time) error
}

// newBed listens, and starts the command with those words. The program's input is a pipe.
func newBed(ctx context.Context, o *options, words ...string) (*bed, error) {
	b, err := prepareBed(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := b.run(words); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// prepareBed listens.
func prepareBed(ctx context.Context, o *options) (*bed, error) {
	dir, err := os.MkdirTemp("", "fbus-conformance-")
	if err != nil {
		return nil, err
	}
	b := &bed{o: o, dir: dir, done: make(chan struct{}), ctx: ctx}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FBUS_NODE=") && !strings.HasPrefix(v, "FBUS_TICKET=") {
			b.env = append(b.env, v)
		}
	}
	variable := "FBUS_NODE=" + filepath.Join(dir, "n.sock")
	if o.tls {
		variable, err = b.listenTLS()
	} else {
		b.l, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "n.sock"), Net: "unix"})
	}
	if err != nil {
		b.close()
		return nil, err
	}
	b.until(ctx, b.l)
	b.env = append(b.env, variable)
	return b, nil
}

func (b *bed) run(words []string) error {
	return b.start(b.env, append(b.o.cmd[1:len(b.o.cmd):len(b.o.cmd)], words...))
}

func (b *bed) start(env, words []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	b.stdin = w
	b.cmd = exec.Command(b.o.cmd[0], words...)
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
	if b.stop != nil {
		b.stop()
	}
	if b.l != nil { // first: else the program connects again, and waits for an answer
		b.l.Close()
	}
	b.closeAll()
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
	for _, a := range append(b.others, b.trust) {
		if a != nil {
			a.Close()
		}
	}
	os.RemoveAll(b.dir)
}

func (b *bed) signal(s syscall.Signal) { syscall.Kill(-b.cmd.Process.Pid, s) }

// patience is how long a program may take to do what a line of wrong.jsonl says. What is only
// recommended is often not done at all.
func (o *options) patience(w *vectors.Wrong) time.Duration {
	if w.Should {
		return min(o.limit, 2*time.Second)
	}
	return o.limit
}

var errConnect = errors.New("the program does not connect")

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
		return nil, fmt.Errorf("%w: %w", errConnect, err)
	}
	nc.SetDeadline(time.Now().Add(b.o.limit))
	if nc, err = b.secure(nc); err != nil {
		return nil, err
	}
	c := vectors.NewConn(nc)
	c.Patience = b.o.limit
	b.add(c)
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
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
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
