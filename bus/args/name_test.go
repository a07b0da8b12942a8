package args

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "_": true, "9.x-y_Z": true, strings.Repeat("a", 128): true,
		"": false, ".a": false, "-a": false, "a/b": false, "a b": false, "é": false, strings.Repeat("a", 129): false,
	} {
		if ValidName(name) != want || ValidName([]byte(name)) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	for id, want := range map[string]bool{"a": true, "net-9": true, strings.Repeat("a", 63): true, "": false, "A": false, "a.b": false, "a b": false, strings.Repeat("a", 64): false} {
		if (CheckNetwork(id) == nil) != want {
			t.Errorf("%q: %v", id, CheckNetwork(id))
		}
	}
}
