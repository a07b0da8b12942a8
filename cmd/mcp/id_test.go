package mcp

import (
	"strings"
	"testing"
)

func TestIDsAreKeptOrRefused(t *testing.T) {
	for _, good := range []string{`1`, `-1`, `0`, `1.0`, `9007199254740991`, `-9007199254740991`, `""`, `"a\u00e9"`, `"\ud83d\ude00"`} {
		if err := CheckID([]byte(`{"method":"ping","id":` + good + `}`)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{`9007199254740992`, `-9007199254740993`, `1.5`, `1e2`, `1e99999999`, `99999999999999999999`, `null`, `{}`, `[1]`, `true`, "\"\xff\"", `"\ud800"`} {
		if err := CheckID([]byte(`{"method":"ping","id":` + bad + `}`)); err == nil || !strings.HasPrefix(err.Error(), "the id ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, other := range []string{`{"method":"notifications/initialized"}`, `{"id":null,"error":{}}`, `1`, `{`} { // the library's
		if err := CheckID([]byte(other)); err != nil {
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
