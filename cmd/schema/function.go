package schema

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"fbus/bus"
	"fbus/bus/args"
)

// Placeholders are those of an offered command line, as in `convert - -resize {1} png:-`.
type Placeholders struct {
	All     bool     // {}: any arguments
	Numbers int      // {1}, {2}: so many
	Fields  []string // {name}
}

var placeholder = regexp.MustCompile(`\{(?:([1-9][0-9]{0,3})|([A-Za-z_][A-Za-z0-9_-]*))?\}`)

// commandLine begins the arguments of a function that gets them on its command line.
const commandLine = "command line"

// ParsePlaceholders reads what a function says of its arguments. It returns nil if there are no
// placeholders.
func ParsePlaceholders(f *bus.FunctionInfo) *Placeholders {
	uses, ok := strings.CutPrefix(f.Arguments, commandLine+": ")
	if !ok {
		return nil
	}
	p := &Placeholders{}
	for _, m := range placeholder.FindAllStringSubmatch(uses, -1) {
		switch n, _ := strconv.Atoi(m[1]); {
		case n > 0:
			p.Numbers = max(p.Numbers, n)
		case m[2] == "":
			p.All = true
		case !slices.Contains(p.Fields, m[2]):
			p.Fields = append(p.Fields, m[2])
		}
	}
	if !p.All && p.Numbers == 0 && p.Fields == nil {
		return nil
	}
	return p
}

// object is a schema, or a part of one. Its fields are written in alphabetical order.
type object map[string]any

// Of returns the schema of a function's arguments, as one JSON document: the one that its worker has
// written, else the one that its placeholders mean. It returns nil if there is neither. The function
// must have been asked for by name.
func Of(f *bus.FunctionInfo) (*Schema, error) {
	if f.Schema != nil {
		return Compile(f.Schema)
	}
	p := ParsePlaceholders(f)
	if p == nil {
		return nil, nil
	}
	word := object{"type": []string{"string", "number", "boolean", "null"}}
	if p.Fields != nil {
		return compile(p.fields(word))
	}
	return compile(p.list(object{}))
}

// compile is for schemas of our own.
func compile(o object) (*Schema, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	return Compile(text)
}

// fields returns the schema of named arguments, each of which is a word.
func (p *Placeholders) fields(word object) object {
	properties := object{}
	for _, name := range p.Fields {
		properties[name] = word
	}
	return object{"type": "object", "properties": properties, "required": p.Fields, "additionalProperties": false}
}

// list returns the schema of a list of words.
func (p *Placeholders) list(word object) object {
	list := object{"type": "array", "items": word}
	if p.Numbers > 0 {
		list["minItems"] = p.Numbers
		if !p.All {
			list["maxItems"] = p.Numbers
		}
	}
	return list
}

// Form is a function as something that takes one JSON object, as tools for AI agents do.
type Form struct {
	*Schema
	pack func(fields map[string]json.RawMessage, doc []byte) (bus.Args, string, error)
}

