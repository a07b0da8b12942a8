package mcp

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestIDsAreKeptOrRefused(t *testing.T) {
	check := func(message string) error {
		var fields map[string]json.RawMessage
		json.Unmarshal([]byte(message), &fields)
		return checkID(fields)
	}
	for _, good := range []string{`1`, `-1`, `0`, `1.0`, `9007199254740991`, `-9007199254740991`, `""`, `"a\u00e9"`, `"\ud83d\ude00"`} {
		if err := check(`{"method":"ping","id":` + good + `}`); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{`9007199254740992`, `-9007199254740993`, `1.5`, `1e2`, `1e99999999`, `99999999999999999999`, `null`, `{}`, `[1]`, `true`, "\"\xff\"", `"\ud800"`} {
		if err := check(`{"method":"ping","id":` + bad + `}`); err == nil || !strings.HasPrefix(err.Error(), "the id ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, other := range []string{`{"method":"notifications/initialized"}`, `{"id":null,"error":{}}`} {
		if err := check(other); err != nil {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestWrongParamsAreRefusedInPlainWords(t *testing.T) {
	for params, want := range map[string]string{
		`[]`: "they must be an object", `{"name":5}`: "name must be a string", `{"_meta":"x"}`: "_meta must be an object", `{"clientInfo":{"version":1}}`: "version must be a string",
	} {
		id, err := checkParams([]byte(`{"id":7,"method":"tools/call","params":` + params + `}`))
		if err == nil || string(id) != "7" || err.Code != -32602 || err.Message != "invalid params: "+want {
			t.Errorf("%s: %s, %v", params, id, err)
		}
	}
	for _, good := range []string{`{"id":7,"params":{"name":"x","arguments":{"name":5}}}`, `{"id":7,"params":null}`, `{"id":7}`, `{"params":5}`, `[{"id":7,"params":5}]`, `{`} {
		if _, err := checkParams([]byte(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

func TestUnreadableBodiesAreRefusedInPlainWords(t *testing.T) {
	const ping = `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	for body, want := range map[string]string{
		`{`: "-32700 this is not JSON: line 1, column 2: its end is missing", ``: "-32700 this is not JSON: line 1, column 1: it is empty",
		"\xff\xfe": "-32700 this is not JSON: line 1, column 1: it is UTF-16, and must be UTF-8", "{\"\xff\":1}": "-32700 this is not JSON: line 1, column 3: the byte 0xff is not UTF-8",
		`{"jsonrpc":"2.0","id":01,"method":"ping"}`: "-32700 this is not JSON: line 1, column 24: unexpected '1' after object key:value pair",
		`5`: "-32600 a message must be a JSON object", `null`: "-32600 a message must be a JSON object", `[1,2]`: "-32600 a message must be a JSON object",
		`[` + ping + `,[]]`: "-32600 a message must be a JSON object", ` []`: "-32600 the batch is empty",
		`{"jsonrpc":"1.0","id":1,"method":"ping"}`: `-32600 jsonrpc must be "2.0"`, `{"id":1,"method":"ping"}`: `-32600 jsonrpc must be "2.0"`, `{}`: `-32600 jsonrpc must be "2.0"`,
		`{"jsonrpc":"2.0","id":1}`: "-32600 a message must have a method, a result or an error", `{"jsonrpc":"2.0","id":1,"method":5}`: "-32600 the method must be a string",
		`{"jsonrpc":"2.0","id":1,"method":null}`: "-32600 the method must be a string", `{"jsonrpc":"2.0","id":[1],"method":"ping"}`: "-32600 the id must be a string or a whole number of at most 2^53-1",
		`{"jsonrpc":"2.0","id":1,"error":5}`: "-32600 the message must be a request or a response of JSON-RPC 2.0",
		`{"jsonrpc":"2.0","id":1,"method":"ping","params":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`: "-32600 a message must have at most 1000 levels",
		`[` + ping + `]`: "-32600 a batch of messages needs a version before 2025-06-18",
	} {
		if err := checkBody([]byte(body), "2025-06-18"); err == nil || fmt.Sprint(err.Code, " ", err.Message) != want {
			t.Errorf("%q: %v, want %s", body, err, want)
		}
	}
	for _, good := range []string{ping, " " + ping, `[` + ping + `]`, `{"jsonrpc":"2.0","id":1,"result":{}}`, `{"jsonrpc":"2.0","method":"notifications/initialized"}`} {
		if err := checkBody([]byte(good), "2025-03-26"); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}
