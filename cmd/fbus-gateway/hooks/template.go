package hooks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"fbus/bus"
	"fbus/bus/args"
)

// delivery is a request to a hook.
type delivery struct {
	header http.Header
	query  url.Values
	raw    []byte
	body   any // raw as JSON has it: maps, lists, strings, [json.Number], …
}

// parse reads the body: JSON, a form, or text. A sender that calls its JSON a form, as curl -d
// does, is understood.
func (d *delivery) parse(github bool) error {
	kind, _, _ := mime.ParseMediaType(d.header.Get("Content-Type"))
	isJSON := kind == "application/json" || strings.HasSuffix(kind, "+json")
	isForm := kind == "application/x-www-form-urlencoded"
	text := args.WithoutBOM(bytes.TrimSpace(d.raw))
	object := len(text) > 0 && (text[0] == '{' || text[0] == '[')
	form := func() (url.Values, error) { return url.ParseQuery(string(d.raw)) }
	if isForm && github { // GitHub's other content type has the JSON in a field
		if values, err := form(); err == nil && values.Has("payload") {
			text, isJSON = []byte(values.Get("payload")), true
		}
	}
	if isJSON || object {
		err := args.CheckJSON(text)
		if err == nil {
			dec := json.NewDecoder(bytes.NewReader(text))
			dec.UseNumber() // digits stay as they are
			return dec.Decode(&d.body)
		}
		if isJSON {
			return fmt.Errorf("the body is not JSON: %w", err)
		}
	}
	if isForm {
		values, err := form()
		if err != nil {
			return errors.New("the body is not a form")
		}
		d.body = single(values)
		return nil
	}
	if !utf8.Valid(d.raw) {
		return errors.New("the body is neither JSON, nor a form, nor text in UTF-8")
	}
	d.body = string(d.raw)
	return nil
}

// single returns values as JSON has them: a string, or a list for a name that occurs again.
func single(values url.Values) map[string]any {
	fields := map[string]any{}
	for name, list := range values {
		if fields[name] = list[0]; len(list) > 1 {
			many := make([]any, len(list))
			for i, v := range list {
				many[i] = v
			}
			fields[name] = many
		}
	}
	return fields
}

// notInEnvelope are headers that are secret, that differ between attempts at one delivery, or that
// are about the connection.
var notInEnvelope = map[string]bool{
	"Authorization": true, "Cookie": true, "Proxy-Authorization": true,
	"Webhook-Signature": true, "Webhook-Timestamp": true, "X-Hub-Signature": true, "X-Hub-Signature-256": true,
	"Accept": true, "Accept-Encoding": true, "Connection": true, "Content-Length": true, "User-Agent": true, "Traceparent": true, "Tracestate": true,
	"Via": true, "Forwarded": true, "X-Real-Ip": true, "X-Request-Id": true,
}

// secretHeader matches headers whose values are secret by their names, as those of X-Api-Key and X-Gitlab-Token.
var secretHeader = regexp.MustCompile(`(?i)token|secret|password|api-?key`)

