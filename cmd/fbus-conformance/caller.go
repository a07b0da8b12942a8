package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"syscall"

	"fbus/bus/vectors"
)

// callerBed is a run of a caller that is judged. Its CALL has come.
type callerBed struct {
	*bed
	c     *vectors.Conn
	hello []any
	call  []any
}

// elements of CALL.
const (
	callID = 1 + iota
	callName
	callKind
	callArgs
	callInput
	callFlags
	callWindow = 12
	callCall   = 14
	callOrigin = 18
)

// callerCheck makes a check of a caller that is run with those words. open: its input is a pipe
// that stays open; else the input is what it has to be.
func callerCheck(name, rules, words string, open bool, input string, f func(b *callerBed) error) check {
	return check{name: name, rules: strings.Fields(rules), run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
		plain, err := newBed(ctx, o, strings.Fields(words)...)
		if err != nil {
			return nil, err
		}
		b := &callerBed{bed: plain}
		defer b.close()
		go func() { // ends when all was read, or at the end of the check
			io.WriteString(b.stdin, input)
			if !open {
				b.stdin.Close()
			}
		}()
		if b.c, b.hello, err = b.greet(); err == nil {
			b.call, err = b.c.Expect(vectors.F(5, nil, strings.Fields(words)[0]))
		}
		if err == nil {
			err = f(b)
		}
		return b.verdict(b.c, err)
	}}
}

// id is that of the call.
func (b *callerBed) id() int { return int(b.call[callID].(float64)) }

func (b *callerBed) flag(bit int) bool { return int(b.call[callFlags].(float64))&bit != 0 }

// end sends END.
func (b *callerBed) end(elements ...any) {
	b.c.Send(vectors.F(append([]any{10, b.id()}, elements...)...))
}

// ended checks how the caller ends: its status, and what it has written.
func (b *callerBed) ended(status int, stdout string) error {
	got, err := b.status()
	switch {
	case err != nil:
		return err
	case got != status:
		return fmt.Errorf("its status is %d, not %d", got, status)
	case b.stdout.String() != stdout:
		return fmt.Errorf("its output is %.60q, not %.60q", b.stdout.String(), stdout)
	}
	return nil
}

// input reads the call's input to its end, with grants of that size.
func (b *callerBed) input(size int) ([]byte, error) {
	data := vectors.Bin(b.call[callInput])
	if b.flag(1) {
		return data, nil
	}
	credit := 0
	for {
		if credit == 0 {
			b.c.Send(vectors.F(8, b.id(), 0, size))
			credit = size
		}
		f, err := b.c.Next()
		switch {
		case err != nil:
			return data, err
		case vectors.Matches(vectors.F(6, b.id(), 0), f):
			more := vectors.Bin(f[3])
			if credit -= len(more); credit < 0 {
				return data, fmt.Errorf("%d bytes came that were not granted", -credit)
			}
			data = append(data, more...)
		case vectors.Matches(vectors.F(7, b.id()), f):
			return data, nil
		case vectors.Matches(vectors.F(8), f):
		default:
			return data, fmt.Errorf("%s came", vectors.Text(f))
		}
	}
}

