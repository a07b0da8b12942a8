package main

import (
	"bytes"
	"encoding/json"
	"net/http"

	"fbus/bus"
	"fbus/bus/args"
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
		writeJSON(w, http.StatusOK, list[0])
	}
}
