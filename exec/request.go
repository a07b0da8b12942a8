package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"unicode/utf8"

	"fbus/bus/args"
)

// longestRequest bounds what one call puts to a resident process, which has to
// be complete before any of it is written.
const longestRequest = 64 << 20

// request is what a resident process is to be asked: a line with its end, or
// the params of a JSON-RPC request.
func (f *Function) request(ctx context.Context, c *Call) ([]byte, error) {
	if c.Kind == args.KindRaw {
		data, err := wholeInput(ctx, c)
		if err != nil {
			return nil, err
		}
		if f.spec.Resident == JSONRPC {
			if p := originOf(c); p != nil {
				return p.params(data), nil
			}
			return rawParams(data)
		}
		return asLine(data)
	}
	v, err := args.Decode(c.Kind, c.Args)
	if err != nil {
		return nil, err
	}
	if c.HasInput {
		return nil, args.BadInput("takes its arguments on stdin; it can take no input beside them")
	}
	if f.spec.Resident == JSONRPC {
		return params(v)
	}
	return argumentLine(v)
}

// wholeInput reads an input stream to its end. The error is bad input, or
// ctx's.
func wholeInput(ctx context.Context, c *Call) ([]byte, error) {
	if c.Rest == nil {
		return c.Input, nil
	}
	type input struct {
		data []byte
		err  error
	}
	read := make(chan input, 1)
	buf := bytes.NewBuffer(bytes.Clone(c.Input))
	rest := c.Rest
	go func() { // ends with the input, or when Rest is closed
		_, err := buf.ReadFrom(io.LimitReader(rest, longestRequest+1-int64(buf.Len())))
		read <- input{buf.Bytes(), err}
	}()
	select {
	case in := <-read:
		switch {
		case in.err != nil:
			return nil, args.Errorf(args.CodeCancelled, "cancelled: input ended early: %v", in.err)
		case len(in.data) > longestRequest:
			return nil, args.BadInput("the input is longer than %s, the most that a resident program is given in one call", size(longestRequest))
		}
		return in.data, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// asLine makes a line of text: one newline at its end is the line's.
func asLine(text []byte) ([]byte, error) {
	n := bytes.IndexByte(text, '\n')
	switch {
	case n < 0:
		return append(text[:len(text):len(text)], '\n'), nil
	case n < len(text)-1:
		return nil, args.BadInput("a newline in the middle of the input: this function takes one line")
	}
	return text, nil
}

// argumentLine is the only argument, as a line.
func argumentLine(v *args.Values) ([]byte, error) {
	flat := v
	if v.Kind != args.KindList || len(v.List) != 1 || v.List[0].JSON {
		var err error
		if flat, err = v.Flat(); err != nil {
			return nil, err
		}
	}
	switch {
	case flat.Kind == args.KindMap:
		return nil, args.BadInput("takes one line, not fields")
	case len(flat.List) != 1:
		return nil, args.BadInput("takes 1 argument, the line, got %d", len(flat.List))
	case flat.List[0].Nested():
		return nil, args.BadInput("%s is an array or an object, which cannot be a line of text", flat.Name(0))
	}
	return asLine(flat.List[0].Text)
}

// params is the arguments as a JSON array or object in one line.
func params(v *args.Values) ([]byte, error) {
	doc, err := v.Encode(args.EncodeJSON)
	if err != nil {
		return nil, err
	}
	doc = bytes.TrimSpace(doc)
	if bytes.ContainsAny(doc, "\n\r") { // in JSON only ever between tokens
		var line bytes.Buffer
		if err := json.Compact(&line, doc); err != nil {
			return nil, args.BadInput("%v", err)
		}
		doc = line.Bytes()
	}
	if doc[0] != '[' && doc[0] != '{' {
		doc = append(append([]byte{'['}, doc...), ']')
	}
	return doc, nil
}

// rawParams is an input without arguments as one string.
func rawParams(data []byte) ([]byte, error) {
	if !utf8.Valid(data) {
		return nil, args.BadInput("the input is not UTF-8, which JSON needs")
	}
	out := make([]byte, 0, len(data)+16)
	return append(args.AppendString(append(out, '['), data), ']'), nil
}
