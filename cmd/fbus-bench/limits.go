package main

import (
	"bufio"
	"context"
	"io"
	"net"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"
)

// direct measures n processes of a resident program without the bus, each one
// line at a time.
func (b *bencher) direct(loop []string, n int) perSecond {
	type driven struct {
		in  io.WriteCloser
		out *bufio.Reader
	}
	var all []driven
	start := func() error {
		for len(all) < n {
			cmd := osexec.Command(loop[0], loop[1:]...)
			in, err := cmd.StdinPipe()
			if err != nil {
				return err
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				return err
			}
			if err := cmd.Start(); err != nil {
				return err
			}
			b.ended = append(b.ended, func() { in.Close(); cmd.Wait() })
			all = append(all, driven{in, bufio.NewReader(out)})
		}
		return nil
	}
	return func(d time.Duration) (float64, error) {
		if err := start(); err != nil {
			return 0, err
		}
		return b.repeat(d, n, func(i int) error {
			if _, err := io.WriteString(all[i].in, "hello\n"); err != nil {
				return err
			}
			_, err := all[i].out.ReadSlice('\n')
			return err
		})
	}
}

// relayed is about the size of a small frame with a body of 64 bytes.
const relayed = 128

// relay measures messages over two hops that only copy.
func (b *bencher) relay(outstanding int) (perSecond, error) {
	echo, err := b.listen("echo-"+strconv.Itoa(outstanding), func(c net.Conn) { hop(c, c) })
	if err != nil {
		return nil, err
	}
	path, err := b.listen("relay-"+strconv.Itoa(outstanding), func(c net.Conn) {
		far, err := net.Dial("unix", echo)
		if err != nil {
			return
		}
		go hop(far, c) // ends with the connection
		hop(c, far)
	})
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	b.ended = append(b.ended, func() { conn.Close() })
	return func(d time.Duration) (float64, error) {
		window := make(chan struct{}, outstanding)
		var sent, read atomic.Int64
		stop := make(chan struct{})
		go func() { // ends with stop, after the last message
			defer close(window)
			msg := make([]byte, relayed)
			for {
				select {
				case window <- struct{}{}:
				case <-stop:
					return
				}
				sent.Add(1)
				conn.Write(msg)
			}
		}()
		began := time.Now()
		msg := make([]byte, relayed)
		stopped := false
		for range window {
			if _, err := io.ReadFull(conn, msg); err != nil {
				return 0, err
			}
			read.Add(1)
			if !stopped && (time.Since(began) >= d || b.ctx.Err() != nil) {
				stopped = true
				close(stop)
			}
		}
		return float64(read.Load()) / time.Since(began).Seconds(), nil
	}, nil
}

// listen serves a socket until close.
func (b *bencher) listen(name string, serve func(net.Conn)) (string, error) {
	path := filepath.Join(b.dir, name)
	l, err := net.Listen("unix", path)
	if err != nil {
		return "", err
	}
	b.ended = append(b.ended, func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c) // ends with the connection
		}
	}()
	return path, nil
}

// hop copies through memory, as a node does.
func hop(to, from net.Conn) {
	buf := make([]byte, 128<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			to.Close()
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// copyPlain copies through a buffer, so that the bytes pass through this process.
func copyPlain(to io.Writer, from io.Reader) {
	io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 64<<10))
}

// zeros reads as zeros until a time, or until the context ends.
type zeros struct {
	ctx   context.Context
	until time.Time
}

// Read implements io.Reader.
func (z *zeros) Read(p []byte) (int, error) {
	if time.Now().After(z.until) || z.ctx.Err() != nil {
		return 0, io.EOF
	}
	clear(p)
	return len(p), nil
}

// counter counts what is written to it.
type counter struct{ n int64 }

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
