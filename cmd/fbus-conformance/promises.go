package main

import (
	"fmt"
	"strings"
	"time"

	"fbus/bus/vectors"
)

// What a node promises to callers, relays, guests and posters. Files of vectors cannot show it, as
// it depends on time, on who asks, or on what the node has.

// started opens a call of f, and waits until the worker has it.
func (b *nodeBed) started() (caller, worker *vectors.Conn, call []any, err error) {
	if caller, worker, err = b.pair(1); err != nil {
		return nil, nil, nil, err
	}
	caller.Send(vectors.Call(1, "f", 1))
	call, err = worker.Expect(vectors.F(5, nil, "f"))
	return caller, worker, call, err
}

func (b *nodeBed) callerLost() error {
	caller, worker, call, err := b.started()
	if err != nil {
		return err
	}
	caller.Close()
	_, err = worker.Expect([]any{9., call[1]})
	return err
}

func (b *nodeBed) named() error {
	caller, worker, call, err := b.started()
	if err != nil {
		return err
	}
	worker.Send([]any{10., call[1], 0., 0., "exit", "", vectors.NewBin(nil), "mine", "me"})
	end, err := caller.Expect(vectors.F(10, 1, 0, 0))
	if err != nil {
		return err
	}
	if len(end) < 9 || end[7] == "" || end[7] == "mine" || end[8] != "conformance" {
		return fmt.Errorf("END is %s: its call or worker is not the node's", vectors.Text(end))
	}
	return nil
}

func (b *nodeBed) noHello() error {
	c, err := b.connect()
	if err != nil {
		return err
	}
	c.Patience = 15 * time.Second
	c.Write([]byte{0, 0, 0}) // three bytes of a length
	code, err := c.Ended()
	if err == nil && code != "protocol" {
		err = fmt.Errorf("closed with the code %q, not protocol", code)
	}
	return err
}

// tooMany sends more calls than a node may let wait, by default twenty times as many.
func (b *nodeBed) tooMany() error {
	caller, _, _, err := b.started()
	if err != nil {
		return err
	}
	const calls = 20000
	caller.WriteBehind()
	for id := 2; id <= calls; id += 100 {
		some := make([]any, 100)
		for i := range some {
			some[i] = vectors.Call(id+i, "f", 1)
		}
		caller.Send(some...)
	}
	_, err = caller.Expect(vectors.F(10, nil, 2, 75, "busy"))
	return err
}

func (b *nodeBed) tenASecond() error {
	caller, err := b.hello(vectors.F(1, 1, 1, "", "", "caller", []any{"progress"}))
	if err != nil {
		return err
	}
	other, worker, err := b.pair(1)
	if err != nil {
		return err
	}
	other.Close()
	begin := time.Now()
	caller.Send(vectors.Call(1, "f", 1))
	call, err := worker.Expect(vectors.F(5, nil, "f"))
	if err != nil {
		return err
	}
	for i := range 200 {
		worker.Send([]any{11., call[1], float64(i), 200.})
	}
	worker.Send([]any{10., call[1], 0., 0.})
	for n := 0; ; n++ {
		f, err := caller.Next()
		switch {
		case err != nil:
			return err
		case vectors.Matches(vectors.F(10, 1, 0, 0), f):
			if limit := 10 * (2 + int(time.Since(begin).Seconds())); n > limit {
				return fmt.Errorf("%d PROGRESS came, more than ten a second", n)
			}
			return nil
		case !vectors.Matches(vectors.F(11, 1), f):
			return fmt.Errorf("%s came", vectors.Text(f))
		}
	}
}

// hello connects with that HELLO. The node must name the capabilities in it, or nothing is judged.
func (b *nodeBed) hello(hello []any) (*vectors.Conn, error) {
	c, err := b.connect()
	if err != nil {
		return nil, err
	}
	c.Send(hello)
	answer, err := c.Expect(vectors.F(1, 1))
	if err != nil {
		return nil, err
	}
	for _, name := range hello[6].([]any) {
		if !names(answer, name) {
			return nil, vectors.NotJudged(fmt.Sprintf("the node has not named the capability %v", name))
		}
	}
	if len(hello) > 8 && answer[2] == 0. {
		return nil, vectors.NotJudged("the node is of version 1.0, and gives no rights away")
	}
	return c, nil
}

// names reports whether a HELLO names a capability.
func names(hello []any, capability any) bool {
	if len(hello) < 7 {
		return false
	}
	list, _ := hello[6].([]any)
	for _, name := range list {
		if name == capability {
			return true
		}
	}
	return false
}

func (b *nodeBed) namesRelay() error {
	for _, hello := range [][]any{
		vectors.F(1, 1, 1, "", "", "x"),
		vectors.F(1, 1, 1, "", "", "x", []any{"relay"}, "", []any{"call:*"}),
	} {
		c, err := b.connect()
		if err != nil {
			return err
		}
		c.Send(hello)
		answer, err := c.Expect(vectors.F(1, 1))
		if err != nil {
			return err
		}
		if names(answer, "relay") && answer[2] != 0. {
			return fmt.Errorf("it names relay in answer to %s", vectors.Text(hello))
		}
	}
	return nil
}

