package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
	"fbus/cmd/companion"
)

// bencher is a private bus to measure on: processes, as users have them.
type bencher struct {
	ctx     context.Context
	fbus    string // the binary that is measured
	dir     string
	socket  string
	client  *bus.Client
	running []*osexec.Cmd
	offered map[string]bool
	ended   []func() // close calls them
}

func newBencher(ctx context.Context) (*bencher, error) {
	path, err := companion.Fbus()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "fbus-bench-")
	if err != nil {
		return nil, err
	}
	b := &bencher{ctx: ctx, fbus: path, dir: dir, socket: filepath.Join(dir, "bus.sock"), offered: map[string]bool{}}
	err = b.start("serve", "-q", "--listen", "127.0.0.1:0", "--socket", b.socket)
	if err == nil {
		err = b.await(func() (err error) {
			b.client, err = bus.Dial(ctx, bus.Unix(b.socket), &bus.Options{Name: "bench"})
			return err
		})
	}
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// await tries something until it succeeds, for 10 seconds at most.
func (b *bencher) await(try func() error) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := try(); err == nil || b.ctx.Err() != nil || time.Now().After(end) {
			return err
		}
	}
}

// start runs fbus as part of the private bus, until close.
func (b *bencher) start(args ...string) error {
	cmd := osexec.Command(b.fbus, args...)
	cmd.Env = append(os.Environ(), "FBUS_NODE="+b.socket, "FBUS_HOME="+filepath.Join(b.dir, "home"), "FBUS_STATE="+filepath.Join(b.dir, "state"))
	cmd.Stderr = os.Stderr
	// Ctrl-C reaches this process alone: the bus ends after what is measured.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.running = append(b.running, cmd)
	return nil
}

// offer publishes a program on the private bus, once.
func (b *bencher) offer(name string, words ...string) error {
	if b.offered[name] {
		return nil
	}
	if err := b.start(append([]string{"offer", "-q", name}, words...)...); err != nil {
		return err
	}
	b.offered[name] = true
	return b.await(func() error {
		slots, err := fanout.Slots(b.ctx, b.client, name, "")
		if err == nil && slots == 0 {
			err = fmt.Errorf("fbus offer %s did not start", name)
		}
		return err
	})
}

func (b *bencher) close() {
	for _, end := range b.ended {
		end()
	}
	if b.client != nil {
		b.client.Close()
	}
	for i := len(b.running) - 1; i >= 0; i-- {
		b.running[i].Process.Signal(syscall.SIGTERM)
		b.running[i].Wait()
	}
	os.RemoveAll(b.dir)
}

// repeat does one thing again and again for about d, in that many goroutines, and
// returns how often it was done in a second.
func (b *bencher) repeat(d time.Duration, parallel int, one func(worker int) error) (float64, error) {
	var n atomic.Int64
	var first error
	var once sync.Once
	var group sync.WaitGroup
	began := time.Now()
	for i := range parallel {
		group.Go(func() {
			for b.ctx.Err() == nil {
				if err := one(i); err != nil {
					once.Do(func() { first = err })
					return
				}
				n.Add(1)
				if time.Since(began) >= d {
					return
				}
			}
		})
	}
	group.Wait()
	return float64(n.Load()) / time.Since(began).Seconds(), first
}

// calls measures calls of a function with these arguments, parallel at once.
func (b *bencher) calls(name string, parallel int, words ...string) func(time.Duration) (float64, error) {
	return func(d time.Duration) (float64, error) {
		return b.repeat(d, parallel, func(int) error {
			_, err := b.client.Call(b.ctx, &bus.Request{Function: name, Args: args.List(words...), Stderr: io.Discard})
			return err
		})
	}
}

// command measures a command, parallel processes at once.
func (b *bencher) command(parallel int, words ...string) func(time.Duration) (float64, error) {
	return func(d time.Duration) (float64, error) {
		return b.repeat(d, parallel, func(int) error { return b.run(nil, words...) })
	}
}

// oneByOne measures calls of a client, one at a time.
func (b *bencher) oneByOne(c *bus.Client, name string) func(time.Duration) (float64, error) {
	args := args.List(strings.Repeat("x", relayed))
	return func(d time.Duration) (float64, error) {
		return b.repeat(d, 1, func(int) error {
			_, err := c.Call(b.ctx, &bus.Request{Function: name, Args: args})
			return err
		})
	}
}

// run runs a command on the private bus and discards its output.
func (b *bencher) run(stdin io.Reader, words ...string) error {
	return b.runWith([]string{"FBUS_NODE=" + b.socket}, stdin, words...)
}

func (b *bencher) runWith(env []string, stdin io.Reader, words ...string) error {
	cmd := osexec.CommandContext(b.ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = stdin
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", words[0], err, shorten(stderr.String()))
	}
	return nil
}

// batch measures a command that reads many lines: lines a second. A small first
// batch finds how many fit the time.
func (b *bencher) batch(words ...string) func(time.Duration) (float64, error) {
	speed := 1000.0
	one := func(n int) (float64, error) {
		var lines strings.Builder
		for i := range n {
			fmt.Fprintf(&lines, "line-%d\n", i) // one word, to xargs as well
		}
		began := time.Now()
		err := b.run(strings.NewReader(lines.String()), words...)
		return float64(n) / time.Since(began).Seconds(), err
	}
	first := true
	return func(d time.Duration) (rate float64, err error) {
		if first {
			if speed, err = one(200); err != nil {
				return 0, err
			}
			if speed, err = one(max(200, int(speed*d.Seconds()))); err != nil {
				return 0, err
			}
			first = false
		}
		speed, err = one(max(200, int(speed*d.Seconds())))
		return speed, err
	}
}

// shorten limits foreign text in a message.
func shorten(s string) string {
	const most = 60
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.TrimSpace(strings.ToValidUTF8(s, "?"))
}
