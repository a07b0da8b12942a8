package args

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func TestPlain(t *testing.T) {
	decode := func(doc string) error {
		var v struct {
			N    int             `json:"n"`
			U    *uint           `json:"u"`
			F    float64         `json:"f"`
			S    string          `json:"s"`
			B    bool            `json:"b"`
			L    []string        `json:"l"`
			M    map[string]bool `json:"m"`
			Time time.Time       `json:"time"`
		}
		return json.Unmarshal([]byte(doc), &v)
	}
	_, number := strconv.ParseUint("x", 10, 64)
	_, missing := os.Open("/no/such")
	socket := &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	for _, c := range []struct {
		err  error
		want string
	}{
		{decode(`{"n":"x"}`), "n must be a whole number, not a string"},
		{decode(`{"n":1.5}`), "n must be a whole number, not the number 1.5"},
		{decode(`{"u":-1}`), "u must be a whole number, at least 0, not the number -1"},
		{decode(`{"f":[]}`), "f must be a number, not an array"},
		{decode(`{"s":{}}`), "s must be a string, not an object"},
		{decode(`{"b":1}`), "b must be true or false, not a number"},
		{decode(`{"l":true}`), "l must be an array, not true or false"},
		{decode(`{"l":[7]}`), "l must be a string, not a number"},
		{decode(`{"m":7}`), "m must be an object, not a number"},
		{decode(`{"time":"x"}`), `invalid time "x"`},
		{decode(`[]`), "the document must be an object, not an array"},
		{decode(`{"n":}`), "this is not JSON: byte 6"},
		{decode(`{"n":`), "this is not JSON: its end is missing"},
		{fmt.Errorf("f: %w: again", decode(`{"n":"x"}`)), "f: n must be a whole number, not a string: again"},
		{number, `invalid number "x"`},
		{missing, "/no/such: no such file or directory"},
		{fmt.Errorf("wire: %w", socket), "wire: connection reset by peer"},
		{os.NewSyscallError("socket", syscall.EMFILE), "too many open files"},
		{errors.New(`x509: bad (possibly because of "x509: it") tls: x`), `bad (possibly because of "it") tls: x`},
		{Errorf(CodeUsage, "options: %v", decode(`{"n":"x"}`)), "options: n must be a whole number, not a string"},
		{io.EOF, "EOF"},
	} {
		if got := Plain(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
	if got := Sprintf("%v %s %d", (*Error)(nil), missing, 7); got != "<nil> /no/such: no such file or directory 7" {
		t.Errorf("got %s", got)
	}
}

func TestDecodeStrict(t *testing.T) {
	for doc, want := range map[string]string{
		`{"a":1}`: "", ` {} `: "", `{"b":1}`: `unknown field "b"`, `{"a":1} {}`: "this is not JSON: line 1, column 9: unexpected '{' after top-level value",
		`{`: "this is not JSON: line 1, column 2: its end is missing", ``: "this is not JSON: line 1, column 1: it is empty", `{"a":"x"}`: "A must be a whole number, not a string",
	} {
		var v struct{ A int }
		got := ""
		if err := DecodeStrict([]byte(doc), &v); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", doc, got, want)
		}
	}
}
