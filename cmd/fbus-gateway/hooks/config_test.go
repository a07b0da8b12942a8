package hooks

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// TestFaults: a check lists all that is wrong with a table.
func TestFaults(t *testing.T) {
	good, open, empty := secretFile(t, "c2VjcmV0"), secretFile(t, "x"), secretFile(t, "", " ")
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, table string
		want        []string
	}{
		{"fine", `function="f"
secret-file="GOOD"
verify="standard"
when='body.a == "b"'`, nil},
		{"empty", ``, []string{"function is missing", "verify is missing", "secret-file is missing"}},
		{"names", `function="fbus.invite"
secret-file="/none"
verify="md5"
mode="run"`, []string{"function: fbus.invite", "mode: ", "verify: ", "secret-file: /none: no such file"}},
		{"readable", `function="f"
secret-file="OPEN"
verify="github"`, []string{"mode 0640 gives others access"}},
		{"no secret", `function="f"
secret-file="EMPTY"
verify="github"`, []string{"it has no secret"}},
		{"not base64", `function="f"
secret-file="GITHUB"
verify="standard"`, []string{"whsec_ and base64"}},
		{"templates", `function="f"
secret-file="GOOD"
verify="github"
args=["{body", "{bod.x}", "{header.}", "}", "{body..a}"]`, []string{"a brace is open", `"bod.x" must be`, `"header." must be`, "a brace is open", `"body..a" must be`}},
		{"conditions", `function="f"
secret-file="GOOD"
verify="github"
when=['body.a = "b"', 'a == "b"', 'body.a == "["', 'body.a == b', 'body.a == "b" && body.c == "d"', 1]`,
			[]string{"must be PATH", `"a" must be`, "invalid glob", "must be PATH", "must be PATH", "must be a string"}},
		{"not used", `function="f"
secret-file="GOOD"
verify="github"
header="X"
algorithm="sha256"`, []string{`header: verify = "github" does not use it`, "algorithm: "}},
		{"hmac", `function="f"
secret-file="GOOD"
verify="hmac"
algorithm="md5"
encoding="rot13"
signed="{header.X}"
timestamp="Y"`, []string{"header is missing", "algorithm: ", "encoding: ", "signed: it has no {body}", "timestamp: signed has no {header.Y}"}},
		{"header", `function="f"
secret-file="GOOD"
verify="token"
header="a b"`, []string{`"a b" is not the name of a header`}},
	} {
		files := strings.NewReplacer("GOOD", good, "OPEN", open, "EMPTY", empty, "GITHUB", secretFile(t, "It's"))
		var table Config
		if err := toml.Unmarshal([]byte(files.Replace(c.table)), &table); err != nil {
			t.Fatal(err)
		}
		faults := table.Check()
		if len(faults) != len(c.want) {
			t.Errorf("%s: %v, expected %q", c.name, faults, c.want)
			continue
		}
		for i, f := range faults {
			if !strings.Contains(f.Error(), c.want[i]) {
				t.Errorf("%s: %q, expected %q", c.name, f.Error(), c.want[i])
			}
		}
	}
}

// TestSeen: keys are remembered for a day, at most so many.
func TestSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s seen
		if !s.add("a", "1") || s.add("a", "2") || !s.add("a", "1") || !s.add("b", "") || s.add("b", "") {
			t.Error("a key has one value")
		}
		s.forget("b")
		if !s.add("b", "") {
			t.Error("a forgotten key is new")
		}
		time.Sleep(keyTime + time.Second)
		if !s.add("a", "2") {
			t.Error("a key is kept for more than a day")
		}
		for i := range maxSeen + 10 {
			s.add(string(rune(i))+"x", "1")
		}
		if len(s.items) > maxSeen || len(s.queue) > maxSeen {
			t.Errorf("%d keys, %d in the queue", len(s.items), len(s.queue))
		}
	})
}
