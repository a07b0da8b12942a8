package jsonrpc

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"fbus/bus/args"
)

func TestRequests(t *testing.T) {
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
		{`{"jsonrpc":"2.0","id":{},"method":"f"}`, `null`, "", 0, "-", CodeInvalid},
		{`{"jsonrpc":"2.0","id":true,"method":"f"}`, `null`, "", 0, "-", CodeInvalid},
		{`{"jsonrpc":"1.0","id":1,"method":"f"}`, `1`, "", 0, "-", CodeInvalid},
		{`{"id":1,"method":"f"}`, `1`, "", 0, "-", CodeInvalid},
		{`{"jsonrpc":"2.0","ID":1,"METHOD":"f"}`, "-", "", 0, "-", CodeInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":7}`, `1`, "", 0, "-", CodeInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":"f","params":"x"}`, `1`, "f", 0, "-", CodeInvalid},
		{`{"jsonrpc":"2.0","id":1,"result":"f"}`, `1`, "", 0, "-", CodeInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input":{}}`, `1`, "f", 0, "-", CodeInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input":"","input_base64":""}`, `1`, "f", 0, "-", CodeInvalid},
		{`{"jsonrpc":"2.0","id":1,"method":"f","input_base64":"%"}`, `1`, "f", 0, "-", CodeInvalid},
		{`{}`, "-", "", 0, "-", CodeInvalid},
		{`7`, "-", "", 0, "-", CodeInvalid},
		{`"x"`, "-", "", 0, "-", CodeInvalid},
		{`[]`, "-", "", 0, "-", CodeInvalid},
		{`{`, "-", "", 0, "-", CodeParse},
		{`{} {}`, "-", "", 0, "-", CodeParse},
		{"\"\xff\"", "-", "", 0, "-", CodeParse},
		{strings.Repeat("[", 20000), "-", "", 0, "-", CodeParse},
	} {
		docs, _, err := Split([]byte(c.line))
		var r Request
		if err == nil {
			r, err = ParseRequest(docs[0])
		}
		code := 0
		if err != nil {
			code = err.Code
		}
		id, input := "-", "-"
		if r.ID != nil {
			id = string(r.ID)
		}
		if r.HasInput {
			input = string(r.Input)
		}
		if code != c.code || id != c.id || r.Method != c.method || code == 0 && (input != c.input || r.Args().Kind() != c.kind) {
			t.Errorf("%.80s: id %s, method %s, input %q, error %v", c.line, id, r.Method, input, err)
		}
	}
}

func TestBatchLimit(t *testing.T) {
	_, _, err := Split([]byte("[1" + strings.Repeat(",1", MaxBatch) + "]"))
	if err == nil || err.Code != CodeInvalid {
		t.Errorf("a batch above the limit: %v", err)
	}
}

// FuzzRequest takes any line: what comes of it is a request or an error, and
// the parts of a request are JSON again.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"f","params":[1, {"a" : "]"}, "\\\""],"input":"x"}`))
	f.Add([]byte(`[{"jsonrpc":"2.0"}, 1,[[]] ]`))
	f.Add([]byte(`{"":{"":[]},"params":{"a":-1.5e9 ,"b":null}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if len(bytes.TrimSpace(line)) == 0 {
			return
		}
		docs, _, err := Split(line)
		if err != nil {
			return
		}
		for _, doc := range docs {
			if !json.Valid(doc) {
				t.Fatalf("%q is cut into %q", line, doc)
			}
			r, err := ParseRequest(doc)
			if err != nil {
				continue
			}
			r.Key()
			r.Args()
			if r.Params != nil && !json.Valid(r.Params) {
				t.Fatalf("params of %q: %q", line, r.Params)
			}
		}
	})
}

func TestKeys(t *testing.T) {
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

func TestResults(t *testing.T) {
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

func TestErrors(t *testing.T) {
	e := &Error{Code: 3, Message: "bad \xff", Data: &Data{Source: args.FromProgram, Status: 3, Code: "exit", Stderr: "a\n\xff", Output: []byte{0xff}}}
	got := AppendAnswer(nil, []byte(`"i"`), e, nil, false)
	want := `{"jsonrpc":"2.0","id":"i","error":{"code":3,"message":"bad ` + "\ufffd" + `","data":{"source":"program","status":3,"code":"exit",` +
		`"call":"","worker":"","stderr":"a\n` + "\ufffd" + `","output":{"base64":"/w=="}}}}`
	if string(got) != want {
		t.Errorf("%s", got)
	}
}

// FuzzMessage feeds any line: whatever is accepted is cut into valid JSON.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"result":{"a":[1, "]}"]}}`))
	f.Add([]byte(` {"id":7.0,"error":{"code":1,"message":""},"method":null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := ParseMessage(line)
		if err != nil {
			return
		}
		for _, part := range []json.RawMessage{m.ID, m.Method, m.Result, m.Error} {
			if part != nil && !json.Valid(part) {
				t.Fatalf("%q was cut into %q", line, part)
			}
		}
	})
}

func TestMessages(t *testing.T) {
	for _, c := range []struct{ line, id, method, result, err string }{
		{`{"jsonrpc":"2.0","id":1,"result":[ 1 ]}`, "1", "", "[ 1 ]", ""},
		{`{"result":null,"error":{"code":1},"id":"a","other":{"id":2}}`, `"a"`, "", "null", `{"code":1}`},
		{`{"method":"m","params":{}}`, "", `"m"`, "", ""},
		{`{"method":null,"ID":3}`, "", "", "", ""},
	} {
		m, err := ParseMessage([]byte(c.line + "\n"))
		if err != nil || string(m.ID) != c.id || string(m.Method) != c.method || string(m.Result) != c.result || string(m.Error) != c.err {
			t.Errorf("%s: %+v, error %v", c.line, m, err)
		}
	}
	for _, line := range []string{"", "{", "7", "[]", `{} {}`, `{"id":1,"id":2}`, `{"result":1,"result":1}`} {
		if m, err := ParseMessage([]byte(line)); err == nil {
			t.Errorf("%s: %+v", line, m)
		}
	}
	if got := string(AppendRequest(nil, 7, `f"`, []byte(`["a"]`))); got != `{"jsonrpc":"2.0","id":7,"method":"f\"","params":["a"]}`+"\n" {
		t.Error(got)
	}
	if got := string(AppendCancel(nil, 7)); got != `{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":7}}`+"\n" {
		t.Error(got)
	}
}
