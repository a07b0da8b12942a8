package main

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sys/unix"
)

// stdio is the transport over stdin and stdout. The end of stdin is the end of the client, and of its
// calls. But if somebody still reads stdout, as in a pipeline of a shell, answers have some time to come.
type stdio struct{ gone func() }

// Connect implements [sdk.Transport].
func (s *stdio) Connect(ctx context.Context) (sdk.Connection, error) {
	c, err := (&sdk.StdioTransport{}).Connect(ctx)
	return &stdioConn{Connection: c, gone: s.gone, idle: make(chan struct{}, 1)}, err
}

type stdioConn struct {
	sdk.Connection
	gone func()        // ends the calls
	idle chan struct{} // has room for one: all requests are answered

	mu   sync.Mutex // protects the field below
	open int        // requests that are not answered
}

// Read implements [sdk.Connection].
func (c *stdioConn) Read(ctx context.Context) (jsonrpc.Message, error) {
	msg, err := c.Connection.Read(ctx)
	if err != nil {
		c.lastAnswers(ctx)
		c.gone()
		return nil, err
	}
	if req, ok := msg.(*jsonrpc.Request); ok && req.IsCall() {
		c.mu.Lock()
		c.open++
		c.mu.Unlock()
	}
	return msg, nil
}

// Write implements [sdk.Connection].
func (c *stdioConn) Write(ctx context.Context, msg jsonrpc.Message) error {
	err := c.Connection.Write(ctx, msg)
	if _, ok := msg.(*jsonrpc.Response); ok {
		c.mu.Lock()
		c.open--
		c.mu.Unlock()
		select {
		case c.idle <- struct{}{}:
		default:
		}
	}
	return err
}

// lastTime is how long calls may go on after the end of stdin.
const lastTime = 2 * time.Second

// lastAnswers returns when all requests are answered, when nobody reads stdout any more, or after a while.
func (c *stdioConn) lastAnswers(ctx context.Context) {
	over := time.After(lastTime)
	for {
		c.mu.Lock()
		open := c.open
		c.mu.Unlock()
		if open == 0 || hungUp(os.Stdout) {
			return
		}
		select {
		case <-c.idle:
		case <-time.After(20 * time.Millisecond): // a reader that goes is no event
		case <-over:
			return
		case <-ctx.Done():
			return
		}
	}
}

// hungUp reports whether the reader of a pipe or socket has gone.
func hungUp(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}
