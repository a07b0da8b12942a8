package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/wire"

	"github.com/vmihailenco/msgpack/v5"
)

// The files in testdata are written in the notation of PROTOCOL.md, section 11. They are played
// here against the node and against the client of package bus: frames are encoded and decoded
// without package wire.

// appendNotation appends the msgpack of an element.
func appendNotation(dst []byte, v any) []byte {
	pack := func(v any) []byte {
		b, err := msgpack.Marshal(v)
		if err != nil {
			panic(err)
		}
		return append(dst, b...)
	}
	switch v := v.(type) {
	case nil:
		return pack("") // any value: in place of a str
	case float64:
		var b bytes.Buffer
		e := msgpack.NewEncoder(&b)
		e.UseCompactInts(true)
		e.EncodeUint(uint64(v))
		return append(dst, b.Bytes()...)
	case []any:
		dst = append(dst, 0xdc, byte(len(v)>>8), byte(len(v)))
		for _, element := range v {
			dst = appendNotation(dst, element)
		}
		return dst
	case map[string]any:
		if n, ok := v["zero"].(float64); ok {
			return pack(make([]byte, int(n)))
		}
		b, err := hex.DecodeString(v["bin"].(string))
		if err != nil {
			panic(err)
		}
		return pack(b)
	}
	return pack(v)
}

// frameBytes returns a frame, or the bytes that stand in place of one.
func frameBytes(v any) []byte {
	if m, ok := v.(map[string]any); ok {
		b, err := hex.DecodeString(m["hex"].(string))
		if err != nil {
			panic(err)
		}
		return b
	}
	return frameOf(appendNotation(nil, v)...)
}

// elements reads a frame as its elements.
func (p *raw) elements() ([]any, error) {
	var head [4]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(p.r, body); err != nil {
		return nil, err
	}
	var frame []any
	err := msgpack.Unmarshal(body, &frame)
	return frame, err
}

// notation writes an element that was read as the files do.
func notation(v any) any {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return map[string]any{"bin": hex.EncodeToString(v)}
	case []any:
		list := []any{}
		for _, element := range v {
			list = append(list, notation(element))
		}
		return list
	}
	var n float64
	fmt.Sscan(fmt.Sprint(v), &n)
	return n
}

// matches reports whether the elements of a frame are those of a pattern, which may have fewer.
func matches(pattern any, frame []any) bool {
	want := pattern.([]any)
	if len(frame) < len(want) {
		return false
	}
	for i := range want {
		got, _ := json.Marshal(notation(frame[i]))
		expected, _ := json.Marshal(want[i])
		if want[i] != nil && !bytes.Equal(got, expected) {
			return false
		}
	}
	return true
}

func shown(frame []any) string {
	b, _ := json.Marshal(notation(frame))
	return fmt.Sprintf("%.300s", b)
}

func isType(frame []any, t wire.Type) bool { return notation(frame[0]) == float64(t) }

// expect reads the next frame, which must match. GRANTs that the file does not list are skipped.
func (p *raw) expect(pattern any) (frame []any) {
	p.t.Helper()
	for {
		frame, err := p.elements()
		switch {
		case err != nil:
			p.t.Fatalf("waiting for %v: %v", pattern, err)
		case matches(pattern, frame):
			return frame
		case !isType(frame, wire.TypeGrant):
			p.t.Fatalf("%s came, not %v", shown(frame), pattern)
		}
	}
}

// readLines decodes a file of JSON lines.
func readLines[T any](t testing.TB, path string) (list []T) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	scan := bufio.NewScanner(bytes.NewReader(data))
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var line T
		d := json.NewDecoder(bytes.NewReader(scan.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&line); err != nil {
			t.Fatalf("%s: %v: %s", path, err, scan.Bytes())
		}
		list = append(list, line)
	}
	return list
}

// wrongLine is a line of wrong.jsonl.
type wrongLine struct {
	Name     string
	Rules    []string
	From, To string
	State    string
	Send     []any
	Then     struct {
		Error  string
		Drop   bool
		Frames []any
	}
}

// judge sends the line's frames and checks what happens. probe is a frame that is right, and answer
// what it gets: by then all that is sent for the line has come.
func (l *wrongLine) judge(p *raw, probe, answer any) {
	p.t.Helper()
	var all []byte
	for _, f := range l.Send {
		all = append(all, frameBytes(f)...)
	}
	sent := make(chan struct{})
	go func() { // ends when all was read, or the connection is closed
		defer close(sent)
		p.write(all)
	}()
	if code := l.Then.Error; code != "" {
		if got := p.closed(); got != code {
			p.t.Errorf("closed with %q, not %q", got, code)
		}
		return
	}
	for _, f := range l.Then.Frames {
		p.expect(f)
	}
	await(p.t, "the last byte", sent)
	p.write(frameBytes(probe))
	p.expect(answer)
}

