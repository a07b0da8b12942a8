package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"

	"fbus/bus/args"
)

// maxWord is the kernel's limit for one word of a command line, less its NUL.
const maxWord = 128<<10 - 1

// prepare turns a call's arguments and input into those of the program. Calls that the
// program cannot take are refused here, before anything starts.
func (f *Function) prepare(c *Call) (input, error) {
	if c.Kind == args.KindRaw && f.spec.Args == ArgsStdin {
		return input{data: c.Input, rest: c.Rest}, nil
	}
	v, err := args.Decode(c.Kind, c.Args)
	if err != nil {
		return input{}, err
	}
	if f.spec.Args == ArgsArgv {
		return f.prepareArgv(c, v)
	}
	if c.HasInput {
		return input{}, args.BadInput("takes its arguments on stdin; it can take no input in addition")
	}
	data, err := v.Encode(f.spec.Encoding)
	return input{data: data}, err
}

func (f *Function) prepareArgv(c *Call, v *args.Values) (input, error) {
	flat, err := v.Flat()
	if err != nil {
		return input{}, err
	}
	argv, err := f.words.expand(flat, f.spec.AllowOptions)
	if err != nil {
		return input{}, err
	}
	for i, w := range argv[1:] {
		switch {
		case len(w) > maxWord:
			return input{}, args.BadInput("word %d of the command line is %d bytes long, the system takes %d", i+1, len(w), maxWord)
		case strings.IndexByte(w, 0) >= 0:
			return input{}, args.BadInput("an argument holds a NUL byte, which a command line cannot")
		}
	}
	in := input{argv: argv}
	if c.Kind == args.KindRaw || c.HasInput {
		in.data, in.rest = c.Input, c.Rest
	} else {
		in.null = true
	}
	return in, nil
}

// maxRequest bounds one call's request to a resident process. It has to be complete
// before any of it is written.
const maxRequest = 64 << 20

// request returns what is written to a resident process: a line with its end, or the
// params of a JSON-RPC request.
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
		return nil, args.BadInput("takes its arguments on stdin; it can take no input in addition")
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
		_, err := buf.ReadFrom(io.LimitReader(rest, maxRequest+1-int64(buf.Len())))
		read <- input{buf.Bytes(), err}
	}()
	select {
	case in := <-read:
		switch {
		case in.err != nil:
			return nil, args.Errorf(args.CodeCancelled, "cancelled: input ended early: %v", in.err)
		case len(in.data) > maxRequest:
			return nil, args.BadInput("the input is longer than %s, the limit for one call of a resident program", size(maxRequest))
		}
		return in.data, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// asLine makes a line of text. One newline at its end is the line's end.
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

// argumentLine returns the only argument as a line.
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

// params returns the arguments as a JSON array or object in one line.
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

// rawParams returns params for an input without arguments: one string, or none without input.
func rawParams(data []byte) ([]byte, error) {
	if len(data) == 0 {
		return []byte("[]"), nil
	}
	if !utf8.Valid(data) {
		return nil, args.BadInput("the input is not UTF-8, which JSON needs")
	}
	out := make([]byte, 0, len(data)+16)
	return append(args.AppendString(append(out, '['), data), ']'), nil
}
