package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus/vectors"
)

// nodeBed is a node that is judged.
type nodeBed struct {
	o      *options
	suffix string // of the functions of this check: what is left of earlier ones has others
	cmd    *exec.Cmd
	stderr bytes.Buffer // of cmd; complete when done is closed
	done   chan struct{}
	ctx    context.Context
	conns

	draining bool
}

var checksOfNode atomic.Int64 // that were begun

// nodeCheck makes a check of a node. ours: only of one that we have started.
func nodeCheck(name string, rules []string, ours bool, f func(b *nodeBed) error) check {
	return check{name: name, rules: rules, run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
		if ours && len(o.cmd) == 0 {
			return nil, vectors.NotJudged("the node was not started here, see -- CMD")
		}
		b := &nodeBed{o: o, ctx: ctx, suffix: fmt.Sprintf("-%d-%d", os.Getpid(), checksOfNode.Add(1))}
		b.until(ctx)
		defer b.close()
		if len(o.cmd) > 0 {
			if err := b.start(); err != nil {
				return nil, err
			}
		}
		c, err := b.verdict(nil, f(b))
		if err != nil && b.cmd != nil {
			select {
			case <-b.done:
				if ended := b.ended(); ended != nil {
					err = fmt.Errorf("%w; %w", err, ended)
				}
			default:
			}
		}
		return c, err
	}}
}

// ended says how a node has ended that runs no more.
func (b *nodeBed) ended() error {
	if b.draining {
		return nil
	}
	return fmt.Errorf("%w: %s: %s", errGone, b.cmd.ProcessState, strings.TrimSpace(b.stderr.String()))
}

func (b *nodeBed) start() error {
	b.cmd = exec.Command(b.o.cmd[0], b.o.cmd[1:]...)
	b.cmd.Stderr, b.cmd.WaitDelay = &b.stderr, time.Second
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := b.cmd.Start(); err != nil {
		b.cmd = nil
		return err
	}
	b.done = make(chan struct{})
	go func() { // ends with the node
		b.cmd.Wait()
		close(b.done)
	}()
	for limit := time.Now().Add(b.o.limit); ; time.Sleep(5 * time.Millisecond) {
		err := b.listens()
		if err == nil {
			return nil
		}
		select {
		case <-b.done:
			return b.ended()
		case <-b.ctx.Done():
			return b.ctx.Err()
		default:
		}
		if time.Now().After(limit) {
			return fmt.Errorf("the node does not listen: %w: %w", os.ErrDeadlineExceeded, err)
		}
	}
}

// listens returns why nobody can connect to the node.
func (b *nodeBed) listens() error {
	network := "unix"
	if b.o.tls {
		network = "tcp"
	}
	nc, err := net.Dial(network, b.o.node)
	if err != nil {
		return err
	}
	return nc.Close()
}

func (b *nodeBed) close() {
	b.stop()
	b.closeAll()
	if b.cmd == nil {
		return
	}
	for range 2 {
		syscall.Kill(-b.cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-b.done:
		case <-time.After(time.Second):
		}
	}
	syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	<-b.done
}

func (b *nodeBed) connect() (*vectors.Conn, error) {
	if b.o.tls {
		return b.dial(b.o.ticket.ClientConfig(nil))
	}
	nc, err := net.Dial("unix", b.o.node)
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(b.o.limit))
	return b.note(vectors.NewConn(nc)), nil
}

// note keeps a connection, to be closed.
func (b *nodeBed) note(c *vectors.Conn) *vectors.Conn {
	c.Suffix, c.Patience = b.suffix, b.o.limit
	b.add(c)
	return c
}

// command has the node begin to stop: "drain", or "stop" at once.
func (b *nodeBed) command(command string) error {
	if command == "stop" && !b.draining {
		if err := b.command("drain"); err != nil {
			return err
		}
	}
	b.draining = true
	if err := syscall.Kill(b.cmd.Process.Pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for limit := time.Now().Add(b.o.limit); time.Now().Before(limit) && b.ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		if b.listens() != nil { // the socket goes first
			return nil
		}
	}
	return errors.New("the node keeps listening")
}

