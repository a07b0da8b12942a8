package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"fbus/bus/args"
	"fbus/cmd/mcp"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sys/unix"
)

// stdio is the transport over stdin and stdout, one message a line. The library's own ends the session,
// and all calls, over a single message that it cannot read. This one answers it with an error.
//
// The end of stdin is the end of the client, and of its calls. But if somebody still reads stdout, as in
// a pipeline of a shell, answers have some time to come.
type stdio struct {
	in   io.Reader
	out  *os.File
	gone func() // ends the calls
}

// longestMessage bounds a message from the client.
const longestMessage = 16 << 20

// Connect implements [sdk.Transport].
func (s *stdio) Connect(context.Context) (sdk.Connection, error) {
	c := &stdioConn{stdio: *s, messages: make(chan jsonrpc.Message), closed: make(chan struct{}), idle: make(chan struct{}, 1), open: map[jsonrpc.ID]bool{}}
	go c.receive() // ends with stdin: a read of it cannot be interrupted
	return c, nil
}

type stdioConn struct {
	stdio
	messages chan jsonrpc.Message // closed at the end of stdin
	fault    error                // of reading stdin; valid when messages is closed
	closed   chan struct{}
	close    sync.Once
	idle     chan struct{} // has room for one: all requests are answered

	writing sync.Mutex // held while a message is written

	mu   sync.Mutex          // protects the field below
	open map[jsonrpc.ID]bool // requests that are not answered; true: the client has cancelled it
}

// SessionID implements [sdk.Connection].
func (c *stdioConn) SessionID() string { return "" }

// Close implements [sdk.Connection].
func (c *stdioConn) Close() error {
	c.close.Do(func() { close(c.closed) })
	return nil
}

// receive reads messages, and answers those that are none.
func (c *stdioConn) receive() {
	defer close(c.messages)
	r := bufio.NewReaderSize(c.in, 64<<10)
	for {
		line, size, err := readLine(r)
		if size > longestMessage {
			c.refuse(jsonrpc.CodeInvalidRequest, fmt.Errorf("a message of %d bytes exceeds the limit of %d", size, longestMessage))
		} else if line = bytes.TrimSpace(line); len(line) > 0 && !c.accept(line) {
			return
		}
		if err != nil {
			c.fault = err
			return
		}
	}
}

// readLine reads a line and returns its size. One that is too long is read to its end, but not kept.
func readLine(r *bufio.Reader) (line []byte, size int, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if size += len(part); size <= longestMessage {
			line = append(line, part...)
		} else {
			line = nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, size, err
		}
	}
}

// accept passes on the messages of a line: one, or those of a batch, each of which is answered by itself.
// It returns false when the connection is closed.
func (c *stdioConn) accept(line []byte) bool {
	if err := args.CheckJSON(line); err != nil {
		c.refuse(jsonrpc.CodeParseError, err)
		return true
	}
	batch := []json.RawMessage{line}
	if line[0] == '[' {
		json.Unmarshal(line, &batch) // it is valid
		if len(batch) == 0 {
			c.refuse(jsonrpc.CodeInvalidRequest, errors.New("the batch is empty"))
		}
	}
	for _, text := range batch {
		msg, err := mcp.DecodeMessage(text)
		if err != nil {
			if !isResponse(text) { // two ends that answer errors with errors would never stop
				c.refuse(jsonrpc.CodeInvalidRequest, err)
			}
			continue
		}
		select {
		case c.messages <- msg:
		case <-c.closed:
			return false
		}
	}
	return true
}

func isResponse(text []byte) bool {
	var fields map[string]json.RawMessage
	json.Unmarshal(text, &fields)
	return fields["method"] == nil && (fields["result"] != nil || fields["error"] != nil)
}

// refuse answers a message whose id is not known. If that cannot be written, neither can what comes after.
func (c *stdioConn) refuse(code int64, err error) {
	text, _ := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": nil, "error": &jsonrpc.Error{Code: code, Message: args.OneLine(err.Error())}})
	c.writeLine(text)
}

func (c *stdioConn) writeLine(text []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	_, err := c.out.Write(append(text, '\n'))
	return err
}

// Read implements [sdk.Connection].
func (c *stdioConn) Read(ctx context.Context) (jsonrpc.Message, error) {
	err := io.EOF
	select {
	case msg, ok := <-c.messages:
		if ok {
			if req, ok := msg.(*jsonrpc.Request); ok {
				c.note(req)
			}
			return msg, nil
		}
		if c.fault != nil {
			err = c.fault
		}
		c.lastAnswers(ctx)
	case <-c.closed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.gone()
	return nil, err
}

// note records requests that need an answer, and those that were cancelled.
func (c *stdioConn) note(req *jsonrpc.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.IsCall() {
		if _, open := c.open[req.ID]; !open { // of two with one id the library refuses the second, with no id
			c.open[req.ID] = false
		}
		return
	}
	var params struct {
		ID any `json:"requestId"`
	}
	if req.Method != "notifications/cancelled" || json.Unmarshal(req.Params, &params) != nil {
		return
	}
	if id, err := jsonrpc.MakeID(params.ID); err == nil {
		if _, open := c.open[id]; open {
			c.open[id] = true
		}
	}
}

// cancelled reports whether the client has cancelled a request.
func (c *stdioConn) cancelled(id jsonrpc.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open[id]
}

// answered forgets a request.
func (c *stdioConn) answered(id jsonrpc.ID) {
	c.mu.Lock()
	delete(c.open, id)
	c.mu.Unlock()
	select {
	case c.idle <- struct{}{}:
	default:
	}
}

// Write implements [sdk.Connection]. It drops the answer to a request that the client has cancelled.
func (c *stdioConn) Write(ctx context.Context, msg jsonrpc.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if res, ok := msg.(*jsonrpc.Response); ok {
		defer c.answered(res.ID) // after it is written: the end of stdin waits for that
		if c.cancelled(res.ID) {
			return nil
		}
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(res.Error, &kind):
			res.Error = mcp.InvalidParams(kind)
		case res.Error != nil && !errors.As(res.Error, new(*jsonrpc.Error)): // it has no code for what comes before initialize
			res.Error = &jsonrpc.Error{Code: jsonrpc.CodeInvalidRequest, Message: args.OneLine(res.Error.Error())}
		}
	}
	text, err := jsonrpc.EncodeMessage(msg)
	if err == nil {
		err = c.writeLine(text)
	}
	return err
}

// lastTime is how long calls may go on after the end of stdin.
const lastTime = 2 * time.Second

// lastAnswers returns when all requests are answered, when the connection is closed or nobody reads stdout any
// more, or after a while.
func (c *stdioConn) lastAnswers(ctx context.Context) {
	over := time.After(lastTime)
	for {
		c.mu.Lock()
		open := len(c.open)
		c.mu.Unlock()
		if open == 0 || hungUp(c.out) {
			return
		}
		select {
		case <-c.idle:
		case <-time.After(20 * time.Millisecond): // a reader that goes is no event
		case <-over:
			return
		case <-c.closed:
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