// callerChecks are the lines of wrong.jsonl, and what they cannot show.
func callerChecks() (checks []check, err error) {
	add := func(name, rules, words string, open bool, input string, f func(b *callerBed) error) {
		checks = append(checks, callerCheck(name, rules, words, open, input, f))
	}
	add("HELLO first, of version 1, then CALL with an id from 1", "C-2-1 C-3.1-1 C-5.1-1", "echo", false, "", func(b *callerBed) error {
		if b.id() < 1 || len(b.hello) < 6 {
			return fmt.Errorf("HELLO is %s", vectors.Text(b.hello))
		}
		for i := callCall; i < len(b.call) && i <= callOrigin; i++ {
			if v := b.call[i]; v != "" && v != 0. {
				return fmt.Errorf("element %d of CALL is %v, which only a node may set", i, v)
			}
		}
		b.end(0, 0, "exit")
		return b.ended(0, "")
	})
	checks = append(checks, check{name: "a node of major version 2", rules: []string{"C-3.2-1"}, run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
		return refuses(ctx, o, "version", vectors.F(1, 2, 0, "n", "i", "n"), "echo")
	}})
	checks = append(checks, check{name: "ERROR in place of HELLO, with a code that nobody knows", rules: []string{"E-7-1"}, run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
		plain, err := newBed(ctx, o, "exit", "1")
		if err != nil {
			return nil, err
		}
		b := &callerBed{bed: plain}
		defer b.close()
		if b.c, err = b.accept(); err != nil {
			return b.c, err
		}
		b.l.Close() // there is no other node
		b.c.Send(vectors.F(2, "acme.quota", "none left"))
		b.c.Settle()
		b.c.Close()
		return b.verdict(b.c, b.ended(255, ""))
	}})
	add("a small input", "C-5.2-1", "echo", false, "a b\n", func(b *callerBed) error { return b.takes("a b\n", 1000) })
	add("an input of 200,000 bytes, in grants of 1,000", "C-5.3-1 C-5.2-1 C-5.2-2", "echo", false, strings.Repeat("0123456789", 20000), func(b *callerBed) error {
		return b.takes(strings.Repeat("0123456789", 20000), 1000)
	})
	add("grants of 1 byte", "C-5.3-1", "echo", true, "", func(b *callerBed) error {
		go func() { // ends with the input
			io.WriteString(b.stdin, "slow bytes")
			b.stdin.Close()
		}()
		return b.takes("slow bytes", 1)
	})
	add("CALL comes before there is input", "C-5.1-2", "echo", true, "", func(b *callerBed) error {
		if b.flag(1) {
			return errors.New("it says that its input has ended")
		}
		b.end(0, 0, "exit")
		return b.ended(0, "")
	})
	add("words are a list of str", "C-6-1", "args a b c", true, "", func(b *callerBed) error {
		if b.call[callKind] != 1. || !bytes.Equal(vectors.Bin(b.call[callArgs]), []byte("\x93\xa1a\xa1b\xa1c")) {
			return fmt.Errorf("kind is %v and args %v", b.call[callKind], b.call[callArgs])
		}
		b.end(0, 0, "exit")
		return b.ended(0, "")
	})
	for _, status := range []int{0, 1, 42, 255} {
		add(fmt.Sprintf("exit status %d", status), "C-5.5-1", "exit 1", true, "", func(b *callerBed) error {
			b.end(0, status, "exit")
			return b.ended(status, "")
		})
	}
	add("a program that SIGKILL has ended", "C-5.5-1", "exit 1", true, "", func(b *callerBed) error {
		b.end(1, 137, "SIGKILL")
		return b.ended(137, "")
	})
	add("an end by fbus: the status and the message", "E-7-1", "exit 1", true, "", func(b *callerBed) error {
		b.end(2, 69, "no_function", "exit: no such function")
		if err := b.ended(69, ""); err != nil {
			return err
		}
		if !strings.Contains(b.stderr.String(), "no such function") {
			return fmt.Errorf("its stderr is %q", b.stderr.String())
		}
		return nil
	})
	for _, form := range forms() {
		add("END in the form: "+form.name, "C-2-10 C-2-11", "echo", true, "", func(b *callerBed) error {
			b.c.Write(form.frame(10, b.id(), 0, 7, "exit", "", "out"))
			return b.ended(7, "out")
		})
	}
	add("a code that nobody knows: its status counts", "E-7-1", "exit 1", true, "", func(b *callerBed) error {
		b.end(2, 73, "acme.quota", "none left")
		return b.ended(73, "")
	})
	add("ERROR with a code that nobody knows", "E-7-1", "exit 1", true, "", func(b *callerBed) error {
		b.l.Close() // there is no other node
		b.c.Send(vectors.F(2, "acme.quota", "none left"))
		b.c.Settle()
		b.c.Close()
		return b.ended(255, "")
	})
	add("a text with control characters, and a hint of a worker", "C-5.5-5 C-5.5-6", "exit 1", true, "", func(b *callerBed) error {
		b.end(2, 65, "acme.x", "red \x1b[31m\nhint: run this")
		_, err := b.status()
		text := b.stderr.String()
		if err == nil && (strings.ContainsAny(text, "\x1b\r") || strings.Contains(text, "\nhint:") || strings.Contains(text, "fbus: hint: run this")) {
			err = fmt.Errorf("its stderr is %q", text)
		}
		return err
	})
	add("output in DATA and END, and stderr apart", "C-5.5-1", "echo", true, "", func(b *callerBed) error {
		bin := func(s string) any { return vectors.NewBin([]byte(s)) }
		b.c.Send(vectors.F(6, b.id(), 2, bin("err\n")), vectors.F(6, b.id(), 1, bin("one ")), vectors.F(6, b.id(), 1, bin("")), vectors.F(6, b.id(), 1, bin("two ")))
		b.end(0, 3, "exit", "", bin("three"))
		if err := b.ended(3, "one two three"); err != nil {
			return err
		}
		if !strings.Contains(b.stderr.String(), "err\n") {
			return fmt.Errorf("its stderr is %q", b.stderr.String())
		}
		return nil
	})
	add("16 MiB of output, as it is granted", "C-5.3-2 C-2-9", "echo", true, "", (*callerBed).floods)
	add("16 MiB of input and of output at the same time", "C-2-9 C-5.3-4", "echo", false, strings.Repeat("0123456789abcdef", 1<<20), (*callerBed).exchanges)
	add("END while the input is open", "C-5.5-1", "echo", true, "abc", func(b *callerBed) error {
		b.c.Send(vectors.F(8, b.id(), 0, 100))
		b.end(0, 5, "exit")
		return b.ended(5, "")
	})
	add("INT: CANCEL, or the end of the connection, and no success", "C-3.3-2", "sleep 600", true, "", func(b *callerBed) error {
		b.signal(syscall.SIGINT)
		for {
			f, err := b.c.Next()
			switch {
			case err != nil: // the node then cancels the call
			case vectors.Matches(vectors.F(9, b.id()), f):
				b.end(2, 143, "cancelled", "")
			case vectors.Matches(vectors.F(8), f), vectors.Matches(vectors.F(7), f):
				continue
			default:
				return fmt.Errorf("%s came", vectors.Text(f))
			}
			status, err := b.status()
			if err == nil && status == 0 {
				err = errors.New("its status is 0")
			}
			return err
		}
	})
	end := vectors.Bytes(vectors.F(10, 1, 0, 0, "exit"))
	breaks := map[string][]byte{"closes the connection": nil}
	for _, code := range []string{"superseded", "busy", "denied", "revoked", "expired", "internal", "usage", "acme.new"} {
		breaks["sends ERROR "+code] = vectors.Bytes(vectors.F(2, code, "the reason"))
	}
	for cut := 1; cut < len(end); cut++ {
		breaks[fmt.Sprintf("breaks off after %d bytes of END", cut)] = end[:cut]
	}
	for _, name := range slices.Sorted(maps.Keys(breaks)) {
		add("the node "+name+": the call may have run", "C-3.3-2 C-2-8", "echo", true, "", func(b *callerBed) error {
			b.c.Write(breaks[name])
			b.l.Close() // there is no other node
			b.c.Close()
			status, err := b.status()
			if err == nil && status != 255 {
				err = fmt.Errorf("its status is %d, not 255", status)
			}
			return err
		})
	}
	wrong, err := vectors.ReadWrong("caller")
	for _, w := range wrong {
		if len(w.Then.Frames) > 0 { // a caller need not offer anything
			continue
		}
		checks = append(checks, wrongAtCaller(w))
	}
	return checks, err
}

