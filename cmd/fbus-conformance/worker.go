package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"fbus/bus/vectors"
)

// functions are what a worker that is judged offers.
var functions = []string{"echo", "args", "sleep", "exit"}

// workerBed is a worker that is judged. It may offer its functions over one connection or several.
type workerBed struct {
	*bed
	at     map[string]*vectors.Conn // where each function is offered
	slots  map[string]int
	hellos [][]any // of its connections
	lastID map[*vectors.Conn]int
}

// workerCheck makes a check of a worker that has made its offers.
func workerCheck(name string, rules []string, f func(b *workerBed) (*vectors.Conn, error)) check {
	return check{name: name, rules: rules, run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
		b, c, err := newWorkerBed(ctx, o)
		if b != nil {
			defer b.close()
		}
		if err == nil {
			c, err = f(b)
		}
		if b == nil {
			return c, err
		}
		return b.verdict(c, err)
	}}
}

func newWorkerBed(ctx context.Context, o *options) (*workerBed, *vectors.Conn, error) {
	plain, err := newBed(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	b := &workerBed{bed: plain}
	c, err := b.meet()
	return b, c, err
}

// meet waits until all functions are offered.
func (b *workerBed) meet() (c *vectors.Conn, err error) {
	b.at, b.slots, b.lastID = map[string]*vectors.Conn{}, map[string]int{}, map[*vectors.Conn]int{}
	for len(b.at) < len(functions) {
		var hello []any
		if c, hello, err = b.greet(); err != nil {
			return c, err
		}
		b.hellos = append(b.hellos, hello)
		for more := true; more && len(b.at) < len(functions); more = b.pending(c) {
			f, err := c.Expect(vectors.F(3, nil, nil, nil))
			if err != nil {
				return c, err
			}
			name, _ := f[2].(string)
			slots, _ := f[3].(float64)
			if slots < 1 {
				return c, fmt.Errorf("%s is offered with %v slots", name, f[3])
			}
			b.at[name], b.slots[name] = c, int(slots)
			c.Send([]any{4., f[1], "", ""})
		}
	}
	for _, name := range functions {
		if b.at[name] == nil {
			return c, fmt.Errorf("%s is not offered", name)
		}
	}
	return c, nil
}

// pending reports whether more offers come on a connection, and not on another one.
func (b *workerBed) pending(c *vectors.Conn) bool {
	if len(b.at) == len(functions) {
		return false
	}
	c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err := c.Peek(1)
	c.SetReadDeadline(time.Now().Add(b.o.limit))
	return err == nil
}

// call opens a call of a function. flags 1: the input is all.
func (b *workerBed) call(name string, kind int, args, input []byte, flags int, more ...any) (*vectors.Conn, int) {
	c := b.at[name]
	b.lastID[c]++
	f := vectors.F(append([]any{5, b.lastID[c], name, kind, vectors.NewBin(args), vectors.NewBin(input), flags}, more...)...)
	c.Send(f)
	return c, b.lastID[c]
}

// msgpack lists of words.
func list(words ...string) []byte {
	out := []byte{0x90 | byte(len(words))}
	for _, w := range words {
		out = append(append(out, 0xd9, byte(len(w))), w...)
	}
	return out
}

// ends collects the output of a call until its END, and grants it.
func ends(c *vectors.Conn, id int) (output []byte, end []any, err error) {
	for {
		f, err := c.Next()
		switch {
		case err != nil:
			return output, nil, err
		case vectors.Matches(vectors.F(6, id, 1), f):
			data := vectors.Bin(f[3])
			output = append(output, data...)
			if len(data) > 0 {
				c.Send(vectors.F(8, id, 1, len(data)))
			}
		case vectors.Matches(vectors.F(10, id), f):
			if len(f) > 6 {
				output = append(output, vectors.Bin(f[6])...)
			}
			return output, f, nil
		case vectors.Matches(vectors.F(8), f), vectors.Matches(vectors.F(6, id, 2), f):
		default:
			return output, nil, fmt.Errorf("%s came", vectors.Text(f))
		}
	}
}

// wantEnd checks how a call ends, and its output; nil: any.
func wantEnd(c *vectors.Conn, id int, output []byte, pattern ...any) error {
	got, end, err := ends(c, id)
	if err != nil {
		return err
	}
	if want := vectors.F(append([]any{10, id}, pattern...)...); !vectors.Matches(want, end) {
		return fmt.Errorf("the call ended with %s, not %s", vectors.Text(end), vectors.Text(want))
	}
	if output != nil && !bytes.Equal(got, output) {
		return fmt.Errorf("the output is %.60q, not %.60q", got, output)
	}
	return nil
}

// alive checks that the connection goes on.
func (b *workerBed) alive(c *vectors.Conn) error {
	c.Send(vectors.Call(100000, "nothing", 1))
	_, err := c.Expect(vectors.F(10, 100000, 2, 75, "busy"))
	return err
}

// reach brings a worker into a state of wrong.jsonl.
func (b *workerBed) reach(state string) (*vectors.Conn, error) {
	switch state {
	case "call": // it waits for its input
		c, _ := b.call("echo", 0, nil, nil, 0)
		return c, nil
	case "whole":
		c, _ := b.call("sleep", 1, list("600"), nil, 1)
		return c, nil
	case "ended":
		c, id := b.call("exit", 1, list("0"), nil, 1)
		return c, wantEnd(c, id, nil, 0, 0)
	}
	return b.at["echo"], nil
}

// workerChecks are the lines of wrong.jsonl, and what they cannot show.
func workerChecks() (checks []check, err error) {
	add := func(name, rules string, f func(b *workerBed) (*vectors.Conn, error)) {
		checks = append(checks, workerCheck(name, strings.Fields(rules), f))
	}
	add("HELLO first, of version 1, then offers", "C-2-1 C-3.1-1", func(b *workerBed) (*vectors.Conn, error) {
		for _, h := range b.hellos {
			if !vectors.Matches(vectors.F(1, 1), h) || len(h) < 6 {
				return b.all[0], fmt.Errorf("its HELLO is %s", vectors.Text(h))
			}
		}
		return nil, nil
	})
	checks = append(checks, check{name: "a node of major version 2", rules: []string{"C-3.2-1"}, run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
		return refuses(ctx, o, "version", vectors.F(1, 2, 0, "n", "i", "n"))
	}}, check{name: "a first frame that is not HELLO", rules: []string{"C-3.1-2", "C-3.3-3"}, run: func(ctx context.Context, o *options) (*vectors.Conn, error) {
		return refuses(ctx, o, "protocol", vectors.F(4, 1, "", ""))
	}})
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	add("echo of a whole input", "C-5.5-1 C-5.5-2", func(b *workerBed) (*vectors.Conn, error) {
		c, id := b.call("echo", 0, nil, binary, 1)
		return c, wantEnd(c, id, binary, 0, 0)
	})
	add("echo of an empty input", "C-5.5-1", func(b *workerBed) (*vectors.Conn, error) {
		c, id := b.call("echo", 0, nil, nil, 1)
		return c, wantEnd(c, id, []byte{}, 0, 0)
	})
	add("input is granted at once, and comes in DATA", "C-5.3-1 C-5.2-1", func(b *workerBed) (*vectors.Conn, error) {
		c, id := b.call("echo", 0, nil, nil, 0)
		f, err := grant(c, id)
		if err != nil {
			return c, err
		}
		rest := binary[:min(len(binary), f)]
		c.Send(vectors.F(6, id, 0, vectors.NewBin(nil)), vectors.F(6, id, 0, vectors.NewBin(rest)), vectors.F(7, id))
		return c, wantEnd(c, id, rest, 0, 0)
	})
	for _, window := range []int{1, 1000} {
		add(fmt.Sprintf("credit to the byte, with a window of %d", window), "C-5.3-1", func(b *workerBed) (*vectors.Conn, error) {
			data := bytes.Repeat(binary, 12)[:3*window+7]
			c, id := b.call("echo", 0, nil, data, 1, 0, 0, 4294967295, 0, "", window, window)
			return c, exact(c, id, window, data)
		})
	}
	add("16 MiB of input and output at the same time", "C-2-9 C-5.3-2 C-5.3-4", func(b *workerBed) (*vectors.Conn, error) {
		c, id := b.call("echo", 0, nil, nil, 0)
		return c, pumped(c, id, 16<<20)
	})
	for _, a := range []struct {
		name, rules string
		kind        int
		args        []byte
		want        string
	}{
		{"a list of strings", "C-6-1", 1, list("a", "", "ü b"), `["a","","ü b"]`},
		{"a list in other forms", "C-2-10", 1, append([]byte{0xdd, 0, 0, 0, 2, 0xda, 0, 1, 'x'}, 0xdb, 0, 0, 0, 1, 'y'), `["x","y"]`},
		{"a map", "C-6-1", 2, []byte("\x82\xa1n\xa3Bob\xa3age\xc4\x0241"), `{"n":"Bob","age":41}`},
		{"JSON in a list", "C-6-1", 1, []byte("\x92\xc4\x04true\xc4\x0a{\"k\":[1]} "), `[true,{"k":[1]}]`},
		{"a document", "C-6-1", 3, []byte(`{"n":[1,null,"x"]}`), `{"n":[1,null,"x"]}`},
		{"values of msgpack", "C-6-1", 1, []byte("\x95\xc0\xc3\x07\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\x92\x01\x02"), `[null,true,7,1.5,[1,2]]`},
	} {
		add("arguments: "+a.name, a.rules, func(b *workerBed) (*vectors.Conn, error) {
			c, id := b.call("args", a.kind, a.args, nil, 1)
			out, end, err := ends(c, id)
			if err == nil && (!vectors.Matches(vectors.F(10, id, 0, 0), end) || !sameJSON(out, []byte(a.want))) {
				err = fmt.Errorf("the output is %.100q and the end %s; not %s", out, vectors.Text(end), a.want)
			}
			return c, err
		})
	}
	add("arguments that are not msgpack", "C-6-3", func(b *workerBed) (*vectors.Conn, error) {
		c, id := b.call("args", 1, []byte{0x92, 0xa1}, nil, 1)
		if err := wantEnd(c, id, nil, 2, 65, "bad_input"); err != nil {
			return c, err
		}
		return c, b.alive(c)
	})
	for _, status := range []int{0, 1, 7, 255} {
		add(fmt.Sprintf("exit status %d", status), "C-5.5-1 C-5.5-3", func(b *workerBed) (*vectors.Conn, error) {
			c, id := b.call("exit", 1, list(fmt.Sprint(status)), nil, 1)
			return c, wantEnd(c, id, nil, 0, status)
		})
	}
	add("CALL with further elements, in a newer minor version", "C-2-4 C-5.1-5", func(b *workerBed) (*vectors.Conn, error) {
		c, id := b.call("echo", 0, nil, []byte("x"), 0x101, 0, 0, 4294967295, 0, "", 1000, 1000, "n-1-1", "uid:0", "", 0, "", "", "new", []any{1., 2.})
		return c, wantEnd(c, id, []byte("x"), 0, 0)
	})
	for _, form := range forms() {
		add("CALL in the form: "+form.name, "C-2-10 C-2-11", func(b *workerBed) (*vectors.Conn, error) {
			c := b.at["echo"]
			b.lastID[c]++
			c.Write(form.frame(5, b.lastID[c], "echo", 0, "", "x", 1))
			return c, wantEnd(c, b.lastID[c], []byte("x"), 0, 0)
		})
	}
	add("the node breaks off at each byte of a frame: it connects again", "C-2-8 C-4.2-2", func(b *workerBed) (*vectors.Conn, error) {
		frame := vectors.Bytes(vectors.Call(1, "echo", 1))
		for cut := 1; cut < len(frame); cut++ {
			b.at["echo"].Write(frame[:cut])
			for _, c := range b.all {
				c.Close()
			}
			if c, err := b.meet(); err != nil {
				return c, fmt.Errorf("after %d bytes: %w", cut, err)
			}
		}
		return nil, nil
	})
	add("frames byte by byte", "C-2-1", func(b *workerBed) (*vectors.Conn, error) {
		c := b.at["echo"]
		b.lastID[c]++
		f := vectors.Call(b.lastID[c], "echo", 1)
		f[5] = vectors.NewBin([]byte("slowly"))
		for _, x := range vectors.Bytes(f) {
			c.Write([]byte{x})
		}
		return c, wantEnd(c, b.lastID[c], []byte("slowly"), 0, 0)
	})
	add("CANCEL ends the program, with one END, and the slot is free again", "C-5.4-2 C-5.5-1", func(b *workerBed) (*vectors.Conn, error) {
		c, id := b.call("sleep", 1, list("600"), nil, 1)
		c.Send(vectors.F(9, id, "cancelled"), vectors.F(9, id))
		if _, _, err := ends(c, id); err != nil {
			return c, err
		}
		c, id = b.call("sleep", 1, list("0"), nil, 1)
		return c, wantEnd(c, id, nil, 0, 0)
	})
	add("CANCEL of a call that reads and of one that writes", "C-5.4-2", func(b *workerBed) (*vectors.Conn, error) {
		c, id := b.call("echo", 0, nil, nil, 0)
		c.Send(vectors.F(9, id, "deadline"))
		if _, _, err := ends(c, id); err != nil {
			return c, err
		}
		c, id = b.call("echo", 0, nil, bytes.Repeat([]byte("x"), 20000), 1, 0, 0, 4294967295, 0, "", 10, 10)
		if _, err := c.Expect(vectors.F(6, id, 1)); err != nil {
			return c, err
		}
		c.Send(vectors.F(9, id))
		_, _, err := ends(c, id)
		return c, err
	})
	add("as many calls at once as slots, and one more is busy", "C-4-8", func(b *workerBed) (*vectors.Conn, error) {
		slots := min(b.slots["sleep"], 100)
		for range b.slots["sleep"] {
			if slots--; slots < 0 {
				return nil, nil // so many are not tried
			}
			b.call("sleep", 1, list("600"), nil, 1)
		}
		c, id := b.call("sleep", 1, list("0"), nil, 1)
		f, err := c.Next()
		if err == nil && !vectors.Matches(vectors.F(10, id, 2, 75), f) {
			err = fmt.Errorf("%s came, not END busy", vectors.Text(f))
		}
		return c, err
	})
	add("drain on TERM", "C-4-5 C-4-6 C-5.5-1", (*workerBed).drains)
	add("a lost connection: it connects again, and makes its offers", "C-4.2-1 C-4.2-2", func(b *workerBed) (*vectors.Conn, error) {
		was := b.hellos
		b.hellos = nil
		for _, c := range b.all {
			c.Close()
		}
		c, err := b.meet()
		if err == nil && len(was) == 1 && len(b.hellos) == 1 && !reflect.DeepEqual(was[0][4], b.hellos[0][4]) {
			err = errors.New("its instance has changed")
		}
		return c, err
	})
	checks = append(checks, check{name: "an offer that is denied is not repeated", rules: []string{"C-4-6"}, run: denied})
	wrong, err := vectors.ReadWrong("worker")
	for _, w := range wrong {
		switch w.Name {
		case "a CALL more than the worker has slots": // it may have more than one
			continue
		}
		add(w.Name, strings.Join(w.Rules, " "), func(b *workerBed) (*vectors.Conn, error) {
			c, err := b.reach(w.State)
			if err == nil {
				c.Patience = b.o.patience(w)
				err = w.Judge(c, vectors.Call(1000, "nothing", 1), vectors.F(10, 1000, 2, 75, "busy"))
			}
			return c, err
		})
		checks[len(checks)-1].should = w.Should
	}
	return checks, err
}