// envelope returns the whole request as one JSON document.
func (d *delivery) envelope(s *scheme) (bus.Args, error) {
	all := struct {
		Headers map[string]string `json:"headers"`
		Query   map[string]any    `json:"query"`
		Body    any               `json:"body"`
	}{map[string]string{}, single(d.query), d.body}
	for name, values := range d.header {
		if notInEnvelope[name] || name == s.header || name == http.CanonicalHeaderKey(s.timestamp) || strings.HasPrefix(name, "X-Forwarded-") || secretHeader.MatchString(name) {
			continue
		}
		all.Headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(all); err != nil {
		return bus.Args{}, err
	}
	return bus.JSON(bytes.TrimSpace(doc.Bytes())), nil
}

// place is a place in a delivery: header.NAME, query.NAME, body, or body.a.b.
type place struct {
	source string // header, query or body
	name   string // of a header or a query parameter
	path   []string
}

func parsePlace(text string) (place, error) {
	source, rest, more := strings.Cut(text, ".")
	switch {
	case source == "body" && !more:
		return place{source: source}, nil
	case source == "body" && rest != "" && !strings.Contains("."+rest+".", ".."):
		return place{source: source, path: strings.Split(rest, ".")}, nil
	case source == "header" && rest != "":
		return place{source: source, name: http.CanonicalHeaderKey(rest)}, nil
	case source == "query" && rest != "":
		return place{source: source, name: rest}, nil
	}
	return place{}, fmt.Errorf("%q must be header.NAME, query.NAME, body, or body.FIELD.FIELD", args.Shown(text))
}

// String returns the place as it is written.
func (p place) String() string {
	if p.source == "body" {
		return strings.Join(append([]string{"body"}, p.path...), ".")
	}
	return p.source + "." + p.name
}

// find returns the text at the place: a string as it is, anything else as JSON. All of the body is
// as it was sent.
func (p place) find(d *delivery) (string, bool) {
	switch {
	case p.source == "header":
		return d.header.Get(p.name), len(d.header.Values(p.name)) > 0
	case p.source == "query":
		return d.query.Get(p.name), d.query.Has(p.name)
	case len(p.path) == 0:
		return string(d.raw), true
	}
	value := d.body
	for _, name := range p.path {
		switch at := value.(type) {
		case map[string]any:
			inner, ok := at[name]
			if !ok {
				return "", false
			}
			value = inner
		case []any:
			i, err := strconv.ParseUint(name, 10, 31)
			if err != nil || int(i) >= len(at) {
				return "", false
			}
			value = at[i]
		default:
			return "", false
		}
	}
	switch value := value.(type) {
	case string:
		return value, true
	case json.Number:
		return value.String(), true
	}
	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetEscapeHTML(false)
	enc.Encode(value)
	return strings.TrimSuffix(doc.String(), "\n"), true
}

// template is text with places in braces.
type template struct{ parts []part }

// part is a literal text, or a place.
type part struct {
	text  string
	place *place
}

var bodyTemplate = &template{[]part{{place: &place{source: "body"}}}}

// parseTemplate parses a template. A brace of the text itself is written twice.
func parseTemplate(text string) (*template, error) {
	t, literal := &template{}, ""
	for rest := text; rest != ""; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			literal += rest
			break
		}
		literal += rest[:i]
		if strings.HasPrefix(rest[i:], "{{") || strings.HasPrefix(rest[i:], "}}") {
			literal, rest = literal+rest[i:i+1], rest[i+2:]
			continue
		}
		inner, after, closed := strings.Cut(rest[i+1:], "}")
		if rest[i] == '}' || !closed {
			return nil, fmt.Errorf("%q: a brace is open; write {{ or }} for a brace of the text", args.Shown(text))
		}
		p, err := parsePlace(inner)
		if err != nil {
			return nil, err
		}
		t.parts = append(t.parts, part{text: literal}, part{place: &p})
		literal, rest = "", after
	}
	t.parts = append(t.parts, part{text: literal})
	return t, nil
}

// has reports whether the template contains that place, all of it.
func (t *template) has(source, name string) bool {
	for _, p := range t.parts {
		if p.place != nil && p.place.source == source && p.place.name == http.CanonicalHeaderKey(name) && p.place.path == nil {
			return true
		}
	}
	return false
}

// fill returns the text with what the delivery has at the places.
func (t *template) fill(d *delivery) (string, error) {
	var out strings.Builder
	for _, p := range t.parts {
		if p.place == nil {
			out.WriteString(p.text)
			continue
		}
		text, ok := p.place.find(d)
		if !ok {
			return "", fmt.Errorf("the request has no %s", args.Shown(p.place.String()))
		}
		out.WriteString(text)
	}
	return out.String(), nil
}

// condition compares what is at one place with a glob.
type condition struct {
	place place
	not   bool
	glob  string
}

// parseCondition parses PATH == "VALUE" or PATH != "VALUE".
func parseCondition(text string) (condition, error) {
	bad := fmt.Errorf(`%q must be PATH == "VALUE" or PATH != "VALUE", as in body.ref == "refs/heads/main"`, args.Shown(text))
	i := strings.Index(text, "=")
	if i < 1 || !strings.HasPrefix(text[i:], "==") && text[i-1] != '!' {
		return condition{}, bad
	}
	c := condition{not: text[i-1] == '!'}
	left, right := text[:i], strings.TrimSpace(strings.TrimPrefix(text[i+1:], "="))
	if c.not {
		left, right = text[:i-1], strings.TrimSpace(text[i+1:])
	}
	var err error
	if c.place, err = parsePlace(strings.TrimSpace(left)); err != nil {
		return condition{}, err
	}
	if len(right) < 2 || right[0] != '"' || right[len(right)-1] != '"' || strings.Contains(right[1:len(right)-1], `"`) {
		return condition{}, bad
	}
	c.glob = noSlashes.Replace(right[1 : len(right)-1])
	if _, err := path.Match(c.glob, ""); err != nil {
		return condition{}, fmt.Errorf("invalid glob %s", args.Shown(right))
	}
	return c, nil
}

// noSlashes hides slashes from [path.Match]: here * and ? match them too.
var noSlashes = strings.NewReplacer("/", "\x01")

// holds reports whether the condition is met. What is missing equals nothing.
func (c condition) holds(d *delivery) bool {
	text, ok := c.place.find(d)
	if ok {
		ok, _ = path.Match(c.glob, noSlashes.Replace(text))
	}
	return ok != c.not
}
