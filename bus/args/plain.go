package args

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Sprintf is [fmt.Sprintf] with errors in plain words. All messages are made with it.
func Sprintf(format string, a ...any) string {
	plain := make([]any, len(a))
	for i, v := range a {
		if err, ok := v.(error); ok && !(reflect.ValueOf(v).Kind() == reflect.Pointer && reflect.ValueOf(v).IsNil()) {
			v = Plain(err)
		}
		plain[i] = v
	}
	return fmt.Sprintf(format, plain...)
}

// Plain returns the text of an error without the names of Go's types, functions and packages.
func Plain(err error) string {
	text := err.Error()
	if _, ours := err.(*Error); ours {
		return text
	}
	replace := func(part error, plain string) { text = strings.Replace(text, part.Error(), plain, 1) }
	var (
		kind   *json.UnmarshalTypeError
		syntax *json.SyntaxError
		number *strconv.NumError
		moment *time.ParseError
		file   *os.PathError
		link   *os.LinkError
		call   *os.SyscallError
		socket *net.OpError
	)
	switch {
	case errors.As(err, &kind):
		replace(kind, wrongType(kind))
	case errors.As(err, &syntax) && strings.HasPrefix(syntax.Error(), "unexpected end"):
		replace(syntax, "this is not JSON: its end is missing")
	case errors.As(err, &syntax):
		replace(syntax, fmt.Sprintf("this is not JSON: byte %d", syntax.Offset))
	case errors.As(err, &number):
		replace(number, fmt.Sprintf("invalid number %q", number.Num))
	case errors.As(err, &moment):
		replace(moment, fmt.Sprintf("invalid time %q", strings.Trim(moment.Value, `"`)))
	case errors.As(err, &file):
		replace(file, file.Path+": "+Plain(file.Err))
	case errors.As(err, &link):
		replace(link, link.New+": "+Plain(link.Err))
	case errors.As(err, &socket):
		replace(socket, Plain(socket.Err))
	case errors.As(err, &call):
		replace(call, call.Err.Error())
	}
	for _, pkg := range [...]string{"json: ", "x509: ", "tls: ", "asn1: ", "pem: ", "toml: "} {
		text = strings.TrimPrefix(text, pkg)
		for _, before := range [...]string{": ", "(", `"`} {
			text = strings.ReplaceAll(text, before+pkg, before)
		}
	}
	return text
}

// wrongType describes a JSON value of the wrong type.
func wrongType(e *json.UnmarshalTypeError) string {
	field := cmp.Or(e.Field[strings.LastIndexByte(e.Field, '.')+1:], "the document")
	t := e.Type
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	want := "an object"
	switch t.Kind() {
	case reflect.String:
		want = "a string"
	case reflect.Bool:
		want = "true or false"
	case reflect.Float32, reflect.Float64:
		want = "a number"
	case reflect.Slice, reflect.Array:
		want = "an array"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		want = "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		want = "a whole number, at least 0"
	}
	got := "the " + e.Value // as "number -3"
	switch e.Value {
	case "string", "number":
		got = "a " + e.Value
	case "array", "object":
		got = "an " + e.Value
	case "bool":
		got = "true or false"
	}
	return fmt.Sprintf("%s must be %s, not %s", field, want, got)
}

// DecodeStrict decodes one JSON document into v. It refuses unknown fields, and text after
// the document.
func DecodeStrict(doc []byte, v any) error {
	doc = WithoutBOM(doc)
	if err := CheckJSON(doc); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return errors.New(Plain(err))
	}
	return nil
}
