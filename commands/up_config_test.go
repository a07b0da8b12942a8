package commands

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// written puts a file into a directory of the test.
func written(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfig(t *testing.T) {
	path := written(t, "fbus.toml", `
[node]
serve = true
socket = "run/bus.sock"
queue = 5
worker = "box"
drain = "2m"

[functions.wc]
command = ["wc", "-w"]
slots = 4
timeout = "1m30s"
max-output = "64M"
env = { B = "2", A = "1=x" }

[functions."x.y"]
command = ["./x", "./y"]
chdir = "sub"
env = ["K=V"]
resident = "json"
pipeline = 3
idempotent = true
`)
	c, wrong := readConfig(path, nil)
	if err := wrong.err(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	n := c.node
	if !n.serve || n.options.socket != dir+"/run/bus.sock" || n.options.queue != 5 || n.worker != "box" || n.drain.d != 2*time.Minute {
		t.Errorf("%+v", n)
	}
	if len(c.functions) != 2 {
		t.Fatalf("%d functions", len(c.functions))
	}
	wc, xy := c.functions[0], c.functions[1]
	if wc.name != "wc" || !reflect.DeepEqual(wc.argv, []string{"wc", "-w"}) || wc.calls != 4 || wc.timeout.d != 90*time.Second ||
		wc.maxOutput != 64<<20 || !reflect.DeepEqual(wc.env, []string{"B=2", "A=1=x"}) || wc.part.at != path+":9:12" {
		t.Errorf("%+v", wc)
	}
	if xy.name != "x.y" || !reflect.DeepEqual(xy.argv, []string{dir + "/x", "./y"}) || xy.dir != dir+"/sub" || !xy.idempotent ||
		xy.calls != 3*runtime.NumCPU() || !reflect.DeepEqual(xy.env, []string{"K=V"}) {
		t.Errorf("%+v", xy)
	}
}

// TestConfigNodeHasEveryFlag: nothing that a node can be told on the command line
// is left out, or taken and forgotten.
func TestConfigNodeHasEveryFlag(t *testing.T) {
	text := map[string]string{
		"listen": `["127.0.0.1:1", "[::1]:2"]`, "keepalive": `"5s"`, "trust-max-age": `"5m"`, "max-connections": "7", "max-per-ticket": "8", "queue": "9",
		"no-tcp": "true", "max-jobs": "10", "max-spool": `"1G"`, "max-buffers": `"64M"`, "drain": `"5s"`, "socket-group": `"0"`,
		"tls-cert": "\"x\"\ntls-key = \"x\"\ntls-ca = \"x\"",
	}
	text["tls-key"] = "\"x\"\ntls-cert = \"x\"\ntls-ca = \"x\""
	text["tls-ca"] = "\"x\"\ntls-cert = \"x\"\ntls-key = \"x\""
	text["tls-crl"] = text["tls-ca"] + "\ntls-ca = \"x\""
	for _, flag := range newServeOptions().nodeFlags() {
		name, _ := namesOf(flag)
		value := cmp.Or(text[name], `"x"`)
		c, wrong := readConfig(written(t, "f.toml", fmt.Sprintf("[node]\nserve = true\n%s = %s\n", name, value)), nil)
		if err := wrong.err(); err != nil {
			t.Error(err)
			continue
		}
		if reflect.DeepEqual(c.node.options, *newServeOptions()) {
			t.Errorf("%s = %s changes nothing", name, value)
		}
	}
	for text, want := range map[string][]string{`"127.0.0.1"`: {"127.0.0.1"}, `["a:1", "b:2"]`: {"a:1", "b:2"}} {
		c, wrong := readConfig(written(t, "f.toml", "[node]\nserve = true\nlisten = "+text), nil)
		if err := wrong.err(); err != nil || !reflect.DeepEqual(c.node.options.tcp.listen, want) {
			t.Errorf("listen = %s: %v, %v", text, c, err)
		}
	}
}

// TestConfigHasEveryFlag: whatever fbus offer can be told about a function, a file
// can say under the same name.
func TestConfigHasEveryFlag(t *testing.T) {
	schema := written(t, "schema.json", "true")
	text := map[string]string{
		"takes": `"input"`, "env-file": fmt.Sprintf("%q", written(t, "env", "K=V\n")),
		"args": `"stdin"`, "encoding": `"lines"`, "env": `["K=V"]`, "schema": fmt.Sprintf("%q", schema), "resident": `"json"`,
		"timeout": `"1s"`, "grace": `"1s"`, "max-idle": `"1s"`, "max-output": `"1M"`, "memory": `"1G"`, "reply-fd": "3", "progress-fd": "3", "attr": `["tool"]`,
	}
	for _, f := range newFunction().flags() {
		name := f.Names()[0]
		value := text[name]
		switch f.(type) {
		case *cli.BoolFlag:
			value = "true"
		case *cli.StringFlag:
			if value == "" {
				value = `"text"`
			}
		case *cli.GenericFlag:
			if value == "" {
				value = "2"
			}
		}
		more := ""
		if name == "pipeline" || name == "reply-fd" || strings.HasPrefix(name, "max-") && name != "max-output" {
			more = "resident = \"json\"\n"
		}
		c, wrong := readConfig(written(t, "f.toml", fmt.Sprintf("[functions.f]\ncommand = [\"cat\"]\n%s%s = %s\n", more, name, value)), nil)
		if err := wrong.err(); err != nil {
			t.Errorf("%s = %s: %v", name, value, err)
			continue
		}
		plain := newFunction()
		plain.name, plain.argv = "f", []string{"cat"}
		if err := plain.check(); err != nil {
			t.Fatal(err)
		}
		if plain.same(c.functions[0]) {
			t.Errorf("%s = %s: changes nothing", name, value)
		}
	}
}

func TestConfigRefuses(t *testing.T) {
	const cat = "[functions.f]\ncommand = [\"cat\"]\n"
	for _, c := range []struct {
		text, at, want string
		code           string
	}{
		{"x = ", ":1:4", "expected", args.CodeUsage},
		{"[functions.f]\n[functions.f]\n", ":2:2", "already", args.CodeUsage},
		{"a = 1\n", ":1:1", "unknown key a", args.CodeUsage},
		{"[function.f]\ncommand = []\n", ":1:11", "unknown key function, did you mean functions?", args.CodeUsage},
		{"functions = 1\n", ":1:13", "functions must be a table", args.CodeUsage},
		{"[functions]\nf = \"cat\"\n", ":2:5", "functions.f must be a table, not a string", args.CodeUsage},
		{"[[functions.f]]\n", ":1:13", "arrays of tables are not allowed", args.CodeUsage},
		{"[functions.f]\n", ":1:12", "f: no command", args.CodeUsage},
		{"[functions.f]\ncommand = []\n", ":1:12", "f: no command", args.CodeUsage},
		{"[functions.f]\ncommand = \"cat\"\n", ":2:11", "f: command must be an array of strings, not a string", args.CodeUsage},
		{"[functions.f]\ncommand = [\"cat\",\n 1]\n", ":3:2", "f: command must be a string, not a whole number", args.CodeUsage},
		{cat + "slot = 1\n", ":3:1", "f: unknown key slot, did you mean slots?", args.CodeUsage},
		{cat + "t = \"1s\"\n", ":3:1", "f: unknown key t", args.CodeUsage},
		{cat + "drain = \"1s\"\n", ":3:1", "f: unknown key drain: it is for all functions, in [node]", args.CodeUsage},
		{cat + "wait = \"1s\"\n", ":3:1", "f: unknown key wait: it is for all functions, a flag of fbus up", args.CodeUsage},
		{cat + "slots.n = 1\n", ":3:7", "f: unknown key slots.n", args.CodeUsage},
		{cat + "slots = \"1\"\n", ":3:9", "f: slots must be a whole number, not a string", args.CodeUsage},
		{cat + "slots = 1.5\n", ":3:9", "f: slots must be a whole number, not a number with a fraction", args.CodeUsage},
		{cat + "slots = 99999999999999999999\n", ":3:9", "", args.CodeUsage},
		{cat + "slots = 0\n", ":3:9", "f: slots must be at least 1", args.CodeUsage},
		{cat + "idempotent = \"yes\"\n", ":3:14", "f: idempotent must be true or false, not a string", args.CodeUsage},
		{cat + "description = 5\n", ":3:15", "f: description must be a string, not a whole number", args.CodeUsage},
		{cat + "timeout = 5\n", ":3:11", "f: timeout 5: a duration needs a unit: 5s", args.CodeUsage},
		{cat + "timeout = true\n", ":3:11", "f: timeout must be a string, not true or false", args.CodeUsage},
		{cat + "timeout = \"0s\"\n", ":3:11", "f: timeout must be positive", args.CodeUsage},
		{cat + "resident = \"lines\"\nmax-idle = \"0s\"\n", ":4:12", "f: max-idle must be positive", args.CodeUsage},
		{cat + "slots = 99999999\n", ":3:9", "f: slots 99999999: too many calls at once (limit 1048576)", args.CodeUsage},
		{cat + "memory = \"64\"\n", ":3:10", "f: memory 64: a size needs a unit", args.CodeUsage},
		{cat + "encoding = \"xml\"\n", ":3:12", "f: encoding must be json, msgpack, lines or nul, not \"xml\"", args.CodeUsage},
		{cat + "env = [\"X\"]\n", ":3:1", "f: env: X: must be NAME=VALUE", args.CodeUsage},
		{cat + "env = { \"A=B\" = \"x\" }\n", ":3:9", "f: env: invalid variable name \"A=B\"", args.CodeUsage},
		{cat + "env = { \"\" = \"x\" }\n", ":3:9", "f: env: invalid variable name \"\"", args.CodeUsage},
		{cat + "env = { X = 1 }\n", ":3:13", "f: env.X must be a string, not a whole number", args.CodeUsage},
		{cat + "schema = \"nosuch.json\"\n", ":3:10", "nosuch.json: no such file", args.CodeUsage},
		{"[functions.\"a b\"]\ncommand = [\"cat\"]\n", ":1:12", `invalid function name "a b"`, args.CodeUsage},
		{"[functions.\"fbus.x\"]\ncommand = [\"cat\"]\n", ":1:12", "belong to the node", args.CodeDenied},
		{"[mesh]\nshares = [\"a\"]\n", ":2:1", "mesh: unknown key shares, did you mean share?", args.CodeUsage},
		{"mesh = 1\n", ":1:8", "mesh must be a table, not a whole number", args.CodeUsage},
		{"[node]\nserv = true\n", ":2:1", "node: unknown key serv, did you mean serve?", args.CodeUsage},
		{"[node]\nqueue = 5\n", ":2:1", "node: queue needs serve = true", args.CodeUsage},
		{"[node]\nserve = true\naddress = \"x\"\n", ":3:1", "node: address conflicts with serve = true", args.CodeUsage},
		{"[node]\nserve = 1\n", ":2:9", "node: serve must be true or false, not a whole number", args.CodeUsage},
	} {
		_, wrong := readConfig(written(t, "f.toml", c.text), nil)
		if len(wrong) != 1 {
			t.Errorf("%q: %d problems: %v", c.text, len(wrong), wrong.err())
			continue
		}
		f := wrong[0]
		if !strings.Contains(f.Message, "f.toml"+c.at+": ") || !strings.Contains(f.Message, c.want) || f.Code != c.code || strings.Contains(f.Message, "--") {
			t.Errorf("%q: %d %s", c.text, f.Status(), f.Message)
		}
	}
	_, wrong := readConfig(written(t, "f.toml", cat+"a = 1\nslots = 0\n[functions.g]\n[functions.\"fbus.x\"]\ncommand = [\"x\"]"), nil)
	if f := explain(wrong.err()); len(wrong) != 4 || f.Code != args.CodeUsage || strings.Count(f.Message, "\n") != 3 {
		t.Errorf("%v", f)
	}
}

// TestConfigPlain checks that every key and flag, with a value of every type, is taken or
// refused in words that are not Go's.
func TestConfigPlain(t *testing.T) {
	goWords := []string{"Go ", "json:", "toml:", "strconv", "unmarshal", "interface", "struct", "int64", "tomlValue", "parse error", "%!"}
	c, said := newConfigFile(""), 0
	for table, part := range map[string]*part{
		"node": &c.config.node.part, "functions.f": c.function("f", "").part, `rights."uid:7"`: &c.grant("uid:7", "").part,
	} {
		for _, key := range longNames(part.flags) {
			for _, value := range []string{
				`"x"`, `""`, "7", "-1", "1.5", "1e400", "true", "[]", `["x", 7]`, "{ a = 1 }", "1979-05-27", "07:00:00", "99999999999999999999", `"\u0000"`, "inf", "",
			} {
				c := newConfigFile("")
				doc, err := parseTOML("f", fmt.Appendf(nil, "[%s]\n%s = %s\n", table, key, value))
				if c.readAll(doc); err != nil {
					c.problems = append(c.problems, explain(err))
				}
				said += len(c.problems)
				for _, f := range c.problems {
					for _, word := range goWords {
						if strings.Contains(f.Message+f.Hint, word) {
							t.Errorf("%s.%s = %s: %s", table, key, value, f.Message)
						}
					}
				}
			}
		}
	}
	for _, entry := range commandTable {
		for name := range tableOf(entry.command().Flags) {
			for _, value := range []string{"x", "", "-1", "1e400", "99999999999999999999", "1.5"} {
				cmd := entry.command()
				_, err := parse(newApp(nil, io.Discard, io.Discard), cmd, []string{"--" + name + "=" + value, "--"})
				if err != nil {
					said++
				}
				for _, word := range goWords {
					if err != nil && strings.Contains(explain(err).Message, word) {
						t.Errorf("fbus %s --%s=%s: %s", entry.name, name, value, explain(err).Message)
					}
				}
			}
		}
	}
	if said < 500 {
		t.Errorf("only %d messages were checked", said)
	}
}

// TestConfigSame: what moves in the file has not changed, what its program is
// made of has, if a process is kept that does not see it.
func TestConfigSame(t *testing.T) {
	dir := t.TempDir()
	read := func(text string) *function {
		t.Helper()
		path := filepath.Join(dir, "f.toml")
		os.WriteFile(path, []byte(text), 0o644)
		c, wrong := readConfig(path, nil)
		if err := wrong.err(); err != nil {
			t.Fatal(err)
		}
		return c.functions[0]
	}
	script := func(text string) {
		os.WriteFile(filepath.Join(dir, "x.sh"), []byte(text), 0o755)
	}
	script("one")
	const once, kept = "[functions.f]\ncommand = [\"sh\", \"./x.sh\"]\nchdir = \".\"\n", "\n[functions.f]\ncommand = [\"./x.sh\"]\nresident = \"lines\"\n"
	wasOnce, wasKept := read(once), read(kept)
	if !wasOnce.same(read("# moved\n"+once)) || !wasKept.same(read("# moved\n"+kept)) {
		t.Error("moved, and another")
	}
	if wasOnce.same(read(once + "slots = 9\n")) {
		t.Error("with other slots the same")
	}
	script("two, and longer")
	if !wasOnce.same(read(once)) {
		t.Error("a program that is started for each call is another when its script is")
	}
	if wasKept.same(read(kept)) {
		t.Error("a program that is kept is the same when its file is not")
	}
}

func TestDir(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	put("resize.sh", "#!/bin/sh\n# fbus: description = \"makes it small\"\n#fbus: slots = 3\n// fbus: timeout = \"5s\"\n  -- fbus: env.A = \"b\"\n# fbus slots = 9\necho\n", 0o755)
	put("plain", "#!/bin/sh\r\n# fbus: warm = 2\r\n"+strings.Repeat("\n", optionLines-2)+"# fbus: slots = 9\n", 0o755)
	put("a.tar.gz", "#!/bin/sh\n", 0o700)
	put("binary", "\x7fELF\n# fbus: slots = 9\n", 0o755)
	put("README", "text\n", 0o644)
	put(".hidden", "#!/bin/sh\n", 0o755)
	put("old.sh~", "#!/bin/sh\n", 0o755)
	os.Mkdir(filepath.Join(dir, "sub"), 0o755)
	os.Symlink("plain", filepath.Join(dir, "link"))
	os.Symlink("nowhere", filepath.Join(dir, "broken"))
	c, wrong := readDir(dir, nil)
	if err := wrong.err(); err != nil {
		t.Fatal(err)
	}
	got := map[string]*function{}
	for _, f := range c.functions {
		got[f.name] = f
	}
	if broken := slices.IndexFunc(c.notes, func(n string) bool { return strings.HasPrefix(n, warningMark) }); broken < 0 || !strings.Contains(c.notes[broken], "broken: skipped: the link leads nowhere: nowhere does not exist") {
		t.Errorf("no warning about a broken link: %q", c.notes)
	}
	if len(got) != 5 || got["a.tar"] == nil || got["link"] == nil || len(c.notes) != 5 {
		t.Errorf("%v, notes %q", got, c.notes)
	}
	if f := got["resize"]; f.description != "makes it small" || f.slots.n != 3 || f.timeout.d != 5*time.Second || f.env[0] != "A=b" || f.argv[0] != dir+"/resize.sh" {
		t.Errorf("%+v", f)
	}
	if f := got["plain"]; f.warm.n != 2 || f.slots.set {
		t.Errorf("%+v", f)
	}
	if f := got["binary"]; f.slots.set {
		t.Errorf("%+v", f)
	}
}

// TestDirLeftovers checks that what editors, package managers and people leave next to
// programs becomes no function.
func TestDirLeftovers(t *testing.T) {
	dir := t.TempDir()
	names := []string{
		"c.sh~", "c.sh.bak", "c.BAK", "c.sh.orig", "c.sh.rej", ".c.sh.swp", "c.swp", "x.disabled", "c.sh.dpkg-old", "c.sh.dpkg-new", "c.dpkg-dist", "c.ucf-old",
		"c.rpmsave", "c.sh.rpmnew", "#e.sh#", ".#e.sh", "c.sh.~1~", "c.sh,v", "c.old", "c.sh.save", "c.pacnew", "c.tmp",
		"c.sh.bak2", "c.bak.sh", "x.sh.disable", "c.sh-backup", "c.sh_old", "c.sh.part", "c.sh.new", "c.sh.20240101", "c.sh.1", "4913",
		"Copy of c.sh", "c (copy).sh", "%c.sh%", "ä.sh", "a b",
	}
	for _, name := range append(names, "c.sh", "e", "bak", "orig.py", "disabled", "db-backup", "v1.2.sh", "make_copy") {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c, wrong := readDir(dir, nil)
	if err := wrong.err(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range c.functions {
		got = append(got, f.name)
	}
	if want := []string{"bak", "c", "db-backup", "disabled", "e", "make_copy", "orig", "v1.2"}; !slices.Equal(got, want) || len(c.notes) != len(names) {
		t.Errorf("%q, not %q; notes %q", got, want, c.notes)
	}
}

func TestDirRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, at, want string }{
		{"f.sh", "#!/bin/sh\n# fbus: slot = 1\n", "/f.sh:2:9", "unknown key slot, did you mean slots?"},
		{"f.sh", "#!/bin/sh\n\n  // fbus:   slots = 0\n", "/f.sh:3:22", "slots must be at least 1"},
		{"f.sh", "#!/bin/sh\n# fbus: slots =\n", "/f.sh:2:16", ""},
		{"f.sh", "#!/bin/sh\n# fbus: slots = 1\n# fbus: slots = 2\n", "/f.sh:3:9", "already"},
		{"f.sh", "#!/bin/sh\n# fbus: [functions.g]\n", "/f.sh:2:20", "not tables"},
		{"f.sh", "#!/bin/sh\n# fbus: command = [\"cat\"]\n", "/f.sh:2:9", "the script is the command"},
		{"g.py", "#!/bin/sh\n", "/g.sh", "function name g is also that of "},
	} {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, c.name), []byte(c.text), 0o755)
		if c.name == "g.py" {
			os.WriteFile(filepath.Join(dir, "g.sh"), []byte(c.text), 0o755)
		}
		_, wrong := readDir(dir, nil)
		if len(wrong) != 1 || !strings.Contains(wrong[0].Message, c.at+": ") || !strings.Contains(wrong[0].Message, c.want) {
			t.Errorf("%q: %v", c.text, wrong.err())
		}
	}
}

