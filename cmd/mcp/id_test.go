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