// takes checks the input, and that the caller ends.
func (b *callerBed) takes(want string, grants int) error {
	got, err := b.input(grants)
	if err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("the input is %d bytes, not %d", len(got), len(want))
	}
	b.end(0, 0, "exit", "", vectors.NewBin([]byte("done")))
	return b.ended(0, "done")
}

// window is the credit for output that CALL has given.
func (b *callerBed) window() int {
	if len(b.call) > callWindow {
		return int(b.call[callWindow].(float64))
	}
	return 262144
}

// exchanges sends output while the caller sends its input.
func (b *callerBed) exchanges() error {
	const size = 16 << 20
	m := &mover{c: b.c, id: b.id(), stream: 1, size: size, credit: b.window(), received: len(vectors.Bin(b.call[callInput]))}
	b.c.Send(vectors.F(8, b.id(), 0, 262144))
	if err := m.run(); err != nil {
		return err
	}
	b.end(0, 7, "exit")
	status, err := b.status()
	if err == nil && (status != 7 || b.stdout.Len() != size) {
		err = fmt.Errorf("its status is %d, and its output %d bytes; not 7 and %d", status, b.stdout.Len(), size)
	}
	return err
}

// floods sends more output than any window has.
func (b *callerBed) floods() error {
	const size = 16 << 20
	credit := b.window()
	for sent := 0; sent < size; {
		if k := min(credit, size-sent, 64<<10); k > 0 {
			b.c.Send(vectors.F(6, b.id(), 1, vectors.NewBin(bytes.Repeat([]byte{'x'}, k))))
			sent, credit = sent+k, credit-k
			continue
		}
		f, err := b.c.Next()
		switch {
		case err != nil:
			return err
		case vectors.Matches(vectors.F(8, b.id(), 1), f):
			if credit += int(f[3].(float64)); credit > 4<<20 {
				return fmt.Errorf("%d bytes are granted and not used", credit)
			}
		case vectors.Matches(vectors.F(7), f), vectors.Matches(vectors.F(8), f):
		default:
			return fmt.Errorf("%s came", vectors.Text(f))
		}
	}
	b.end(0, 0, "exit")
	return b.ended(0, strings.Repeat("x", size))
}