// FuzzConfig: whatever a file holds is taken or refused.
func FuzzConfig(f *testing.F) {
	f.Add("[node]\nserve = true\n[functions.f]\ncommand = [\"cat\"]\nenv = { A = \"b\" }\n")
	f.Add("functions = { f.command = [\"cat\"], g = {} }\na.b.c = [[1], { x = 1979-05-27 }]\n")
	f.Add("[functions]\n\"\".command = ['''\na''', \"\"\"b\"\"\"]\n")
	f.Fuzz(func(t *testing.T, text string) {
		doc, err := parseTOML("f", []byte(text))
		if err != nil {
			return
		}
		c := newConfigFile("")
		for _, s := range doc {
			if len(s.key) == 0 || !strings.HasPrefix(s.at, "f:") || !strings.HasPrefix(s.value.at, "f:") {
				t.Errorf("%q at %q, value at %q", s.key, s.at, s.value.at)
			}
		}
		for _, s := range doc { // it must not read files
			if s.key[len(s.key)-1] == "schema" {
				return
			}
		}
		c.readAll(doc)
	})
}

// TestPageExample: the file that docs/functions-file.md shows is valid.
func TestPageExample(t *testing.T) {
	part, err := os.ReadFile("../docs/functions-file.md")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(part)) {
		if code, ok := strings.CutPrefix(line, "    "); ok {
			text.WriteString(code)
		} else if strings.TrimSpace(line) != "" && text.Len() > 0 {
			break
		}
	}
	c, wrong := readConfig(written(t, "fbus.toml", text.String()), nil)
	if err := wrong.err(); err != nil {
		t.Fatal(err)
	}
	if len(c.functions) != 3 || !c.node.serve {
		t.Errorf("%d functions", len(c.functions))
	}
}
