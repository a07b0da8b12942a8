package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestConfig: all that is wrong with a file is said, each with its place.
func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gateway.toml")
	os.WriteFile(path, []byte(`listen = ["127.0.0.1:0", "127.0.0.1:99999"]
lisen = "x"
origins = ["https://a.example/", 3]
[limits]
body = "64"
calls = "many"
idle = "soon"
[publish]
allow = ["resize*", "[!"]
[functions.resize]
status = {1 = 422, 300 = 422, 2 = 200, 0 = 500}
timeout = 3
[tokens.ci]
stderr = true
calls = -1
[hooks.gh]
function = "deploy"
verify = "magic"
sekret = "x"
when = ['body.a = "b"']
[send.webhook]
url = "ftp://example.com"
[metrics]
functions = ["[!"]
[functions."a b"]
status.1 = 422
[tickets."a b"]
stderr = true
`), 0o600)
	read := func() string {
		wrong, err := defaults().read(path)
		if err != nil {
			return err.Error()
		}
		return strings.Join(wrong.lines(), "\n")
	}
	text := read()
	for _, want := range []string{
		":1:26: listen: ", ":26:8: functions.a b.status.1: invalid function name", ":28:1: tickets.a b.stderr: invalid ticket name",
		":2:1: lisen: unknown key", ":3:12: origins: ", ":3:34: origins: it must be a string", ":6:1: limits.calls: it must be a whole number", ":7:1: limits.idle: invalid duration", ":9:21: publish.allow: ",
		":11:20: functions.resize.status.300: an exit status is from 1 to 255", ":11:31: functions.resize.status.2: ", ":11:40: functions.resize.status.0: ", ":12:1: functions.resize.timeout: unknown key", ":15:1: tokens.ci.calls: ", ":19:1: hooks.gh.sekret: unknown key",
		":18:1: hooks.gh.verify: ", ":20:1: hooks.gh.when: ", ":16:8: hooks.gh: secret-file is missing", ":22:1: send.webhook.url: ", ":24:14: metrics.functions: ",
	} {
		if !strings.Contains(text, path+want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	os.WriteFile(path, []byte(`[hooks]
b = 5
[hooks.a]
function = 3
verify = "magic"
args = "x"
mode = 5
[send.show]
url = 5
[hooks.c]
function = "f"
args = [1]
`), 0o600)
	text = read()
	for _, want := range []string{
		":2:1: hooks.b: it must be a table", ":4:1: hooks.a.function: it must be a string", `:5:1: hooks.a.verify: "magic"`, ":6:1: hooks.a.args: it must be a list of strings",
		":7:1: hooks.a.mode: it must be a string", ":9:1: send.show.url: it must be a string", ":12:1: hooks.c.args: it must be a list of strings", ":10:8: hooks.c: verify is missing",
	} {
		if !strings.Contains(text, path+want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, no := range []string{"function is missing", "url or allow"} {
		if strings.Contains(text, no) {
			t.Errorf("%q in\n%s", no, text)
		}
	}
	os.WriteFile(path, []byte("listen = ['127.0.0.1:1', '127.0.0.1:0', '127.0.0.1:0', '127.0.0.1:1']\n[publish]\nallow = []\n"), 0o600)
	if text := read(); !strings.Contains(text, `:1:56: listen: "127.0.0.1:1" is there twice`) || strings.Count(text, "twice") != 1 || !strings.Contains(text, ":3:1: publish.allow: it must have a glob") {
		t.Error(text)
	}
	os.WriteFile(path, []byte("hooks = 5\nlisen = 1\n"), 0o600)
	if text := read(); !strings.Contains(text, ":1:1: hooks: it must be tables [hooks.NAME]") || !strings.Contains(text, "lisen") {
		t.Error(text)
	}
	os.WriteFile(path, []byte(`socket = "gw.sock"
hosts = ["bus.example.com"]
behind-proxy = ["10.0.0.0/8", "::1"]
[limits]
body = "64M"
calls = 7
[tokens.ci]
stderr = true
[functions.resize]
status.1 = 422
`), 0o600)
	c := defaults()
	if wrong, err := c.read(path); err != nil || wrong.err() != nil {
		t.Fatal(err, wrong)
	}
	if c.Socket != filepath.Join(filepath.Dir(path), "gw.sock") || len(c.Proxies) != 2 || c.Limits.Body != 64<<20 || !c.Tokens["token:ci"].Stderr || c.Tokens["token:ci"].Calls != 7 || c.Functions["resize"].Status[1] != 422 {
		t.Errorf("%+v", c)
	}
	os.WriteFile(path, []byte("a = \n"), 0o600)
	if text := read(); !strings.Contains(text, path+":1:") {
		t.Error(text)
	}
}

// TestWhoListens: nothing listens where a token could be read, or where anybody could get in.
func TestWhoListens(t *testing.T) {
	proxies, _ := parsePrefixes([]string{"10.0.0.1"}, elements{})
	dir := t.TempDir()
	serverPair(t, dir)
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for name, c := range map[string]struct {
		change func(c *config)
		ok     bool
	}{
		"default":               {func(c *config) {}, true},
		"everywhere":            {func(c *config) { c.Listen = []string{":8010"} }, false},
		"another address":       {func(c *config) { c.Listen = []string{"10.0.0.1:8010"} }, false},
		"with TLS":              {func(c *config) { c.Listen, c.TLSCert, c.TLSKey = []string{":8010"}, cert, key }, true},
		"half a pair":           {func(c *config) { c.TLSCert = cert }, false},
		"behind a proxy":        {func(c *config) { c.Listen = []string{":8010"}; c.Proxies = proxies }, true},
		"open here":             {func(c *config) { c.NoAuth = true }, true},
		"open everywhere":       {func(c *config) { c.NoAuth, c.Listen, c.TLSCert, c.TLSKey = true, []string{":8010"}, cert, key }, false},
		"open behind a proxy":   {func(c *config) { c.NoAuth = true; c.Proxies = proxies }, false},
		"no port":               {func(c *config) { c.Listen = []string{"localhost"} }, false},
		"a name that is not us": {func(c *config) { c.Listen = []string{"example.com:80"} }, false},
	} {
		cfg := defaults()
		c.change(cfg)
		var wrong faults
		if cfg.check(&wrong); (wrong.err() == nil) != c.ok {
			t.Errorf("%s: %v", name, wrong.lines())
		}
	}
}

// TestCheck: what cannot work is refused before anything is made.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("FBUS_HOME", dir)
	t.Setenv("FBUS_STATE", dir)
	file := filepath.Join(dir, "gateway.toml")
	os.WriteFile(file, []byte("tls-cert = \"no.pem\"\ntls-key = \"no.key\"\nlisten = [\"0.0.0.0:8010\"]\n"+
		"behind-proxy = [\"10\", \"10.0.0.0/8\", \"::/0\"]\nno-auth = true\naccess-log = \"none/log\"\nhosts = [\"*\", \"A\"]\n"), 0o600)
	open := filepath.Join(dir, "open.toml")
	os.WriteFile(open, []byte("listen = [\"0.0.0.0:8010\", \"127.0.0.1\"]\ntls-key = \"none/key\"\n"), 0o600)
	plain := filepath.Join(dir, "plain.toml")
	os.WriteFile(plain, []byte("listen = [\"127.0.0.1:8010\",   \"0.0.0.0:1\"]\n"), 0o600)
	serverPair(t, dir)
	os.Rename(filepath.Join(dir, "cert"), filepath.Join(dir, "other"))
	serverPair(t, dir)
	pair := filepath.Join(dir, "pair.toml")
	os.WriteFile(pair, []byte("\ntls-cert = \"other\"\ntls-key = \"key\"\n"), 0o600)
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ words, want string }{
		{"--listen 127.0.0.1:99999", "--listen: "}, {"--listen 127.0.0.1:x", "--listen: "}, {"--listen 127.0.0.1:", "--listen: "},
		{"--drain=-1s", "--drain: it must not be negative"},
		{"--tls-cert " + dir + "/no --tls-key " + dir + "/no", "no such file"},
		{"--socket " + dir + "/none/s", "its directory does not exist"}, {"--access-log " + dir + "/none/log", "its directory does not exist"},
		{"-c " + file, file + ":1:1: tls-cert: "}, {"-c " + file, file + ":2:1: tls-key: "}, {"-c " + file, file + ":5:1: no-auth: 0.0.0.0:8010 is not"}, {"-c " + pair, pair + ":2:1: tls-cert: it cannot be used with tls-key: private key does not match"},
		{"-c " + open, open + ":1:27: listen: "}, {"-c " + open, open + ":2:1: tls-key: "}, {"--listen :1", "--listen: :1: other machines"}, {"-c " + plain, plain + ":1:31: listen: 0.0.0.0:1: other"},
		{"-c " + file, file + ":4:17: behind-proxy: \"10\""}, {"-c " + file, file + ":4:37: behind-proxy: \"::/0\" is every address"}, {"-c " + file, file + ":5:1: no-auth: no-auth and behind-proxy exclude each other"},
		{"-c " + file, file + ":6:1: access-log: "}, {"-c " + file, file + ":7:10: hosts: \"*\""}, {"-c " + file, file + ":7:15: hosts: \"A\""}, {"-c " + pipe, pipe + " must be a regular file"},
		{"-c " + file + " --drain=-1s", "--drain: it must not be negative"}, {"--access-log none", ""},
	} {
		for _, check := range []string{"--check", "--quiet"} {
			if c.want == "" && check == "--quiet" {
				continue // it would run
			}
			var stderr strings.Builder
			err := command(t.Context(), append(strings.Fields(c.words), check), io.Discard, &stderr)
			text := stderr.String()
			if err != nil {
				text += err.Error()
			}
			if (err != nil) != (c.want != "") || !strings.Contains(text, c.want) {
				t.Errorf("%s %s: %s", c.words, check, text)
			}
		}
	}
	if _, err := os.Stat(dir + "/none"); err == nil {
		t.Error("a directory was made")
	}
}
