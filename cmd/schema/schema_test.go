package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"fbus/bus"
)

func mustCompile(t *testing.T, text string) *Schema {
	t.Helper()
	s, err := Compile([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestErrorsSayWhere(t *testing.T) {
	s := mustCompile(t, `{"type":"object","properties":{"size":{"type":"integer","maximum":10},"tags":{"items":{"enum":["a","b"]}},"many":{"enum":[1,2,3,4,5,6,7,8]},"to":{"pattern":"^(?!x)y"}},"required":["size"],"additionalProperties":false}`)
	for _, c := range []struct{ doc, want string }{
		{`{"size":3}`, ""},
		{`{"size":3,"to":"no look-ahead in Go"}`, ""},
		{`{"size":"3"}`, "/size: got string, want integer"},
		{`{}`, "missing property 'size'"},
		{`{"size":11,"more":1}`, "additional properties 'more' not allowed"},
		{`{"size":1,"tags":["a","c"]}`, "/tags/1: value must be one of 'a', 'b'"},
		{`{"size":1,"many":0}`, "/many: value must be one of 1, 2, 3, 4, 5, or one of 3 others"},
		{`[]`, "got array, want object"},
		{`{"size":`, "this is not JSON: line 1, column 9: its end is missing"},
		{`{"size":3,"tags":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested deeper than 64 levels"},
	} {
		err := s.Validate([]byte(c.doc))
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.doc, err)
			}
			continue
		}
		if !errors.Is(err, bus.ErrBadInput) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.doc, err, c.want)
		}
	}
}

func TestHostileSchemasAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"url":         {`{"$ref":"http://127.0.0.1:1/x"}`, "http://127.0.0.1:1/x is not in the schema, and is not fetched"},
		"file":        {`{"$ref":"file:///etc/passwd"}`, "is not fetched"},
		"metaschema":  {`{"$schema":"http://127.0.0.1:1/x"}`, "is not fetched"},
		"huge":        {`{"description":"` + strings.Repeat("x", 70000) + `"}`, "the limit is 65536"},
		"deep":        {strings.Repeat(`{"not":`, 1000) + "{}" + strings.Repeat("}", 1000), "nested deeper than 64 levels"},
		"wrong":       {`{"type":"objekt"}`, "/type"},
		"not JSON":    {`{`, "not JSON"},
		"not UTF-8":   {"\"\xff\"", "not UTF-8"},
		"no schema":   {`3`, "invalid"},
		"missing":     {`{"$ref":"#/$defs/x"}`, "invalid"},
		"dynamic ref": {`{"$dynamicAnchor":"n","properties":{"a":{"$dynamicRef":"#n"}}}`, "not supported"},
	} {
		if _, err := Compile([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// Each of these schemas would take longer than the universe has lasted.
func TestValidationEnds(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 60) + "1" + strings.Repeat("}", 60)
	var bomb strings.Builder
	bomb.WriteString(`"$defs":{`)
	for i := range 200 {
		fmt.Fprintf(&bomb, `"d%d":{"%s":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]},`, i, []string{"anyOf", "oneOf"}[i%2], i+1, i+1)
	}
	bomb.WriteString(`"d200":false}}`)
	for name, c := range map[string]struct{ schema, doc string }{
		"references":    {`{"$ref":"#/$defs/d0",` + bomb.String(), `1`},
		"inverted":      {`{"not":{"$ref":"#/$defs/d0"},` + bomb.String(), `1`},
		"by depth":      {`{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"},{"$ref":"#"}]}}}`, deep},
		"additional":    {`{"additionalProperties":{"anyOf":[{"allOf":[{"$ref":"#"},false]},{"$ref":"#"}]}}`, deep},
		"items, draft7": {`{"$schema":"http://json-schema.org/draft-07/schema#","items":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}`, strings.Repeat("[", 60) + strings.Repeat("]", 60)},
	} {
		if err := mustCompile(t, c.schema).Validate([]byte(c.doc)); err == nil || !strings.Contains(err.Error(), "too complicated") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// It would compare fractions of a thousand bits for minutes.
	list := mustCompile(t, `{"items":{"enum":["x"`+strings.Repeat(",1e307", 10_000)+`]}}`)
	if err := list.Validate([]byte("[" + strings.Repeat("1.5e300,", 100_000) + "1]")); err == nil || !strings.Contains(err.Error(), "too complicated") {
		t.Errorf("numbers: %.80v", err)
	}
	tree := mustCompile(t, `{"type":"object","properties":{"a":{"$ref":"#"}},"additionalProperties":false}`) // recursive, and fine
	if err := tree.Validate([]byte(strings.Replace(deep, "1", "{}", 1))); err != nil {
		t.Error(err)
	}
	if err := tree.Validate([]byte(deep)); err == nil || !strings.Contains(err.Error(), "got number, want object") {
		t.Error(err)
	}
}

func TestExact(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString(`{"properties":{"a":{"$ref":"#/$defs/d0"}},"$defs":{`)
	for i := range 20 {
		fmt.Fprintf(&bomb, `"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"not":{"$ref":"#/$defs/d%d"}}]},`, i, i+1, i+1)
	}
	bomb.WriteString(`"d20":{}}}`)
	for schema, want := range map[string]string{
		`{"type":"object","properties":{"a":{"pattern":"^[a-z]+$"},"b":{"$ref":"#"}}}`: "",
		`{"properties":{"a":{"pattern":"^(?!x)y"}}}`:                                   `a pattern that is not supported: ^(?!x)y`,
		`{"patternProperties":{"(a)\\1":{}}}`:                                          `a pattern that is not supported: (a)\1`,
		bomb.String():                                                                  "too complicated to validate anything with",
		`{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"},{"$ref":"#"}]}}}`:      "", // for deep documents only
	} {
		err := mustCompile(t, schema).Exact()
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", schema, err, want)
		}
	}
}

func TestForms(t *testing.T) {
	written := func(text string) *bus.FunctionInfo {
		return &bus.FunctionInfo{Schema: json.RawMessage(text), Arguments: "JSON on stdin"}
	}
	line := func(uses string) *bus.FunctionInfo { return &bus.FunctionInfo{Arguments: "command line" + uses} }
	for name, c := range map[string]struct {
		f      *bus.FunctionInfo
		schema string // a part
		doc    string
		args   bus.Args
		input  string
		err    string
	}{
		"written":           {written(`{"type":"object","required":["a"]}`), `{"type":"object","required":["a"]}`, `{"a":1.50}`, bus.JSON([]byte(`{"a":1.50}`)), "", ""},
		"written, no type":  {written(`{"properties":{"a":{"type":"string"}}}`), `"type":"object"`, `{"a":1}`, bus.Args{}, "", "/a: got number, want string"},
		"true":              {written(`true`), `{"type":"object"}`, `{}`, bus.JSON([]byte(`{}`)), "", ""},
		"a list":            {written(`{"type":"array","items":{"$ref":"#/$defs/n"},"$defs":{"n":{"type":"integer"}}}`), `"required":["args"]`, `{"args":[1,2]}`, bus.JSON([]byte(`[1,2]`)), "", ""},
		"a list, wrong":     {written(`{"type":"array","items":{"$ref":"#/$defs/n"},"$defs":{"n":{"type":"integer"}}}`), ``, `{"args":[1,"2"]}`, bus.Args{}, "", "/args/1: got string, want integer"},
		"fields":            {line(": {name} {size}"), `"required":["name","size"]`, `{"name":"Bob","size":"-1","input":"x"}`, bus.Fields(bus.Field{Name: "name", Value: "Bob"}, bus.Field{Name: "size", Value: "-1"}), "x", ""},
		"fields, missing":   {line(": {name}"), ``, `{}`, bus.Args{}, "", "missing property 'name'"},
		"a field input":     {line(": {input}"), ``, `{"input":"a"}`, bus.Fields(bus.Field{Name: "input", Value: "a"}), "", ""},
		"numbers":           {line(": {2} {1}"), `"maxItems":2,"minItems":2`, `{"args":["a","b"]}`, bus.List("a", "b"), "", ""},
		"numbers, too many": {line(": {1}"), ``, `{"args":["a","b"]}`, bus.Args{}, "", "/args: maxItems: got 2, want 1"},
		"all":               {line(": {}"), `"input"`, `{"args":[],"input":"x"}`, bus.Args{}, "x", ""},
		"argv":              {line(""), `"input"`, `{"args":["a"],"input":"x"}`, bus.List("a"), "x", ""},
		"stdin, args":       {&bus.FunctionInfo{Arguments: "JSON on stdin"}, `"args"`, `{"args":["a"]}`, bus.List("a"), "", ""},
		"stdin, input":      {&bus.FunctionInfo{Arguments: "JSON on stdin"}, `"input"`, `{"input":"a\nb"}`, bus.Args{}, "a\nb", ""},
		"stdin, both":       {&bus.FunctionInfo{Arguments: "JSON on stdin"}, ``, `{"args":["a"],"input":"a"}`, bus.Args{}, "", "args or input, not both"},
		"stdin, nothing":    {&bus.FunctionInfo{Arguments: "JSON on stdin"}, ``, `{}`, bus.Args{}, "", ""},
		"takes input":       {&bus.FunctionInfo{Takes: "input"}, `"required":["input"]`, `{"input":"a"}`, bus.Args{}, "a", ""},
		"takes args":        {&bus.FunctionInfo{Takes: "args"}, `"required":["args"]`, `{"input":"a"}`, bus.Args{}, "", "missing property 'args'"},
	} {
		form, err := FormOf(c.f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !strings.Contains(string(form.Text), c.schema) {
			t.Errorf("%s: schema %s, want %s in it", name, form.Text, c.schema)
		}
		a, input, err := form.Pack([]byte(c.doc))
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %s", name, err, c.err)
			}
		case err != nil, a.Kind() != c.args.Kind(), string(a.Data()) != string(c.args.Data()), input != c.input:
			t.Errorf("%s: kind %d %q, input %q, error %v", name, a.Kind(), a.Data(), input, err)
		}
	}
}

func TestSchemasOfPlaceholders(t *testing.T) {
	for _, c := range []struct{ arguments, doc, err string }{
		{"command line: {name}", `{"name":3}`, ""},
		{"command line: {name}", `{"name":[]}`, "/name"},
		{"command line: {1} {2}", `["a"]`, "minItems: got 1, want 2"},
		{"command line: {1} {2}", `["a",2]`, ""},
	} {
		s, err := Of(&bus.FunctionInfo{Arguments: c.arguments})
		if err != nil {
			t.Fatal(err)
		}
		if err = s.Validate([]byte(c.doc)); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s of %s: %v, want %q", c.doc, c.arguments, err, c.err)
		}
	}
	if s, err := Of(&bus.FunctionInfo{Arguments: "JSON on stdin"}); s != nil || err != nil {
		t.Error(s, err)
	}
}

// TestNumbersAreBounded: the library panics over some of these, and takes minutes for others.
func TestNumbersAreBounded(t *testing.T) {
	many := "0." + strings.Repeat("9", 1998)
	for _, keyword := range []string{"multipleOf", "minimum", "exclusiveMaximum", "const", "maxLength"} {
		for _, n := range []string{"1e99999999", "1e-99999999", "1E9999999", "1e9999999999999999999999", many} {
			text := fmt.Sprintf(`{"properties":{"x":{"%s":%s}}}`, keyword, n)
			if _, err := Compile([]byte(text)); err == nil || !strings.Contains(err.Error(), "the schema: /properties/x/"+keyword+": the number") {
				t.Errorf("%.80s: %v", text, err)
			}
		}
	}
	s := mustCompile(t, `{"properties":{"x":{"type":"number","minimum":-1e308,"multipleOf":1e-400}}}`)
	for doc, want := range map[string]string{
		`{"x":1e308}`:            "",
		`{"x":1e-400}`:           "",
		`{"x":1e99999999}`:       "/x: the number 1e99999999 is out of range: it must be between -1.8e308 and 1.8e308",
		`{"x":1e-99999999}`:      "its exponent must be at least -400",
		`{"x":999e307}`:          "out of range",
		`{"x":` + many + `}`:     "it has 2000 characters, the limit is 1000",
		`{"y":[1,{"z":1e9999}]}`: "/y/1/z: the number",
		`{"y":1e9999,"z":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`: "nested deeper than 64 levels",
	} {
		err := s.Validate([]byte(doc))
		if (want == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), want) || !errors.Is(err, bus.ErrBadInput)) {
			t.Errorf("%.80s: %v, want %q", doc, err, want)
		}
	}
}

// TestPanicsAreErrors: the library must not be able to end the process.
func TestPanicsAreErrors(t *testing.T) {
	if err := guard(func() error { panic("a fault") }); err != errPanic {
		t.Error(err)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add([]byte(`{"type":"object","properties":{"a":{"$ref":"#"}}}`), []byte(`{"a":{}}`))
	f.Add([]byte(`{"properties":{"a":{"multipleOf":1e-9,"minimum":1.5,"enum":[1,2]}}}`), []byte(`{"a":1e99}`))
	f.Fuzz(func(t *testing.T, text, doc []byte) {
		form, err := FormOf(&bus.FunctionInfo{Schema: text})
		if err == nil {
			_, _, err = form.Pack(doc)
		}
		if err != nil && strings.Contains(err.Error(), errPanic.Error()) {
			t.Error("the library has panicked")
		}
	})
}

func TestUnresolvableReferencesAreRefused(t *testing.T) {
	for _, text := range []string{`{"$ref":"#"}`, `{"type":"object","allOf":[{"$ref":"#"}]}`, `{"properties":{"a":{"$ref":"other.json"}}}`} {
		if _, err := Compile([]byte(text)); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}