// nodeChecks are the lines of wrong.jsonl, the transcripts, and what they cannot show.
func nodeChecks() (list []check, err error) {
	wrong, err := vectors.ReadWrong("node")
	for _, w := range wrong {
		list = append(list, nodeCheck(w.Name, w.Rules, false, func(b *nodeBed) error { return w.AtNode(b.connect) }))
	}
	transcripts, err2 := vectors.ReadTranscripts("node")
	for _, t := range transcripts {
		stops := slices.ContainsFunc(t.Lines, func(l vectors.Line) bool { return l.Node != "" })
		list = append(list, nodeCheck("transcript "+t.Name, t.Rules, stops, func(b *nodeBed) error {
			return t.PlayNode(b.connect, b.command)
		}))
	}
	for _, form := range forms() {
		list = append(list, nodeCheck("HELLO and CALL in the form: "+form.name, []string{"C-2-10", "C-2-11"}, false, func(b *nodeBed) error {
			return b.session(func(c *vectors.Conn) {
				c.Write(slices.Concat(form.frame(1, 1, 0, "", "", "x"), form.frame(5, 1, "nobody", 0, "", "", 1)))
			})
		}))
	}
	list = append(list,
		nodeCheck("a session byte by byte", []string{"C-2-1", "C-2-7"}, false, (*nodeBed).byteByByte),
		nodeCheck("a session that breaks off at each byte", []string{"C-2-8"}, false, (*nodeBed).breaksOff),
		nodeCheck("two hundred calls in one write", []string{"C-5.5-1", "C-4-7"}, false, (*nodeBed).burst),
		nodeCheck("16 MiB in each direction at the same time", []string{"C-2-9", "C-5.3-4"}, false, (*nodeBed).bulk),
		nodeCheck("never more calls at a worker than slots, with cancelled ones", []string{"C-4-7", "C-5.4-1"}, false, (*nodeBed).slots),
		nodeCheck("the caller's connection ends: CANCEL at the worker", []string{"C-5.8-5"}, false, (*nodeBed).callerLost),
		nodeCheck("END names the call and the worker", []string{"C-5.5-4"}, false, (*nodeBed).named),
		nodeCheck("no HELLO within 10 seconds", []string{"C-3.1-3"}, false, (*nodeBed).noHello),
		nodeCheck("20,000 calls that wait: busy", []string{"C-5.8-2"}, false, (*nodeBed).tooMany),
		nodeCheck("at most ten PROGRESS a second", []string{"C-5.9-2"}, false, (*nodeBed).tenASecond),
		nodeCheck("relay is named only for those who ask", []string{"C-5.12-1"}, false, (*nodeBed).namesRelay),
		nodeCheck("the identity of a relay's caller", []string{"C-5.12-3", "C-5.12-5"}, false, (*nodeBed).speaksFor),
		nodeCheck("a guest sees what it may call, and administers nothing", []string{"F-9-2", "F-9-3"}, false, (*nodeBed).guest),
		nodeCheck("a job runs, and its result is kept", []string{"J-9.1-2"}, false, (*nodeBed).posted),
		nodeCheck("a job of somebody else is absent", []string{"J-9.1-3"}, false, (*nodeBed).absent),
		nodeCheck("a call selects a relay, and a worker behind it", []string{"C-4.3-9"}, false, (*nodeBed).behind),
	)
	return list, errors.Join(err, err2)
}

// pair connects a caller and a worker that offers f.
func (b *nodeBed) pair(slots int) (caller, worker *vectors.Conn, err error) {
	for _, c := range []**vectors.Conn{&caller, &worker} {
		if *c, err = b.connect(); err != nil {
			return nil, nil, err
		}
		(*c).Send(vectors.F(1, 1, 0, "", "", "conformance"))
		if _, err = (*c).Expect(vectors.F(1, 1)); err != nil {
			return nil, nil, err
		}
	}
	worker.Send(vectors.F(3, 1, "f", slots))
	_, err = worker.Expect(vectors.F(4, 1, ""))
	return caller, worker, err
}

var session = slices.Concat(vectors.Bytes(vectors.F(1, 1, 0, "", "", "x")), vectors.Bytes(vectors.Call(1, "nobody", 1)))

func (b *nodeBed) byteByByte() error {
	return b.session(func(c *vectors.Conn) {
		for i := range session {
			c.Write(session[i : i+1])
		}
	})
}

// session is a connection on which send sends HELLO and a call of a function that nobody offers.
func (b *nodeBed) session(send func(c *vectors.Conn)) error {
	c, err := b.connect()
	if err != nil {
		return err
	}
	send(c)
	if _, err := c.Expect(vectors.F(1, 1)); err != nil {
		return err
	}
	_, err = c.Expect(vectors.F(10, 1, 2, 69, "no_function"))
	return err
}

func (b *nodeBed) breaksOff() error {
	for cut := range session {
		c, err := b.connect()
		if err != nil {
			return err
		}
		c.Write(session[:cut])
		c.Close()
	}
	return b.byteByByte()
}

func (b *nodeBed) burst() error {
	caller, worker, err := b.pair(3)
	if err != nil {
		return err
	}
	calls := make([]any, 200) // the share of one identity in a queue is larger
	for i := range calls {
		calls[i] = vectors.Call(i+1, "f", 1)
	}
	open := 0
	return both(func() error {
		caller.Send(calls...)
		seen := map[any]bool{}
		for range calls {
			f, err := caller.Expect(vectors.F(10, nil, 0, 0))
			if err != nil {
				return err
			}
			if seen[f[1]] {
				return fmt.Errorf("a second END of call %v", f[1])
			}
			seen[f[1]] = true
		}
		return nil
	}, func() error {
		var held []any
		for range calls {
			f, err := worker.Expect(vectors.F(5, nil, "f"))
			if err != nil {
				return err
			}
			if open++; open > 3 {
				return fmt.Errorf("%d calls at a worker of 3 slots", open)
			}
			held = append(held, f[1])
			if len(held) == 3 || len(calls) < 3 {
				for _, id := range held {
					worker.Send([]any{10., id, 0., 0.})
				}
				open, held = 0, nil
			}
		}
		for _, id := range held {
			worker.Send([]any{10., id, 0., 0.})
		}
		return nil
	})
}