func frame(elements ...any) []any {
	for i, v := range elements {
		if n, ok := v.(int); ok {
			elements[i] = float64(n)
		}
	}
	return elements
}

func call(id int, name string, flags int) []any {
	none := map[string]any{"bin": ""}
	return frame(5, id, name, 0, none, none, flags)
}

var (
	holdEnds = encode(&wire.EndFrame{ID: 1, Code: []byte("exit")})
	probing  = call(1000, "nothing", 1)
)

// atNode returns the peer of a node in the line's state.
func (l *wrongLine) atNode(t *testing.T) *raw {
	n, path := start(t, node.Config{})
	p := rawUnix(t, n, path)
	if l.State == "connected" {
		return p
	}
	caller, worker := p.greet(), rawUnix(t, n, path).greet()
	if l.From == "worker" {
		caller, worker = worker, p
	}
	worker.offer("hold", 1, 0)
	if l.State == "open" {
		return p
	}
	flags := 0
	if l.State == "whole" {
		flags = 1
	}
	caller.write(frameBytes(call(1, "hold", flags)))
	want[*wire.CallFrame](worker)
	switch l.State {
	case "queued":
		caller.write(frameBytes(call(2, "hold", 0)))
	case "ended":
		worker.write(holdEnds)
		want[*wire.EndFrame](caller)
	}
	return p
}

// TestWrongToNode plays the lines of wrong.jsonl that judge a node.
func TestWrongToNode(t *testing.T) {
	noLeaks(t)
	for _, l := range readLines[wrongLine](t, "../testdata/wrong.jsonl") {
		if l.To != "node" {
			continue
		}
		t.Run(l.Name, func(t *testing.T) {
			p := l.atNode(t)
			if l.From == "worker" {
				l.judge(p, frame(3, 999, "probe", 0), frame(4, 999, ""))
			} else {
				l.judge(p, probing, frame(10, 1000, 2, 69, "no_function"))
			}
		})
	}
}

// TestWrongToClient plays those that judge a caller or a worker.
func TestWrongToClient(t *testing.T) {
	noLeaks(t)
	for _, l := range readLines[wrongLine](t, "../testdata/wrong.jsonl") {
		if l.To == "node" {
			continue
		}
		t.Run(l.Name, func(t *testing.T) {
			c := newClientBed(t)
			p := c.node
			if l.State != "connected" {
				p.write(frameBytes(nodesHello))
			}
			if l.To == "worker" {
				c.beWorker(&l)
			} else {
				c.beCaller(&l)
			}
			l.judge(p, probing, frame(10, 1000, 2, 75, "busy"))
		})
	}
}

var nodesHello = frame(1, 1, 0, "n", "i", "n", []any{}, "n-1")

// clientBed is a client of package bus, whose node is the test.
type clientBed struct {
	t      *testing.T
	client *bus.Client
	node   *raw
}

