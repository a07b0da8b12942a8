// Package openapi describes functions on the bus as a document of OpenAPI 3.1.
package openapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"mime"
	"slices"
	"strings"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/cmd/schema"
)

// maxAsked is how many functions the node describes with their schemas at once.
const maxAsked = 1000

// Ask returns the functions of a node that may be called, with their schemas. call makes calls, as
// [bus.Client.Call] does.
func Ask(ctx context.Context, call func(ctx context.Context, req *bus.Request) (bus.Result, error), may func(function string) bool) ([]bus.FunctionInfo, error) {
	ask := func(a bus.Args, visit func(f *bus.FunctionInfo)) error {
		var out bytes.Buffer
		if _, err := call(ctx, &bus.Request{Function: "fbus.functions", Args: a, Stdout: &out}); err != nil {
			return err
		}
		for line := range bytes.Lines(out.Bytes()) {
			var f bus.FunctionInfo
			if err := json.Unmarshal(line, &f); err != nil {
				return err
			}
			visit(&f)
		}
		return nil
	}
	var names []string
	err := ask(bus.Args{}, func(f *bus.FunctionInfo) {
		if may(f.Name) {
			names = append(names, f.Name)
		}
	})
	var list []bus.FunctionInfo
	for some := range slices.Chunk(names, maxAsked) {
		if err == nil {
			err = ask(bus.List(some...), func(f *bus.FunctionInfo) { list = append(list, *f) })
		}
	}
	return list, err
}

type object = map[string]any

func ref(kind, name string) object { return object{"$ref": "#/components/" + kind + "/" + name} }

// Document returns the document about these functions, and about what else the gateway serves.
func Document(functions []bus.FunctionInfo) ([]byte, error) {
	schemas, paths := object{}, object{}
	for i := range functions {
		f := &functions[i]
		if f.Schema != nil {
			schemas[f.Name] = embed(f.Name, f.Schema)
		} else if s, err := schema.Of(f); err == nil && s != nil {
			schemas[f.Name] = embed(f.Name, s.Text)
		}
		calls := object{"post": operation(f, "call", schemas[f.Name] != nil)}
		if _, ok := f.Attributes["read-only"]; ok {
			get := operation(f, "get", false)
			delete(get, "requestBody")
			calls["get"] = get
		}
		paths["/call/"+f.Name] = calls
		paths["/jobs/"+f.Name] = object{"post": operation(f, "post", schemas[f.Name] != nil)}
	}
	for path, item := range fixed() {
		paths[path] = item
	}
	return json.Marshal(object{
		"openapi": "3.1.0",
		"info": object{
			"title": "fbus gateway", "version": "1.0.0",
			"description": "Functions on the bus that this caller may call, and the jobs that were posted for them.",
			"license":     object{"name": "as each function's owner says", "url": "about:blank"},
		},
		"servers":  []object{{"url": "/"}},
		"security": []object{{"token": []string{}}, {}},
		"tags": []object{
			{"name": "functions", "description": "Calls that are waited for."}, {"name": "jobs", "description": "Calls that nobody waits for."},
			{"name": "gateway", "description": "The gateway itself."},
		},
		"paths": paths,
		"components": object{
			"schemas": schemas, "parameters": parameters, "responses": responses,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer", "description": "fbus invite --token"}},
		},
	})
}

// operation describes a call of a function (call, get) or a post (post).
func operation(f *bus.FunctionInfo, verb string, hasSchema bool) object {
	tag, names := "functions", []string{"Words", "As", "Held", "Wait", "Timeout"}
	switch verb {
	case "get":
		names = []string{"Words", "Held", "Wait", "Timeout"}
	case "post":
		tag, names = "jobs", []string{"Words", "As", "Then", "Else", "Finally", "Retries", "Delay", "Backoff", "Priority", "Keep", "Batch", "Attempt", "Key"}
	}
	about := args.OneLine(f.Description)
	content := object{}
	if f.Takes != "input" {
		arguments := object{"description": "The arguments."}
		if hasSchema {
			arguments = ref("schemas", f.Name)
		}
		content["application/json"] = object{"schema": arguments}
	}
	if f.Takes != "args" {
		content["application/octet-stream"] = object{}
	}
	refs := []object{}
	for _, name := range names {
		refs = append(refs, ref("parameters", name))
	}
	op := object{
		"operationId": verb + "-" + f.Name, "tags": []string{tag}, "summary": cmp.Or(args.Shorten(about), f.Name), "parameters": refs,
		"requestBody": object{"content": content, "description": cmp.Or(f.Arguments, "The input, or the arguments as JSON.")},
	}
	if about != "" {
		op["description"] = about
	}
	if verb == "post" {
		op["responses"] = object{"202": ref("responses", "Posted"), "4XX": ref("responses", "Error"), "5XX": ref("responses", "Error")}
	} else {
		op["responses"] = object{
			"200": object{"description": "The function's output.", "content": object{outputType(f): object{}}},
			"4XX": ref("responses", "Error"), "5XX": ref("responses", "Error"),
		}
	}
	return op
}

func outputType(f *bus.FunctionInfo) string {
	if kind, _, err := mime.ParseMediaType(f.Attributes["output-type"]); err == nil && strings.Contains(kind, "/") {
		return kind
	}
	return "*/*"
}

func query(name, about string, schema object) object {
	return object{"name": name, "in": "query", "description": about, "schema": schema}
}

func header(name, about string) object {
	return object{"name": name, "in": "header", "description": about, "schema": object{"type": "string"}}
}