// bulk sends 16 MiB each way, as far as the grants go.
func (b *nodeBed) bulk() error {
	const size = 16 << 20
	caller, worker, err := b.pair(1)
	if err != nil {
		return err
	}
	caller.Send(vectors.Call(1, "f", 0))
	call, err := worker.Expect(vectors.F(5, nil, "f"))
	if err != nil {
		return err
	}
	window := 262144.
	if len(call) > 12 {
		window, _ = call[12].(float64)
	}
	worker.Send(vectors.F(8, int(call[1].(float64)), 0, 262144))
	send := &mover{c: caller, id: 1, stream: 0, size: size}
	answer := &mover{c: worker, id: int(call[1].(float64)), stream: 1, size: size, credit: int(window)}
	return both(send.run, answer.run)
}

// mover sends a stream and receives the other, which it grants as it reads.
type mover struct {
	c              *vectors.Conn
	id, stream     int
	size, credit   int
	sent, received int
}

func (m *mover) run() error {
	m.c.WriteBehind()
	other := 1 - m.stream
	for m.sent < m.size || m.received < m.size {
		if k := min(m.credit, m.size-m.sent, 64<<10); k > 0 {
			m.c.Send([]any{6., float64(m.id), float64(m.stream), vectors.NewBin(bytes.Repeat([]byte{byte(m.sent >> 16)}, k))})
			m.sent, m.credit = m.sent+k, m.credit-k
			continue
		}
		f, err := m.c.Next()
		if err != nil {
			return err
		}
		switch {
		case vectors.Matches([]any{8., float64(m.id), float64(m.stream)}, f):
			m.credit += int(f[3].(float64))
		case vectors.Matches([]any{6., float64(m.id), float64(other)}, f):
			n := len(vectors.Bin(f[3]))
			m.received += n
			m.c.Send([]any{8., float64(m.id), float64(other), float64(n)})
		case vectors.Matches([]any{7., float64(m.id)}, f):
		default:
			return fmt.Errorf("%s came", vectors.Text(f))
		}
	}
	return nil
}

func (b *nodeBed) slots() error {
	caller, worker, err := b.pair(2)
	if err != nil {
		return err
	}
	for id := 1; id <= 6; id++ {
		caller.Send(vectors.Call(id, "f", 1))
	}
	first, err := worker.Expect(vectors.F(5, nil, "f"))
	if err == nil {
		_, err = worker.Expect(vectors.F(5, nil, "f"))
	}
	if err != nil {
		return err
	}
	caller.Send(vectors.F(9, 1), vectors.F(9, 2))
	for range 2 {
		if _, err := caller.Expect(vectors.F(10, nil, 2, 143)); err != nil {
			return err
		}
		if _, err := worker.Expect(vectors.F(9, nil)); err != nil {
			return err
		}
	}
	// Another CALL would come before the answer.
	worker.Send(vectors.F(3, 2, "probe", 0))
	if _, err := worker.Expect(vectors.F(4, 2)); err != nil {
		return err
	}
	worker.Send([]any{10., first[1], 2., 143., "cancelled"})
	_, err = worker.Expect(vectors.F(5, nil, "f"))
	return err
}

func (b *nodeBed) behind() error {
	relay, err := b.connect()
	if err != nil {
		return err
	}
	relay.Send(vectors.F(1, 1, 1, "", "", "@b", []any{"relay"}))
	hello, err := relay.Expect(vectors.F(1, 1))
	if err != nil || len(hello) < 8 {
		return fmt.Errorf("HELLO of %d elements, error %v", len(hello), err)
	}
	relay.Send(vectors.F(3, 1, "f", 1, 32))
	if _, err := relay.Expect(vectors.F(4, 1, "")); err != nil {
		return err
	}
	caller, worker, err := b.pair(5)
	if err != nil {
		return err
	}
	call := func(id int, on string) { caller.Send(append(vectors.Call(id, "f", 1), 0., 0., 4294967295., 0., on)) }
	call(1, fmt.Sprintf("#%s/w1", hello[7]))
	if _, err := relay.Expect(vectors.F(5, 1, "f", nil, nil, nil, 1, nil, nil, nil, nil, "w1")); err != nil {
		return err
	}
	call(2, "conformance")
	_, err = worker.Expect(vectors.F(5, 1, "f", nil, nil, nil, 1, nil, nil, nil, nil, ""))
	return err
}
