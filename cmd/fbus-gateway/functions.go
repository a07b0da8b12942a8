package main

import (
	"bytes"
	"encoding/json"
	"net/http"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/cmd/schema"
)

// functions serves GET /functions and /functions/NAME: what the caller may call.
func (g *gateway) functions(w http.ResponseWriter, r *http.Request, c *caller) {
	var a bus.Args
	name := r.PathValue("name")
	if name != "" {
		switch {
		case !args.ValidName(name):
			g.refuse(w, r, args.Errorf(args.CodeUsage, "invalid function name %q", args.Shown(name)))
			return
		case !g.mayCall(c, name):
			g.refuse(w, r, denied(c, name))
			return
		}
		a = args.List(name)
	}
	text, err := g.link.output(r.Context(), c.name, "fbus.functions", a)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	list := []json.RawMessage{}
	for line := range bytes.Lines(text) {
		var f struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(line, &f) == nil && g.mayCall(c, f.Name) {
			list = append(list, bytes.TrimSpace(line))
		}
	}
	switch {
	case name == "":
		writeJSON(w, http.StatusOK, list)
	case len(list) == 0:
		g.refuse(w, r, args.Errorf(args.CodeNoFunction, "%s: no such function", name))
	default:
		writeJSON(w, http.StatusOK, withSchema(list[0]))
	}
}

// withSchema adds the schema by which calls are validated, if the placeholders of a function are what it has.
func withSchema(doc json.RawMessage) json.RawMessage {
	var info bus.FunctionInfo
	var fields map[string]json.RawMessage
	if json.Unmarshal(doc, &info) != nil || info.Schema != nil || json.Unmarshal(doc, &fields) != nil {
		return doc
	}
	s, err := schema.Of(&info)
	if s == nil || err != nil {
		return doc
	}
	fields["schema"] = s.Text
	if text, err := json.Marshal(fields); err == nil {
		doc = text
	}
	return doc
}