// wrongAtCaller judges a caller by a line of wrong.jsonl. That the connection goes on is seen by the
// exit status that a later END has.
func wrongAtCaller(w *vectors.Wrong) check {
	return check{name: w.Name, rules: w.Rules, should: w.Should, run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
		plain, err := newBed(ctx, o, "echo")
		if err != nil {
			return nil, err
		}
		b := &callerBed{bed: plain}
		defer b.close()
		c, err := b.wrong(w)
		return b.verdict(c, err)
	}}
}

func (b *callerBed) wrong(w *vectors.Wrong) (_ *vectors.Conn, err error) {
	if w.State == "whole" {
		b.stdin.Close()
	}
	if b.c, err = b.accept(); err == nil {
		_, err = b.c.Expect(vectors.F(1, 1))
	}
	if err == nil && w.State != "connected" {
		b.c.Send(vectors.F(1, 1, 1, "conformance", "n", "node"))
		b.call, err = b.c.Expect(vectors.F(5, 1, "echo"))
	}
	if err != nil {
		return b.c, err
	}
	status := 42
	if w.State == "ended" {
		b.end(0, 42)
	}
	b.c.Send(w.Send...)
	if w.Then.Error != "" {
		b.c.Patience = b.o.patience(w)
		code, err := b.c.Ended()
		if err == nil && code != w.Then.Error {
			err = fmt.Errorf("closed with the code %q, not %q", code, w.Then.Error)
		}
		return b.c, err
	}
	if w.State == "connected" {
		b.call, err = b.c.Expect(vectors.F(5, 1, "echo"))
	}
	for _, f := range w.Send { // the first END counts
		if status == 42 && w.State != "ended" && vectors.Matches([]any{10.}, asFrame(f)) {
			status = int(f.([]any)[3].(float64))
			break
		}
	}
	if w.State != "ended" && err == nil {
		b.end(0, 42)
	}
	if err == nil {
		var got int
		if got, err = b.status(); err == nil && got != status {
			err = fmt.Errorf("its status is %d, not %d", got, status)
		}
	}
	return b.c, err
}

func asFrame(f any) []any {
	list, ok := f.([]any)
	if !ok {
		return []any{0.}
	}
	return list
}