// FormOf returns the form of a function that was asked for by name. Its schema is the one that was
// written, if that describes an object. One of anything else becomes the field args. Without a written
// schema the fields are those of the placeholders, or args, a list of strings; input is text for the
// program's stdin.
func FormOf(f *bus.FunctionInfo) (*Form, error) {
	if f.Schema != nil && f.Takes != "input" {
		return writtenForm(f.Schema)
	}
	word, p := object{"type": "string"}, ParsePlaceholders(f)
	var o object
	switch {
	case f.Takes == "input":
		o = object{"type": "object", "properties": object{}, "required": []string{"input"}, "additionalProperties": false}
	case p != nil && p.Fields != nil:
		o = p.fields(word)
	default:
		list, required := object{"type": "array", "items": word, "description": "Arguments, sent to the program as JSON on its stdin."}, []string{}
		if p != nil {
			list = p.list(word)
		}
		if p != nil || strings.HasPrefix(f.Arguments, commandLine) {
			list["description"] = "Words of the program's command line."
		}
		if f.Takes == "args" || p != nil && p.Numbers > 0 {
			required = []string{"args"}
		}
		o = object{"type": "object", "properties": object{"args": list}, "required": required, "additionalProperties": false}
	}
	both := strings.HasPrefix(f.Arguments, commandLine) // other programs read either on their stdin
	properties := o["properties"].(object)
	if _, taken := properties["input"]; !taken && f.Takes != "args" {
		about := "Text for the program's stdin."
		if !both && f.Takes == "" {
			about = "Text for the program's stdin, instead of args."
		}
		properties["input"] = object{"type": "string", "description": about}
	}
	s, err := compile(o)
	if err != nil {
		return nil, err
	}
	named := p != nil && p.Fields != nil && f.Takes != "input"
	ownInput := named && slices.Contains(p.Fields, "input")
	return &Form{s, func(fields map[string]json.RawMessage, _ []byte) (a bus.Args, input string, err error) {
		words, hasWords := fields["args"]
		text, hasInput := fields["input"]
		if hasInput && !ownInput {
			input = stringOf(text)
		}
		switch {
		case named:
			var list []bus.Field
			for _, name := range p.Fields {
				list = append(list, bus.Field{Name: name, Value: stringOf(fields[name])})
			}
			return bus.Fields(list...), input, nil
		case !hasWords:
			return a, input, nil
		}
		var list []string
		json.Unmarshal(words, &list) // the schema has made sure
		switch {
		case hasInput && !both && len(list) > 0:
			return a, "", args.BadInput("the function takes args or input, not both")
		case !hasInput || len(list) > 0:
			a = bus.List(list...)
		}
		return a, input, nil
	}}, nil
}

// stringOf returns the string that a JSON document is.
func stringOf(doc json.RawMessage) (text string) {
	json.Unmarshal(doc, &text) // the schema has made sure
	return text
}

// Pack validates a document and returns what a call of the function sends: arguments and input.
func (f *Form) Pack(doc []byte) (bus.Args, string, error) {
	if err := f.Validate(doc); err != nil {
		return bus.Args{}, "", err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(doc, &fields); err != nil {
		return bus.Args{}, "", args.BadInput("the arguments must be a JSON object")
	}
	return f.pack(fields, doc)
}

// writtenForm makes a form of a schema that somebody has written.
func writtenForm(text json.RawMessage) (*Form, error) {
	s, err := Compile(text)
	if err != nil {
		return nil, err
	}
	whole := func(_ map[string]json.RawMessage, doc []byte) (bus.Args, string, error) {
		return bus.JSON(doc), "", nil
	}
	var parts map[string]json.RawMessage
	if json.Unmarshal(text, &parts) != nil { // true or false
		parts = map[string]json.RawMessage{}
		if string(text) == "false" {
			parts["not"] = json.RawMessage("{}")
		}
	}
	var one string
	var several []string
	if json.Unmarshal(parts["type"], &one) == nil {
		several = []string{one}
	} else {
		json.Unmarshal(parts["type"], &several)
	}
	switch {
	case one == "object":
		return &Form{s, whole}, nil
	case len(several) == 0 || slices.Contains(several, "object"):
		parts["type"] = json.RawMessage(`"object"`)
		if text, err = json.Marshal(parts); err == nil {
			s, err = Compile(text)
		}
		return &Form{s, whole}, err
	}
	if parts["$id"] == nil { // so that its references stay its own
		parts["$id"] = json.RawMessage(`"fbus:///args"`)
	}
	dialect := parts["$schema"]
	delete(parts, "$schema")
	wrapped := object{"type": "object", "properties": object{"args": parts}, "required": []string{"args"}, "additionalProperties": false}
	if dialect != nil {
		wrapped["$schema"] = dialect
	}
	if s, err = compile(wrapped); err != nil {
		return nil, fmt.Errorf("as the field args: %w", err)
	}
	return &Form{s, func(fields map[string]json.RawMessage, _ []byte) (bus.Args, string, error) {
		return bus.JSON(fields["args"]), "", nil
	}}, nil
}