var text = object{"type": "string"}

var parameters = object{
	"Words":    query("arg", "Words as arguments; may be repeated.", object{"type": "array", "items": object{"type": "string"}}),
	"As":       query("as", "input: the body is the input whatever its type.", object{"type": "string", "enum": []string{"input"}}),
	"Held":     query("status", "header: the output is held back until the end, which has an exact status then; at most 16 MiB.", object{"type": "string", "enum": []string{"header"}}),
	"Then":     query("then", "A function that gets the output of the job when that is done.", text),
	"Else":     query("else", "A function that gets the output of the job if that is dead.", text),
	"Finally":  query("finally", "A function that gets the output of the job in both cases.", text),
	"Retries":  query("retries", "Further tries after a failure.", object{"type": "integer", "minimum": 0}),
	"Delay":    query("delay", "How long the job waits, as 90s or 5m.", text),
	"Backoff":  query("backoff", "How long the job waits before its first further try, as 1s; doubled each time.", text),
	"Priority": query("priority", "A job with a higher one runs first.", object{"type": "integer"}),
	"Keep":     query("keep", "How long the result is kept, as 7d.", text),
	"Batch":    query("batch", "The batch of the job, or of the jobs.", text),
	"State":    query("state", "Only jobs in this state.", object{"type": "string", "enum": []jobs.State{jobs.Queued, jobs.Delayed, jobs.Running, jobs.Done, jobs.Dead, jobs.Cancelled}}),
	"Function": query("function", "Only jobs of functions that match this name or glob.", text),
	"Limit":    query("limit", "At most so many jobs.", object{"type": "integer", "minimum": 1, "maximum": 10000, "default": 100}),
	"After":    query("after", "The id of a job: only jobs that were posted after it, oldest first.", text),
	"Until":    query("wait", "How long to wait for the job's end, as 30s.", text),
	"Wait":     header("Fbus-Wait", "How long to wait for a free slot, as 30s, or forever."),
	"Timeout":  header("Fbus-Timeout", "How long the call may take."),
	"Attempt":  header("Fbus-Timeout", "How long each attempt may take."),
	"Key":      header("Idempotency-Key", "A second post with it returns the first job."),
	"ID":       object{"name": "id", "in": "path", "required": true, "description": "The id of a job or a call.", "schema": object{"type": "string"}},
	"Name":     object{"name": "name", "in": "path", "required": true, "description": "The name of a function.", "schema": object{"type": "string"}},
}

var responses = object{
	"Error": object{
		"description": "What failed, and why.",
		"headers": object{
			"Fbus-Status": object{"description": "The exit status.", "schema": object{"type": "integer"}},
			"Fbus-Code":   object{"description": "The code of fbus.", "schema": object{"type": "string"}},
		},
		"content": object{"text/plain": object{}, "application/problem+json": object{"schema": object{"type": "object"}}},
	},
	"Posted": object{
		"description": "The job is on disk.",
		"headers":     object{"Location": object{"description": "The path of the job.", "schema": object{"type": "string"}}},
		"content":     object{"application/json": object{"schema": object{"type": "object"}}},
	},
	"JSON":   object{"description": "As asked for.", "content": object{"application/json": object{}}},
	"Output": object{"description": "As it was written.", "content": object{"*/*": object{}}},
}

// fixed are the paths that do not depend on functions.
func fixed() object {
	op := func(id, tag, summary, response string, names ...string) object {
		refs := []object{}
		for _, name := range names {
			refs = append(refs, ref("parameters", name))
		}
		return object{
			"operationId": id, "tags": []string{tag}, "summary": summary, "parameters": refs,
			"responses": object{"200": ref("responses", response), "4XX": ref("responses", "Error"), "5XX": ref("responses", "Error")},
		}
	}
	open := func(o object) object {
		o["security"] = []object{}
		return o
	}
	return object{
		"/functions":        object{"get": op("functions", "functions", "List the functions", "JSON")},
		"/functions/{name}": object{"get": op("function", "functions", "Describe a function", "JSON", "Name")},
		"/jobs":             object{"get": op("jobs", "jobs", "List the jobs", "JSON", "State", "Function", "Batch", "Limit", "After")},
		"/jobs/{id}":        object{"get": op("job", "jobs", "Describe a job", "JSON", "ID", "Until"), "delete": op("cancel-job", "jobs", "Cancel a job", "JSON", "ID")},
		"/jobs/{id}/output": object{"get": op("job-output", "jobs", "Get the output of a job", "Output", "ID", "Until", "Held")},
		"/jobs/{id}/stderr": object{"get": op("job-stderr", "jobs", "Get what a job has written to stderr", "Output", "ID", "Until", "Held")},
		"/jobs/{id}/retry":  object{"post": op("retry-job", "jobs", "Run a dead job again", "JSON", "ID")},
		"/calls":            object{"get": op("calls", "functions", "List the calls that run or wait", "JSON")},
		"/calls/{id}":       object{"delete": op("cancel-call", "functions", "End a call", "JSON", "ID")},
		"/healthz":          object{"get": open(op("healthz", "gateway", "Ask whether the gateway runs", "JSON"))},
		"/readyz":           object{"get": open(op("readyz", "gateway", "Ask whether it is connected to its node", "JSON"))},
		"/metrics":          object{"get": op("metrics", "gateway", "Get metrics for Prometheus", "Output")},
		"/openapi.json":     object{"get": op("openapi", "gateway", "Get this document", "JSON")},
	}
}
