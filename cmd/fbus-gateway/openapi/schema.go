package openapi

import (
	"bytes"
	"encoding/json"
	"strings"

	"fbus/cmd/schema"
)

// part is what a keyword of JSON Schema has as its value.
type part int

const (
	value   part = iota // anything but schemas
	one                 // a schema
	list                // a list of schemas
	named               // an object of schemas
	pointer             // a reference
)

// keywords are those of JSON Schema 2020-12 that a document of OpenAPI 3.1 may have in it. Others have no
// meaning there, or another one.
var keywords = map[string]part{
	"$ref": pointer, "$defs": named, "definitions": named, "$comment": value,
	"allOf": list, "anyOf": list, "oneOf": list, "not": one, "if": one, "then": one, "else": one, "dependentSchemas": named,
	"prefixItems": list, "items": one, "contains": one, "properties": named, "patternProperties": named, "additionalProperties": one,
	"propertyNames": one, "unevaluatedItems": one, "unevaluatedProperties": one,
	"type": value, "enum": value, "const": value, "multipleOf": value, "maximum": value, "exclusiveMaximum": value, "minimum": value, "exclusiveMinimum": value,
	"maxLength": value, "minLength": value, "pattern": value, "maxItems": value, "minItems": value, "uniqueItems": value, "maxContains": value, "minContains": value,
	"maxProperties": value, "minProperties": value, "required": value, "dependentRequired": value,
	"title": value, "description": value, "default": value, "deprecated": value, "readOnly": value, "writeOnly": value, "examples": value,
	"format": value, "contentEncoding": value, "contentMediaType": value,
}

// embed returns a function's schema as the component of that name, whose own references lead into it. A
// schema that does not mean the same there is replaced by one that allows everything.
func embed(component string, text json.RawMessage) any {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var root any
	if dec.Decode(&root) != nil {
		return anything
	}
	if o, ok := root.(map[string]any); ok {
		delete(o, "$schema") // it has to be valid by the rules of 2020-12, which OpenAPI 3.1 has
	}
	plain, err := json.Marshal(root)
	if err != nil {
		return anything
	}
	if _, err := schema.Compile(plain); err != nil {
		return anything
	}
	e := &embedder{root: root, prefix: "#/components/schemas/" + component}
	if s := e.schema(root); !e.foreign {
		return s
	}
	return anything
}

var anything = map[string]any{"description": "GET /functions/NAME has the schema."}

type embedder struct {
	root    any
	prefix  string
	foreign bool // something refers to what is not there
}

func (e *embedder) schema(s any) any {
	o, ok := s.(map[string]any)
	switch {
	case s == false:
		return map[string]any{"not": map[string]any{}} // true and false themselves are not known to all tools
	case !ok:
		return map[string]any{}
	}
	out := map[string]any{}
	for key, v := range o {
		kind, known := keywords[key]
		switch {
		case !known && (key == "$anchor" || key == "$dynamicRef" || key == "$dynamicAnchor" || key == "$id"):
			e.foreign = true
		case !known:
		case v == false && (key == "additionalProperties" || key == "unevaluatedProperties"):
			out[key] = v
		case kind == one:
			out[key] = e.schema(v)
		case kind == list:
			parts, _ := v.([]any)
			schemas := []any{}
			for _, p := range parts {
				schemas = append(schemas, e.schema(p))
			}
			out[key] = schemas
		case kind == named:
			parts, _ := v.(map[string]any)
			schemas := map[string]any{}
			for name, p := range parts {
				schemas[name] = e.schema(p)
			}
			out[key] = schemas
		case kind == pointer:
			out[key] = e.pointer(v)
		default:
			out[key] = v
		}
	}
	return out
}

// pointer returns a reference within the schema as one within the document.
func (e *embedder) pointer(v any) string {
	text, _ := v.(string)
	path, ok := strings.CutPrefix(text, "#")
	if at := e.root; ok && path != "" {
		names, slash := strings.CutPrefix(path, "/")
		for name := range strings.SplitSeq(names, "/") {
			o, _ := at.(map[string]any)
			at, ok = o[strings.NewReplacer("~1", "/", "~0", "~").Replace(name)]
			if ok = ok && slash && !strings.Contains(name, "%"); !ok {
				break
			}
		}
	}
	if !ok {
		e.foreign = true
	}
	return e.prefix + path
}
