package openapi

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fbus/bus"
)

var functions = []bus.FunctionInfo{
	{Name: "resize", Description: "resizes an image\nto WIDTHxHEIGHT", Arguments: "command line: - -resize {1} png:-", Attributes: map[string]string{"output-type": "image/png"}},
	{Name: "greet.all", Description: strings.Repeat("long ", 30), Takes: "args", Arguments: "JSON on stdin", Schema: json.RawMessage(
		`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{"name":{"$ref":"#/$defs/name","x-own":1,"nullable":true},"self":{"$ref":"#"},"$ref":{"type":"string"}},"$defs":{"name":{"type":"string","examples":["Bob"]}},"required":["name"]}`)},
	{Name: "wc", Takes: "input", Attributes: map[string]string{"read-only": ""}},
	{Name: "fields", Arguments: "command line: --size {size}"},
	{Name: "old", Schema: json.RawMessage(`{"$schema":"http://json-schema.org/draft-04/schema#","type":"number","minimum":0,"exclusiveMinimum":true}`)},
	{Name: "tuple", Schema: json.RawMessage(`{"$schema":"http://json-schema.org/draft-07/schema#","items":[{"type":"string"}]}`)},
	{Name: "away", Schema: json.RawMessage(`{"$ref":"https://example.com/x"}`)},
	{Name: "lost", Schema: json.RawMessage(`{"type":"object","properties":{"a":{"$ref":"#/$defs/none"}}}`)},
	{Name: "anchor", Schema: json.RawMessage(`{"$ref":"#x","$defs":{"a":{"$anchor":"x"}}}`)},
	{Name: "no", Schema: json.RawMessage(`false`)},
	{Name: "all", Schema: json.RawMessage(`{"title":"all","$comment":"c","definitions":{"d":{"const":1,"deprecated":true}},"type":["object","null"],
		"properties":{"a":true,"b":false,"c":{"$ref":"#/definitions/d","description":"beside"},"d~/e":{"type":"array","prefixItems":[{"type":"string"}],"items":false,"contains":{},"minContains":1,"uniqueItems":true},
		"e":{"$ref":"#/properties/d~0~1e"},"f":{"type":"string","format":"own","pattern":"^(?=a)","contentEncoding":"base64","contentMediaType":"image/png","minLength":1}},
		"patternProperties":{"^x":{"enum":[null,1,"$ref"]}},"additionalProperties":false,"unevaluatedProperties":false,"propertyNames":{"maxLength":9},
		"dependentSchemas":{"a":{"required":["b"]}},"dependentRequired":{"a":["b"]},"if":{"not":{"required":["a"]}},"then":{"minProperties":1},"else":{"maxProperties":2},
		"allOf":[{"anyOf":[true,{"oneOf":[{"multipleOf":0.5,"exclusiveMinimum":1}]}]}],"default":{"$ref":"no"},"examples":[{"$ref":"no"}],"readOnly":false,"discriminator":"x","xml":1,"example":3}`)},
	{Name: "yes", Schema: json.RawMessage(`true`)},
}

// TestDocument: schemas become components of their own, and what they mean elsewhere only is left out.
func TestDocument(t *testing.T) {
	text, err := Document(functions)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Schemas    map[string]json.RawMessage
			Parameters map[string]struct{ Name string }
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"greet.all": `{"$defs":{"name":{"examples":["Bob"],"type":"string"}},"properties":{"$ref":{"type":"string"},"name":{"$ref":"#/components/schemas/greet.all/$defs/name"},"self":{"$ref":"#/components/schemas/greet.all"}},"required":["name"],"type":"object"}`,
		"fields":    `{"additionalProperties":false,"properties":{"size":{"type":["string","number","boolean","null"]}},"required":["size"],"type":"object"}`,
		"old":       `{"description":"GET /functions/NAME has the schema."}`,
		"tuple":     `{"description":"GET /functions/NAME has the schema."}`,
		"away":      `{"description":"GET /functions/NAME has the schema."}`,
		"lost":      `{"description":"GET /functions/NAME has the schema."}`,
		"anchor":    `{"description":"GET /functions/NAME has the schema."}`,
		"yes":       `{}`,
		"no":        `{"not":{}}`,
		"wc":        ``,
	} {
		if got := string(doc.Components.Schemas[name]); got != want {
			t.Errorf("%s: %s, expected %s", name, got, want)
		}
	}
	if doc.Paths["/call/wc"]["get"] == nil || doc.Paths["/call/resize"]["get"] != nil || doc.Paths["/jobs/resize"]["post"] == nil {
		t.Errorf("%v", doc.Paths)
	}
	for path, want := range map[string]string{
		"post /call/wc": "arg as status Fbus-Wait Fbus-Timeout", "get /call/wc": "arg status Fbus-Wait Fbus-Timeout",
		"post /jobs/wc": "arg as then else finally retries delay backoff priority keep batch Fbus-Timeout Idempotency-Key",
		"get /jobs":     "state function batch limit after", "get /jobs/{id}": "id wait", "get /jobs/{id}/output": "id wait status",
	} {
		var op struct {
			Parameters []struct {
				Ref string `json:"$ref"`
			}
		}
		method, path, _ := strings.Cut(path, " ")
		if err := json.Unmarshal(doc.Paths[path][method], &op); err != nil {
			t.Fatal(method, path, err)
		}
		var names []string
		for _, p := range op.Parameters {
			names = append(names, doc.Components.Parameters[strings.TrimPrefix(p.Ref, "#/components/parameters/")].Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s %s: %s, expected %s", method, path, got, want)
		}
	}
	if post := string(doc.Paths["/call/wc"]["post"]); strings.Contains(post, "application/json\":{\"schema") {
		t.Errorf("a function that takes input: %s", post)
	}
}

// TestLint: redocly finds no error. It needs npx, and the network the first time.
func TestLint(t *testing.T) {
	if os.Getenv("FBUS_SOAK") == "" {
		t.Skip("FBUS_SOAK is not set")
	}
	npx, err := exec.LookPath("npx")
	if err != nil {
		t.Skip("npx is not installed")
	}
	text, err := Document(functions)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "openapi.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	lint := exec.Command(npx, "--yes", "@redocly/cli@2.77.0", "lint", path)
	lint.Dir = t.TempDir()
	lint.Env = append(os.Environ(), "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true")
	out, err := lint.CombinedOutput()
	if err != nil { // warnings are about what functions have written
		t.Errorf("%v\n%s", err, out)
	}
}