// refuses checks that a client gives a node up, with a code, for its first frame.
func refuses(ctx context.Context, o *options, code string, first []any, words ...string) (*vectors.Conn, error) {
	b, err := newBed(ctx, o, words...)
	if err != nil {
		return nil, err
	}
	defer b.close()
	c, err := b.accept()
	if err != nil {
		return c, err
	}
	if _, err := c.Expect(vectors.F(1, 1)); err != nil {
		return c, err
	}
	c.Send(first)
	got, err := c.Ended()
	if err == nil && got != code {
		err = fmt.Errorf("closed with the code %q, not %q", got, code)
	}
	return b.verdict(c, err)
}

// grant waits for the first GRANT of a call's input.
func grant(c *vectors.Conn, id int) (int, error) {
	for {
		f, err := c.Expect(vectors.F(8, id, 0))
		if err != nil {
			return 0, err
		}
		if n := int(f[3].(float64)); n > 0 {
			return n, nil
		}
	}
}

// exact grants byte by byte, and checks that no more comes than was granted.
func exact(c *vectors.Conn, id, window int, want []byte) error {
	credit := window
	var got []byte
	for {
		f, err := c.Next()
		if err != nil {
			return err
		}
		switch end := vectors.Matches(vectors.F(10, id), f); {
		case vectors.Matches(vectors.F(6, id, 1), f), end:
			var data []byte
			if !end {
				data = vectors.Bin(f[3])
			} else if len(f) > 6 {
				data = vectors.Bin(f[6])
			}
			if credit -= len(data); credit < 0 {
				return fmt.Errorf("%d bytes came that were not granted", -credit)
			}
			got = append(got, data...)
			if end {
				if !bytes.Equal(got, want) {
					return fmt.Errorf("the output is %.60q, not %.60q", got, want)
				}
				return nil
			}
			if len(data) > 0 {
				c.Send(vectors.F(8, id, 1, len(data)))
				credit += len(data)
			}
		case vectors.Matches(vectors.F(8), f):
		default:
			return fmt.Errorf("%s came", vectors.Text(f))
		}
	}
}