func (b *nodeBed) speaksFor() error {
	relay, err := b.hello(vectors.F(1, 1, 1, "", "", "relay", []any{"relay"}))
	if err != nil {
		return err
	}
	caller, worker, err := b.pair(2)
	if err != nil {
		return err
	}
	caller.Send(vectors.Call(1, "f", 1))
	own, err := worker.Expect(vectors.F(5, nil, "f"))
	if err != nil {
		return err
	}
	by := func(id int, name string) []any {
		return append(vectors.Call(id, name, 1), 0., 0., 4294967295., 0., "", 1000., 1000., "", "uid:0")
	}
	relay.Send(by(1, "f"))
	call, err := worker.Expect(vectors.F(5, nil, "f"))
	if err != nil {
		return err
	}
	if len(own) < 16 || len(call) < 16 || call[15] != fmt.Sprint(own[15], "/uid:0") {
		return fmt.Errorf("the caller in %s is not VIA/NAME", vectors.Text(call))
	}
	relay.Send(by(2, "fbus.tickets"))
	_, err = relay.Expect(vectors.F(10, 2, 2, 77, "denied"))
	return err
}

// answer calls a function of the node, and returns what it has written.
func (b *nodeBed) answer(c *vectors.Conn, id int, name string, kind int, args []byte) (string, error) {
	c.Send(vectors.F(5, id, name, kind, vectors.NewBin(args), vectors.NewBin(nil), 1))
	out, end, err := ends(c, id)
	switch {
	case err != nil:
		return "", err
	case vectors.Matches(vectors.F(10, id, 2, 69, "no_function"), end):
		return "", vectors.NotJudged("the node has no " + name)
	case !vectors.Matches(vectors.F(10, id, 0, 0), end):
		return "", fmt.Errorf("%s ends with %s", name, vectors.Text(end))
	}
	return string(out), nil
}

func (b *nodeBed) guest() error {
	_, worker, err := b.pair(1)
	if err != nil {
		return err
	}
	worker.Send(vectors.F(3, 2, "other", 1))
	if _, err := worker.Expect(vectors.F(4, 2, "")); err != nil {
		return err
	}
	guest, err := b.hello(vectors.F(1, 1, 1, "", "", "guest", []any{}, "", []any{"call:f" + b.suffix}))
	if err != nil {
		return err
	}
	list, err := b.answer(guest, 1, "fbus.functions", 0, nil)
	if err != nil {
		return err
	}
	if !strings.Contains(list, `"f`+b.suffix+`"`) || strings.Contains(list, `"other`+b.suffix+`"`) {
		return fmt.Errorf("fbus.functions shows %.500q to a guest that may call f%s", list, b.suffix)
	}
	guest.Send(vectors.Call(2, "fbus.tickets", 1))
	_, err = guest.Expect(vectors.F(10, 2, 2, 77, "denied"))
	return err
}

// post posts f, and returns the job's id.
func (b *nodeBed) post(c *vectors.Conn, id int) (string, error) {
	job, err := b.answer(c, id, "fbus.post", 1, list("f"+b.suffix))
	return strings.TrimSpace(job), err
}

// running posts f, and returns the job's id and the worker's CALL of it.
func (b *nodeBed) running() (caller, worker *vectors.Conn, job string, call []any, err error) {
	if caller, worker, err = b.pair(1); err == nil {
		job, err = b.post(caller, 1)
	}
	if err == nil {
		call, err = worker.Expect(vectors.F(5, nil, "f"))
	}
	return caller, worker, job, call, err
}

func (b *nodeBed) posted() error {
	caller, worker, job, call, err := b.running()
	if err != nil {
		return err
	}
	if len(call) < 17 || call[16] != job {
		return fmt.Errorf("%s is not of the job %s", vectors.Text(call), job)
	}
	worker.Send([]any{10., call[1], 0., 0., "exit", "", vectors.NewBin([]byte("done"))})
	out, err := b.answer(caller, 2, "fbus.result", 1, list(job))
	if err == nil && out != "done" {
		err = fmt.Errorf("the result is %.100q, not \"done\"", out)
	}
	return err
}

func (b *nodeBed) absent() error {
	_, worker, job, call, err := b.running()
	if err != nil {
		return err
	}
	worker.Send([]any{10., call[1], 0., 0.})
	relay, err := b.hello(vectors.F(1, 1, 1, "", "", "relay", []any{"relay"}))
	if err != nil {
		return err
	}
	relay.Send(vectors.F(5, 1, "fbus.result", 1, vectors.NewBin(list(job)), vectors.NewBin(nil), 1, 0, 0, 4294967295, 0, "", 1000, 1000, "", "alice"))
	_, err = relay.Expect(vectors.F(10, 1, 2, 65))
	return err
}
