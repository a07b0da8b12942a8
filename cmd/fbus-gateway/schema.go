package main

import (
	"bytes"
	"context"
	"encoding/json"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/cmd/schema"
)

// check validates the arguments of a call with the function's schema.
func (g *gateway) check(ctx context.Context, req *bus.Request) error {
	kind, doc := req.Args.Kind(), req.Args.Data()
	if kind == args.KindRaw {
		info := g.link.function(req.Function)
		if req.Input != nil || info == nil {
			return nil
		}
		p := schema.ParsePlaceholders(info)
		switch { // without arguments it is as with none
		case p == nil:
			return nil
		case p.Fields != nil:
			kind, doc = args.KindJSON, []byte("{}")
		default:
			kind, doc = args.KindJSON, []byte("[]")
		}
	}
	s, err := g.link.schema(ctx, req.Function)
	if s == nil || err != nil {
		return err
	}
	if kind != args.KindJSON {
		v, err := args.Decode(kind, doc)
		if err == nil {
			doc, err = v.Encode(args.EncodeJSON)
		}
		if err != nil {
			return args.AsError(err, args.CodeBadInput)
		}
	}
	return s.Validate(doc)
}

// schema returns the schema of a function's arguments, nil if it has none that can be used.
func (l *link) schema(ctx context.Context, name string) (*schema.Schema, error) {
	l.mu.RLock()
	s, known := l.schemas[name]
	before := l.changes
	l.mu.RUnlock()
	if known {
		return s, nil
	}
	text, err := l.output(ctx, "", "fbus.functions", args.List(name))
	if err != nil {
		return nil, err
	}
	var info bus.FunctionInfo
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil // the call says that there is none
	}
	if err := json.Unmarshal(text, &info); err != nil {
		return nil, args.Errorf(args.CodeInternal, "the node's answer cannot be read: %v", err)
	}
	if s, err = schema.Of(&info); err != nil {
		l.note("%s: its schema is not used: %v", name, err)
		s = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.schemas != nil && l.changes == before {
		l.schemas[name] = s
	}
	return s, nil
}
