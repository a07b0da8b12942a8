package commands

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus/args"
)

func TestPipeParse(t *testing.T) {
	for _, c := range []struct {
		line   string
		id     string // "-": a notification
		method string
		kind   args.Kind
		input  string // "-": none
		code   int    // 0: it is a request
	}{
		{`{"jsonrpc":"2.0","id":1,"method":"f"}`, `1`, "f", args.KindRaw, "-", 0},
		{` { "method" : "f" , "id" : "a\u0062" , "jsonrpc" : "2.0" } `, `"a\u0062"`, "f", args.KindRaw, "-", 0},
		{`{"jsonrpc":"2.0","id":12345678901234567890.50,"method":"f","params":[]}`, `12345678901234567890.50`, "f", args.KindList, "-", 0},
		{`{"jsonrpc":"2.0","id":null,"method":"f","params":{}}`, `null`, "f", args.KindMap, "-", 0},
		{`{"jsonrpc":"2.0","method":"f","params":null}`, "-", "f", args.KindRaw, "-", 0},
		{`{"jsonrpc":"2.0","id":1,"method":"f","params":["a","]}"]}`, `1`, "f", args.KindList, "-", 0},
		{`{"jsonrpc":"2.0","id":1,"method":"f","params":["a",1]}`, `1`, "f", args.KindJSON, "-", 0},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input":"a\n\u00e9"}`, `1`, "f", args.KindRaw, "a\né", 0},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input":""}`, `1`, "f", args.KindRaw, "", 0},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input_base64":"/wA="}`, `1`, "f", args.KindRaw, "\xff\x00", 0},
		{`{"jsonrpc":"2.0","id":1,"method":"\u0066"}`, `1`, "f", args.KindRaw, "-", 0},
		{`{"jsonrpc":"2.0","id":{},"method":"f"}`, `null`, "", 0, "-", rpcInvalid},
		{`{"jsonrpc":"2.0","id":true,"method":"f"}`, `null`, "", 0, "-", rpcInvalid},
		{`{"jsonrpc":"1.0","id":1,"method":"f"}`, `1`, "", 0, "-", rpcInvalid},
		{`{"id":1,"method":"f"}`, `1`, "", 0, "-", rpcInvalid},
		{`{"jsonrpc":"2.0","ID":1,"METHOD":"f"}`, "-", "", 0, "-", rpcInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":7}`, `1`, "", 0, "-", rpcInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":"f","params":"x"}`, `1`, "f", 0, "-", rpcInvalid},
		{`{"jsonrpc":"2.0","id":1,"result":"f"}`, `1`, "", 0, "-", rpcInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input":{}}`, `1`, "f", 0, "-", rpcInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input":"","input_base64":""}`, `1`, "f", 0, "-", rpcInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input_base64":"%"}`, `1`, "f", 0, "-", rpcInvalid},
		{`{}`, "-", "", 0, "-", rpcInvalid},
		{`7`, "-", "", 0, "-", rpcInvalid},
		{`"x"`, "-", "", 0, "-", rpcInvalid},
		{`[]`, "-", "", 0, "-", rpcInvalid},
		{`{`, "-", "", 0, "-", rpcParse},
		{`{} {}`, "-", "", 0, "-", rpcParse},
		{"\"\xff\"", "-", "", 0, "-", rpcParse},
		{strings.Repeat("[", 20000), "-", "", 0, "-", rpcParse},
	} {
		docs, _, err := splitBatch([]byte(c.line))
		var r rpcRequest
		if err == nil {
			r, err = parseRequest(docs[0])
		}
		code := 0
		var e *rpcError
		if errors.As(err, &e) {
			code = e.code
		}
		id, input := "-", "-"
		if r.id != nil {
			id = string(r.id)
		}
		if r.raw {
			input = string(r.input)
		}
		if code != c.code || id != c.id || r.method != c.method || code == 0 && (input != c.input || r.arguments().Kind() != c.kind) {
			t.Errorf("%.80s: id %s, method %s, input %q, error %v", c.line, id, r.method, input, err)
		}
	}
}

func TestPipeBatchLimit(t *testing.T) {
	_, _, err := splitBatch([]byte("[1" + strings.Repeat(",1", maxBatch) + "]"))
	var e *rpcError
	if !errors.As(err, &e) || e.code != rpcInvalid {
		t.Errorf("a batch above the limit: %v", err)
	}
}

// FuzzPipeRequest takes any line: what comes of it is a request or an error, and
// the parts of a request are JSON again.
func FuzzPipeRequest(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"f","params":[1, {"a" : "]"}, "\\\""],"input":"x"}`))
	f.Add([]byte(`[{"jsonrpc":"2.0"}, 1,[[]] ]`))
	f.Add([]byte(`{"":{"":[]},"params":{"a":-1.5e9 ,"b":null}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if len(bytes.TrimSpace(line)) == 0 {
			return
		}
		docs, _, err := splitBatch(line)
		if err != nil {
			return
		}
		for _, doc := range docs {
			if !json.Valid(doc) {
				t.Fatalf("%q is cut into %q", line, doc)
			}
			r, err := parseRequest(doc)
			if err != nil {
				continue
			}
			idKey(r.id)
			r.arguments()
			if r.params != nil && !json.Valid(r.params) {
				t.Fatalf("params of %q: %q", line, r.params)
			}
		}
	})
}

func TestPipeIDs(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{`"a"`, `"\u0061"`, true}, {`1`, `1`, true}, {`"1"`, `1`, false}, {`1`, `2`, false},
	} {
		if (idKey([]byte(c.a)) == idKey([]byte(c.b))) != c.same {
			t.Errorf("%s and %s", c.a, c.b)
		}
	}
	if idKey([]byte("null")) != "" || idKey(nil) != "" {
		t.Error("null names a call")
	}
}

func TestPipeResult(t *testing.T) {
	for _, c := range []struct {
		output string
		text   bool
		want   string
	}{
		{"123456789012345678901234567890.10\n", false, `123456789012345678901234567890.10`},
		{"{\n \"z\": 1.0,\n \"a\": [ ]\n}\n", false, `{"z":1.0,"a":[]}`},
		{"{\"a\":1}\n", true, `"{\"a\":1}\n"`},
		{"one\ntwo\n", false, `"one\ntwo\n"`},
		{"1\n2\n", false, `"1\n2\n"`},
		{"", false, `""`},
		{"\"<\u2028>\"", false, "\"<\u2028>\""},
		{"a\x00\x1f\t\"\\", false, `"a\u0000\u001f\t\"\\"`},
		{"\xff", false, `{"base64":"/w=="}`},
		{"\"\xff\"", false, `{"base64":"Iv8i"}`},
		{"\xff", true, `{"base64":"/w=="}`},
	} {
		if got := appendResult([]byte("x"), []byte(c.output), c.text); string(got) != "x"+c.want {
			t.Errorf("%q: %s", c.output, got)
		} else if !json.Valid(got[1:]) || bytes.Contains(got, []byte("\n")) {
			t.Errorf("%q: %s is no line of JSON", c.output, got)
		}
	}
}

func TestPipeError(t *testing.T) {
	e := &rpcError{code: 3, message: "bad \xff", data: &rpcData{source: "program", status: 3, code: "exit", stderr: "a\n\xff", output: []byte{0xff}}}
	got := appendAnswer(nil, []byte(`"i"`), e, nil, false)
	want := `{"jsonrpc":"2.0","id":"i","error":{"code":3,"message":"bad ` + "\ufffd" + `","data":{"source":"program","status":3,"code":"exit",` +
		`"call":"","worker":"","stderr":"a\n` + "\ufffd" + `","output":{"base64":"/w=="}}}}`
	if string(got) != want {
		t.Errorf("%s", got)
	}
}

func TestPipeReadLine(t *testing.T) {
	r := bufio.NewReaderSize(strings.NewReader("short\n"+strings.Repeat("x", 100)+"\n"+strings.Repeat("y", 50)+"\nlast"), 16)
	var got []string
	for {
		line, err := readLine(r, 50)
		if err == errLongLine {
			line = []byte("LONG\n")
			err = nil
		}
		got = append(got, string(line))
		if err != nil {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
	}
	if want := []string{"short\n", "LONG\n", strings.Repeat("y", 50) + "\n", "last"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q", got)
	}
}

func TestPipeStderr(t *testing.T) {
	var through bytes.Buffer
	s := &pipeStderr{w: &through}
	var all strings.Builder
	for i := range 20000 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		s.Write([]byte(line))
	}
	tail := s.tail()
	if len(tail) > maxStderrTail || len(tail) < maxStderrTail-20 || !strings.HasPrefix(tail, "line ") {
		t.Errorf("%d bytes are kept: %.20q", len(tail), tail)
	}
	s.flush()
	if through.String() != all.String() {
		t.Error("what was passed on is not what was written")
	}
	s.Write([]byte(strings.Repeat("x", 2*maxStderrTail)))
	if len(s.tail()) != maxStderrTail {
		t.Errorf("%d bytes of a long line are kept", len(s.tail()))
	}
}

// TestPipeAnswers has many write at once to a slow stdout: every line is whole.
func TestPipeAnswers(t *testing.T) {
	r, w := io.Pipe()
	a := newAnswers(w)
	var wg sync.WaitGroup
	const n = 500
	for i := range n {
		wg.Go(func() {
			a.put(true, func(dst []byte) []byte { return fmt.Appendf(dst, "%d %s", i, strings.Repeat("x", i*20)) })
		})
	}
	go func() {
		wg.Wait()
		a.close()
		w.Close()
	}()
	seen := map[int]bool{}
	for sc := bufio.NewScanner(r); sc.Scan(); {
		var i int
		var x string
		fmt.Sscan(sc.Text(), &i, &x)
		if len(x) != i*20 {
			t.Fatalf("line %d has %d bytes", i, len(x))
		}
		seen[i] = true
	}
	if len(seen) != n {
		t.Errorf("%d lines", len(seen))
	}
	a.put(false, func(dst []byte) []byte { return append(dst, "late"...) }) // must not write to the closed pipe
}

// TestPipeHoard has calls that need more than there is room for: one goes on,
// and then the next.
func TestPipeHoard(t *testing.T) {
	h := newHoard(100)
	a, b := new(int), new(int)
	ctx := context.Background()
	for range 20 {
		if err := h.take(ctx, a, 10); err != nil {
			t.Fatal(err)
		}
	}
	if h.tryTake(1) {
		t.Error("there was room in a full hoard")
	}
	done := make(chan error)
	go func() { done <- h.take(ctx, b, 60) }()
	ended, cancel := context.WithCancel(ctx)
	go func() { done <- h.take(ended, new(int), 60) }()
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("a cancelled call: %v", err)
	}
	h.give(a, 200)
	if err := <-done; err != nil {
		t.Error(err)
	}
	h.give(b, 60)
	if h.held != 0 || h.ahead != nil {
		t.Errorf("%d bytes are left", h.held)
	}
}

// TestPipeQueues has a node that takes 5 calls at a time and refuses others: all
// are served, whoever is cancelled meanwhile.
func TestPipeQueues(t *testing.T) {
	const room, calls = 5, 400
	node := make(chan struct{}, room)
	q := &queues{names: map[string]*queue{}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	served, ended := 0, 0
	for i := range calls {
		ctx, cancel := context.WithCancel(context.Background())
		if i%7 == 0 {
			time.AfterFunc(time.Duration(i)*10*time.Microsecond, cancel)
		}
		defer cancel()
		wg.Go(func() {
			l := q.join("f")
			defer q.leave("f", l)
			for turn := false; ; turn = true {
				seen, err := q.enter(ctx, l, turn)
				if err != nil {
					mu.Lock()
					defer mu.Unlock()
					ended++
					return
				}
				select {
				case node <- struct{}{}:
					time.Sleep(50 * time.Microsecond)
					<-node
					q.ended(l)
					mu.Lock()
					defer mu.Unlock()
					served++
					return
				default:
				}
				again, err := q.refused(ctx, l, seen)
				if !again {
					if err == nil {
						t.Error("a call was given up though others were there")
					}
					mu.Lock()
					defer mu.Unlock()
					ended++
					return
				}
			}
		})
	}
	wg.Wait()
	if served+ended != calls || served < calls*6/7 || len(q.names) != 0 {
		t.Errorf("%d served, %d ended, %d queues left", served, ended, len(q.names))
	}
}

func TestPipeRefusedByOthers(t *testing.T) {
	q := &queues{names: map[string]*queue{}}
	l := q.join("f")
	seen, _ := q.enter(context.Background(), l, false)
	if again, err := q.refused(context.Background(), l, seen); again || err != nil {
		t.Errorf("again %v, %v: nothing will ever make room", again, err)
	}
}
