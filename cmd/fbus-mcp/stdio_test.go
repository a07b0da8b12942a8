//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

func TestBadMessagesAreAnsweredAndTheNextIsRead(t *testing.T) {
	conn, client, out := connection(t)
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	lines := bufio.NewReader(out)
	send := func(text string) {
		go io.WriteString(client, text+"\n") // ends when it is read
	}
	const ping = `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	for _, bad := range []struct {
		text string
		code int64
	}{
		{`garbage`, jsonrpc.CodeParseError},
		{`{"jsonrpc":"2.0","id":NaN,"method":"ping"}`, jsonrpc.CodeParseError},
		{ping + ping, jsonrpc.CodeParseError},
		{strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), jsonrpc.CodeParseError},
		{"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"ping\"}", jsonrpc.CodeParseError},
		{`{"id":1,"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":5}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":{},"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":null,"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":9007199254740992,"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1.5,"method":"ping"}`, jsonrpc.CodeInvalidRequest},
		{`[]`, jsonrpc.CodeInvalidRequest},
		{`[1]`, jsonrpc.CodeInvalidRequest},
		{`null`, jsonrpc.CodeInvalidRequest},
		{`{}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"ping","params":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`, jsonrpc.CodeInvalidRequest},
		{`{"jsonrpc":"2.0","id":1,"method":"` + strings.Repeat("x", longestMessage) + `"}`, jsonrpc.CodeInvalidRequest},
	} {
		send(bad.text)
		text, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var answer struct {
			ID    *int
			Error jsonrpc.Error
		}
		if err := json.Unmarshal(text, &answer); err != nil || answer.ID != nil || answer.Error.Code != bad.code || !strings.Contains(string(text), `"id":null`) || strings.Contains(string(text), "json: ") {
			t.Errorf("%.60q is answered with %s, want the code %d", bad.text, text, bad.code)
		}
	}
	// a batch is several messages; what looks like an answer is not answered
	send("\n{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32700,\"message\":\"\"}}\r\n[" + ping + ",{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}]\r")
	for _, method := range []string{"ping", "notifications/initialized"} {
		msg, err := conn.Read(ctx)
		if req, ok := msg.(*jsonrpc.Request); err != nil || !ok || req.Method != method {
			t.Fatal(msg, err)
		}
	}
	if err := conn.Write(ctx, &jsonrpc.Response{}); err != nil {
		t.Fatal(err)
	}
	if text, err := lines.ReadString('\n'); err != nil || strings.Contains(text, "error") {
		t.Error(text, err)
	}
	client.Close()
	if _, err := conn.Read(ctx); err != io.EOF {
		t.Error(err)
	}
}

func TestCancelledRequestsAreNotAnswered(t *testing.T) {
	conn, client, out := connection(t)
	for _, text := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call"}`, `{"jsonrpc":"2.0","id":"b","method":"tools/call"}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}`, // there is none yet
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":[]}`,
		`{"jsonrpc":"2.0","id":2,"method":"tools/call"}`,
	} {
		go io.WriteString(client, text+"\n") // ends when it is read
		if _, err := conn.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []any{1.0, "b", 2.0, 1.0} { // the second answer to 1 is to another request with that id
		id, err := jsonrpc.MakeID(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Write(t.Context(), &jsonrpc.Response{ID: id, Error: errors.New("no code")}); err != nil {
			t.Fatal(err)
		}
	}
	lines := bufio.NewReader(out)
	for _, want := range []string{`"id":"b"`, `"id":2`, `"id":1`} {
		if text, err := lines.ReadString('\n'); !strings.Contains(text, want) || !strings.Contains(text, `"code":-32600`) {
			t.Errorf("%s, %v, want %s", text, err, want)
		}
	}
}

// connection returns a connection over pipes, and the client's ends of them.
func connection(t *testing.T) (conn sdk.Connection, client *io.PipeWriter, out *os.File) {
	t.Helper()
	out, answers, err := pipe(t)
	if err != nil {
		t.Fatal(err)
	}
	in, client := io.Pipe()
	if conn, err = (&stdio{in: in, out: answers, gone: func() {}}).Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, client, out
}

func pipe(t *testing.T) (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w, err
}
