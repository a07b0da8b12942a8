package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// writeContexts makes files of NATS contexts, and selects one unless its name is empty.
func writeContexts(t *testing.T, selected string, contexts map[string]string) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	dir := filepath.Join(home, "nats", "context")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{filepath.Join(home, "nats", "context.txt"): selected + "\n"}
	for name, text := range contexts {
		files[filepath.Join(dir, name+".json")] = text
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A mesh connects as a context says: with its URL, or to another one, with its credentials, and with
// answers under its prefix.
func TestContextConnects(t *testing.T) {
	subjects := &server.SubjectPermission{Allow: []string{"fbus.>", "_INBOX_m.>"}}
	s, err := startServer("127.0.0.1:0", &server.Options{Users: []*server.User{{
		Username: "mesh", Password: "secret", Permissions: &server.Permissions{Publish: subjects, Subscribe: subjects},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(s)
	rest := `", "user": "mesh", "password": "secret", "inbox_prefix": "_INBOX_m"}`
	writeContexts(t, "whole", map[string]string{"whole": `{"url": "` + s.ClientURL() + rest, "other": `{"url": "nats://127.0.0.1:1` + rest})
	var list []*site
	for name, urls := range map[string]string{"": "", "other": s.ClientURL()} {
		file, err := contextFile(name)
		if err != nil {
			t.Fatal(err)
		}
		x := &site{t: t, name: "x" + name, urls: urls, context: file}
		x.begin()
		list = append(list, x)
	}
	list[1].offer("f", 1, func(context.Context, *bus.Invocation) bus.Result { return bus.Exit(0) })
	list[0].await("f", 1)
	if _, _, err := call(list[0].dial(), &bus.Request{Function: "f"}); err != nil {
		t.Error(err)
	}
}

// What is wrong with a context is said before anything is waited for.
func TestContextErrors(t *testing.T) {
	writeContexts(t, "", map[string]string{"b": "{}", "a": "{}"})
	for words, want := range map[string]string{
		"":                         "URL of a NATS server expected",
		"--context c":              "there is no NATS context c in",
		"--context ../a":           "there is no NATS context ../a in",
		"--context=":               "--context must not be empty",
		"--context a --creds FILE": "a NATS context has credentials",
	} {
		err := command(context.Background(), strings.Fields(words), io.Discard, io.Discard)
		if code(err) != args.CodeUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", words, err, want)
		}
	}
	if _, err := contextFile("c"); args.AsError(err, "").Hint != "there are: a, b" {
		t.Errorf("the hint is %q", args.AsError(err, "").Hint)
	}
	for _, text := range []string{"{", `{"user_jwt": "x"}`, `{"nkey": "/none"}`, `{"creds": "/none"}`} {
		writeContexts(t, "", map[string]string{"a": text})
		o := &options{}
		if o.contextFile, _ = contextFile("a"); o.contextFile == "" {
			t.Fatal("no file")
		}
		if nc, err := o.connect(""); code(err) != args.CodeUsage {
			t.Errorf("%s: %v", text, err)
			if nc != nil {
				nc.Close()
			}
		}
	}
}

// The certificate of the node is for servers of the network: another one is not judged by its CA.
func TestForeignServer(t *testing.T) {
	d := firstNode(t)
	creds := filepath.Join(d.dir, "creds")
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Seed()
	if err == nil {
		err = os.WriteFile(creds, seed, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	shown := &credentials{ticket: d.ticket(t, "relay", "--relay"), net: "demo"}
	for _, foreign := range []bool{false, true} {
		o := &options{cfg: config{shown: shown, Note: t.Logf}}
		if foreign {
			o.creds = creds
		}
		nc, err := o.connect("nats://127.0.0.1:1")
		if err != nil {
			t.Fatal(err)
		}
		if got := nc.Opts.TLSConfig == nil; got != foreign {
			t.Errorf("with credentials %v: without the certificate is %v", foreign, got)
		}
		nc.Close()
	}
}