func newClientBed(t *testing.T) *clientBed {
	near, far, err := node.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	client, err := bus.NewClient(bg(), near, &bus.Options{Eager: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &clientBed{t, client, newRaw(t, far)}
	t.Cleanup(func() {
		far.Close()
		client.Close()
	})
	c.node.expect(frame(1, 1))
	return c
}

// beCaller brings a caller into the line's state.
func (c *clientBed) beCaller(l *wrongLine) {
	if l.State == "connected" || l.State == "open" {
		return
	}
	r, w := io.Pipe()
	c.t.Cleanup(func() { w.Close() })
	req := bus.Request{Function: "hold", Input: r}
	if l.State == "whole" {
		req.Input = strings.NewReader("x")
	}
	ended := post(bg(), c.client, req)
	c.node.expect(frame(5, 1, "hold"))
	if l.State == "ended" {
		c.node.write(holdEnds)
		await(c.t, "the end of the call", ended)
	}
}

// beWorker does so for a worker.
func (c *clientBed) beWorker(l *wrongLine) {
	release := make(chan struct{})
	go c.client.Offer(bg(), bus.Offer{Name: "hold", Slots: 1}, func(ctx context.Context, _ *bus.Invocation) bus.Result { // ends with the answer
		select {
		case <-ctx.Done():
		case <-release:
		}
		return bus.Result{}
	})
	c.node.expect(frame(3, 1, "hold", 1))
	c.node.write(frameBytes(frame(4, 1, "", "")))
	switch l.State {
	case "call":
		c.node.write(frameBytes(call(1, "hold", 0)))
	case "whole", "ended":
		c.node.write(frameBytes(call(1, "hold", 1)))
	}
	if l.State == "ended" {
		close(release)
		c.node.expect(frame(10, 1))
	}
}

// transcriptLine is a line of a transcript; the first has the fields of the second half.
type transcriptLine struct {
	From, To string
	Frame    any
	Close    bool
	Node     string // what the node is asked to do: drain, stop

	Transcript, About string
	Rules             []string
	Plays             []string // who can be judged by it
}

func transcripts(t *testing.T, judged string, play func(t *testing.T, lines []transcriptLine)) {
	files, _ := filepath.Glob("../testdata/transcripts/*.jsonl")
	if len(files) < 15 {
		t.Fatalf("only %d transcripts", len(files))
	}
	noLeaks(t)
	for _, file := range files {
		lines := readLines[transcriptLine](t, file)
		if name := strings.TrimSuffix(filepath.Base(file), ".jsonl"); lines[0].Transcript != name || lines[0].About == "" {
			t.Errorf("%s: its first line is %+v", file, lines[0])
		}
		if slices.Contains(lines[0].Plays, judged) {
			t.Run(lines[0].Transcript, func(t *testing.T) { play(t, lines[1:]) })
		}
	}
}

// TestTranscriptsNode plays the transcripts with a node.
func TestTranscriptsNode(t *testing.T) {
	transcripts(t, "node", func(t *testing.T, lines []transcriptLine) {
		n, path := start(t, node.Config{})
		peers := map[string]*raw{}
		peer := func(name string) *raw {
			if peers[name] == nil {
				peers[name] = rawUnix(t, n, path)
			}
			return peers[name]
		}
		for _, l := range lines {
			switch {
			case l.Node == "drain":
				go n.Drain(bg()) // ends with the calls
				eventually(t, "a drain", func() bool { return n.Info().Draining })
			case l.Node == "stop":
				go n.Close() // ends with the connections
			case l.From == "node" && l.Close:
				if code := peer(l.To).closed(); code != "" {
					t.Errorf("%s: closed with %q", l.To, code)
				}
			case l.Close:
				peer(l.From).nc.Close()
			case l.From == "node":
				peer(l.To).expect(l.Frame)
			default:
				peer(l.From).write(frameBytes(l.Frame))
			}
			if t.Failed() {
				return
			}
		}
	})
}

// TestTranscriptsCaller plays them with a caller of package bus.
func TestTranscriptsCaller(t *testing.T) {
	transcripts(t, "caller", func(t *testing.T, lines []transcriptLine) {
		c := newClientBed(t)
		calls := map[float64]*scriptedCall{}
		for _, l := range lines {
			switch f, _ := l.Frame.([]any); {
			case l.From == "caller":
				if f[0] == 5. {
					calls[f[1].(float64)] = c.call(f)
				} else if f[0] != 1. {
					calls[f[1].(float64)].sends(c, f)
				}
			case l.To == "caller":
				if f[0] == 1. {
					f = nodesHello
				}
				c.node.write(frameBytes(f))
				if f[0] == 10. {
					calls[f[1].(float64)].ends(t, f)
				}
			}
		}
	})
}

// scriptedCall is a call that is made as a transcript says.
type scriptedCall struct {
	input  *io.PipeWriter
	cancel context.CancelFunc
	ended  <-chan outcome
	gone   bool // cancelled: its END was not waited for
}

func (c *clientBed) call(f []any) *scriptedCall {
	ctx, cancel := context.WithCancel(bg())
	s := &scriptedCall{cancel: cancel}
	req := bus.Request{Function: f[2].(string)}
	if f[6].(float64) == 0 {
		r, w := io.Pipe()
		req.Input, s.input = r, w
		c.t.Cleanup(func() { w.Close() })
	} else if in := binOf(f[5]); len(in) > 0 {
		req.Input = bytes.NewReader(in)
	}
	s.ended = post(ctx, c.client, req)
	if came := c.node.expect(f[:7]); len(came) > 14 {
		c.t.Errorf("the caller writes elements of the node's: %s", shown(came))
	}
	return s
}

func binOf(v any) []byte {
	b, _ := hex.DecodeString(v.(map[string]any)["bin"].(string))
	return b
}

// sends has the call send a frame.
func (s *scriptedCall) sends(c *clientBed, f []any) {
	switch f[0] {
	case 6.:
		s.input.Write(binOf(f[3]))
	case 7.:
		s.input.Close()
	case 8.: // it grants when it likes
		return
	case 9.:
		s.cancel()
		s.gone = true
	}
	c.node.expect(f)
}

// ends checks how the call has ended.
func (s *scriptedCall) ends(t *testing.T, f []any) {
	t.Helper()
	o := await(t, "the end of a call", s.ended)
	if s.gone {
		if !errors.Is(o.err, context.Canceled) {
			t.Errorf("a cancelled call: %v", o.err)
		}
		return
	}
	var exit *bus.ExitError
	var e *bus.Error
	source, status, code := f[2], int(f[3].(float64)), fmt.Sprint(f[4])
	switch {
	case source == 2.:
		if !errors.As(o.err, &e) || e.Code != code || args.StatusOf(code) != 255 && e.Status() != status {
			t.Errorf("%v: the caller has %v", f, o.err)
		}
	case status == 0:
		if o.err != nil {
			t.Errorf("%v: the caller has %v", f, o.err)
		}
	case !errors.As(o.err, &exit) || exit.Status != status || exit.Code != code:
		t.Errorf("%v: the caller has %v", f, o.err)
	}
}

// TestTranscriptsWorker plays them with a worker of package bus.
func TestTranscriptsWorker(t *testing.T) {
	transcripts(t, "worker", func(t *testing.T, lines []transcriptLine) {
		c := newClientBed(t)
		w := &scriptedWorker{clientBed: c, came: make(chan *scriptedInvocation, 1), calls: map[float64]*scriptedInvocation{}, over: make(chan struct{})}
		t.Cleanup(func() { close(w.over) })
		for _, l := range lines {
			switch f, _ := l.Frame.([]any); {
			case l.From == "worker" && l.Close:
				go c.client.Close() // ends with the cleanup
				if code := c.node.closed(); code != "" {
					t.Errorf("closed with %q", code)
				}
			case l.From == "worker":
				w.sends(f)
			case l.To == "worker":
				w.gets(f)
			}
		}
	})
}

// scriptedWorker is a worker whose programs do as a transcript says.
type scriptedWorker struct {
	*clientBed
	offering chan *bus.Offering
	came     chan *scriptedInvocation
	calls    map[float64]*scriptedInvocation
	over     chan struct{}
}

type scriptedInvocation struct {
	*bus.Invocation
	ctx    context.Context
	do     chan func()
	result bus.Result
}

func (w *scriptedWorker) serve(ctx context.Context, inv *bus.Invocation) bus.Result {
	s := &scriptedInvocation{Invocation: inv, ctx: ctx, do: make(chan func())}
	w.came <- s
	for {
		select {
		case f, more := <-s.do:
			if !more {
				return s.result
			}
			f()
		case <-w.over:
			return s.result
		}
	}
}

// sends has the worker send a frame.
func (w *scriptedWorker) sends(f []any) {
	t := w.t
	t.Helper()
	switch f[0] {
	case 1., 8.: // it has greeted, and grants when it likes
		return
	case 3.:
		slots := int(f[3].(float64))
		if w.offering == nil {
			w.offering = make(chan *bus.Offering, 1)
			go func() { // ends with OFFERED
				off, err := w.client.Offer(bg(), bus.Offer{Name: f[2].(string), Slots: slots}, w.serve)
				if err != nil {
					t.Error(err)
				}
				w.offering <- off
			}()
		} else {
			off := await(t, "OFFERED", w.offering)
			go off.SetSlots(bg(), slots) // ends with OFFERED
		}
	case 6.:
		s := w.calls[f[1].(float64)]
		out := s.Stdout
		if f[2] == 2. {
			out = s.Stderr
		}
		s.do <- func() { out.Write(binOf(f[3])) }
	case 10.:
		s := w.calls[f[1].(float64)]
		s.result.End = bus.End{Source: args.Source(f[2].(float64)), Status: int(f[3].(float64)), Code: f[4].(string)}
		if len(f) > 6 {
			s.result.Message, s.result.Output = f[5].(string), binOf(f[6])
		}
		close(s.do)
	}
	w.node.expect(f)
}

// gets sends a frame to the worker.
func (w *scriptedWorker) gets(f []any) {
	w.t.Helper()
	if f[0] == 1. {
		f = nodesHello
	}
	w.node.write(frameBytes(f))
	switch f[0] {
	case 5.:
		w.calls[f[1].(float64)] = await(w.t, "a call", w.came)
	case 6.: // its program reads it
		s, want := w.calls[f[1].(float64)], binOf(f[3])
		s.do <- func() {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(s.Rest(), got); err != nil || !bytes.Equal(got, want) {
				w.t.Errorf("the program has read %q, %v", got, err)
			}
		}
	case 9.:
		await(w.t, "the cancellation", w.calls[f[1].(float64)].ctx.Done())
	}
}
