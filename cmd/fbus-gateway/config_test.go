package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
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
	err := defaults().read(path)
	var wrong *faults
	if !errors.As(err, &wrong) {
		t.Fatal(err)
	}
	text := strings.Join(wrong.lines(), "\n")
	for _, want := range []string{
		":1:1: listen: ", ":26:8: functions.a b.status.1: invalid function name", ":28:1: tickets.a b.stderr: invalid ticket name",
		":2:1: lisen: unknown key", ":3:1: origins: ", ":6:1: limits.calls: it must be a whole number", ":7:1: limits.idle: invalid duration", ":9:1: publish.allow: ",
		":11:20: functions.resize.status.300: an exit status is from 1 to 255", ":11:31: functions.resize.status.2: ", ":11:40: functions.resize.status.0: ", ":12:1: functions.resize.timeout: unknown key", ":15:1: tokens.ci.calls: ", ":19:1: hooks.gh.sekret: unknown key",
		":18:1: hooks.gh.verify: ", ":20:1: hooks.gh.when: ", ":16:8: hooks.gh: secret-file is missing", ":22:1: send.webhook.url: ", ":24:1: metrics.functions: ",
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
	if err := defaults().read(path); !errors.As(err, &wrong) {
		t.Fatal(err)
	}
	text = strings.Join(wrong.lines(), "\n")
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
	if err := defaults().read(path); err == nil || !strings.Contains(err.Error(), `:1:1: listen: "127.0.0.1:1" is there twice`) || !strings.Contains(err.Error(), ":3:1: publish.allow: it must have a glob") {
		t.Error(err)
	}
	os.WriteFile(path, []byte("hooks = 5\nlisen = 1\n"), 0o600)
	if err := defaults().read(path); err == nil || !strings.Contains(err.Error(), ":1:1: hooks: it must be tables [hooks.NAME]") || !strings.Contains(err.Error(), "lisen") {
		t.Error(err)
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
	if err := c.read(path); err != nil {
		t.Fatal(err)
	}
	if c.Socket != filepath.Join(filepath.Dir(path), "gw.sock") || len(c.Proxies) != 2 || c.Limits.Body != 64<<20 || !c.Tokens["token:ci"].Stderr || c.Tokens["token:ci"].Calls != 7 || c.Functions["resize"].Status[1] != 422 {
		t.Errorf("%+v", c)
	}
	os.WriteFile(path, []byte("a = \n"), 0o600)
	if err := defaults().read(path); err == nil || !strings.Contains(err.Error(), path+":1:") {
		t.Error(err)
	}
}

// TestWhoListens: nothing listens where a token could be read, or where anybody could get in.
func TestWhoListens(t *testing.T) {
	for name, c := range map[string]struct {
		change func(c *config)
		ok     bool
	}{
		"default":               {func(c *config) {}, true},
		"everywhere":            {func(c *config) { c.Listen = []string{":8010"} }, false},
		"another address":       {func(c *config) { c.Listen = []string{"10.0.0.1:8010"} }, false},
		"with TLS":              {func(c *config) { c.Listen, c.TLSCert, c.TLSKey = []string{":8010"}, "c", "k" }, true},
		"half a pair":           {func(c *config) { c.TLSCert = "c" }, false},
		"behind a proxy":        {func(c *config) { c.Listen = []string{":8010"}; c.Proxies, _ = parsePrefixes([]string{"10.0.0.1"}) }, true},
		"open here":             {func(c *config) { c.NoAuth = true }, true},
		"open everywhere":       {func(c *config) { c.NoAuth, c.Listen, c.TLSCert, c.TLSKey = true, []string{":8010"}, "c", "k" }, false},
		"open behind a proxy":   {func(c *config) { c.NoAuth = true; c.Proxies, _ = parsePrefixes([]string{"10.0.0.1"}) }, false},
		"no port":               {func(c *config) { c.Listen = []string{"localhost"} }, false},
		"a name that is not us": {func(c *config) { c.Listen = []string{"example.com:80"} }, false},
	} {
		cfg := defaults()
		c.change(cfg)
		if err := cfg.check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheck: what cannot work is refused before anything is made.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("FBUS_HOME", dir)
	t.Setenv("FBUS_STATE", dir)
	file := filepath.Join(dir, "gateway.toml")
	os.WriteFile(file, []byte("tls-cert = \"no.pem\"\ntls-key = \"no.key\"\n"), 0o600)
	for _, c := range []struct{ words, want string }{
		{"--listen 127.0.0.1:99999", "--listen: "}, {"--listen 127.0.0.1:x", "--listen: "}, {"--listen 127.0.0.1:", "--listen: "},
		{"--drain=-1s", "--drain must not be negative"},
		{"--tls-cert " + dir + "/no --tls-key " + dir + "/no", "no such file"},
		{"--socket " + dir + "/none/s", "its directory does not exist"}, {"--access-log " + dir + "/none/log", "its directory does not exist"},
		{"-c " + file, file + ":2:1: tls-key: "}, {"--access-log none", ""},
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