// pumped sends input as it is granted, and reads it back.
func pumped(c *vectors.Conn, id, size int) error {
	sent, received, credit := 0, 0, 0
	c.WriteBehind()
	for {
		for credit > 0 && sent < size {
			k := min(credit, size-sent, 64<<10)
			c.Send(vectors.F(6, id, 0, vectors.NewBin(make([]byte, k))))
			sent, credit = sent+k, credit-k
			if sent == size {
				c.Send(vectors.F(7, id))
			}
		}
		f, err := c.Next()
		switch {
		case err != nil:
			return err
		case vectors.Matches(vectors.F(8, id, 0), f):
			if credit += int(f[3].(float64)); credit > 4<<20 {
				return fmt.Errorf("%d bytes are granted and not used", credit)
			}
		case vectors.Matches(vectors.F(6, id, 1), f):
			n := len(vectors.Bin(f[3]))
			received += n
			if n > 0 {
				c.Send(vectors.F(8, id, 1, n))
			}
		case vectors.Matches(vectors.F(10, id, 0, 0), f):
			if len(f) > 6 {
				received += len(vectors.Bin(f[6]))
			}
			if received != size {
				return fmt.Errorf("%d bytes came back of %d", received, size)
			}
			return nil
		default:
			return fmt.Errorf("%s came", vectors.Text(f))
		}
	}
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// drains sends TERM while a call runs: the offers are withdrawn, a CALL that crosses is answered,
// the running call finishes, and the connection closes without ERROR.
func (b *workerBed) drains() (*vectors.Conn, error) {
	c, id := b.call("echo", 0, nil, nil, 0)
	if _, err := grant(c, id); err != nil {
		return c, err
	}
	b.signal(syscall.SIGTERM)
	withdrawn := map[string]bool{}
	for !withdrawn["echo"] {
		f, err := c.Expect(vectors.F(3, nil, nil, 0))
		if err != nil {
			return c, err
		}
		withdrawn[fmt.Sprint(f[2])] = true
		c.Send([]any{4., f[1], "", ""})
	}
	c.Send(vectors.F(6, id, 0, vectors.NewBin([]byte("x"))), vectors.F(7, id))
	for ended := false; ; {
		f, err := c.Next()
		switch {
		case err != nil && ended:
			return c, nil
		case err != nil:
			return c, err
		case vectors.Matches(vectors.F(3, nil, nil, 0), f):
			c.Send([]any{4., f[1], "", ""})
		case vectors.Matches(vectors.F(10, id, 0, 0), f) && !ended:
			ended = true
		case vectors.Matches(vectors.F(10), f), vectors.Matches(vectors.F(2), f):
			return c, fmt.Errorf("%s came", vectors.Text(f))
		}
	}
}

// denied refuses the first offer, and waits a moment for another try.
func denied(ctx context.Context, o *options) (*vectors.Conn, error) {
	b, err := newBed(ctx, o)
	if err != nil {
		return nil, err
	}
	defer b.close()
	c, _, err := b.greet()
	if err != nil {
		return c, err
	}
	f, err := c.Expect(vectors.F(3))
	if err != nil {
		return c, err
	}
	c.Send([]any{4., f[1], "denied", "no"})
	names := []any{f[2]}
	c.Patience = time.Second
	for {
		f, err := c.Next()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return b.verdict(c, nil)
		case err != nil: // it gives up, or does it try again?
			b.o = &options{limit: time.Second, cmd: o.cmd, tls: o.tls}
			if again, _, err := b.greet(); err == nil {
				c = again
				c.Patience = time.Second
				continue
			}
			return b.verdict(c, nil)
		case vectors.Matches(vectors.F(3), f) && slices.Contains(names, f[2]) && f[3] != 0.:
			return c, fmt.Errorf("%v is offered again", f[2])
		case vectors.Matches(vectors.F(3), f):
			c.Send([]any{4., f[1], "denied", "no"})
			names = append(names, f[2])
		}
	}
}
