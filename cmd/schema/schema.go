// Package schema knows the JSON Schema of a function's arguments and validates with it.
//
// Schemas come from workers, and documents from callers: neither is trusted. Sizes and depths are
// bounded, so is the work of a validation, and nothing is ever fetched.
package schema

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"fbus/bus/args"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

const (
	// maxSize bounds a schema. OFFER has the same limit.
	maxSize = 65536
	// maxDepth bounds the nesting of schemas and of documents.
	maxDepth = 64
	// maxSteps bounds the work of one validation: subschemas that are tried, about. A document may have
	// one more for each of its bytes. Schemas that refer to themselves several times could otherwise
	// take years.
	maxSteps = 50_000
	// minExponent and maxDigits bound a number, which must be below what float64 has, too. The library makes
	// fractions of them: 1e-9999999 would take megabytes, and of longer ones it makes none and panics. Clients read
	// a number beyond float64 as infinity.
	minExponent = -400
	maxDigits   = 1000
	// maxProblems is how many problems of a document an error lists, and how many values of an enum.
	maxProblems = 5
)

// Schema is a JSON Schema, draft 4 to 2020-12, with which documents can be validated.
type Schema struct {
	// Text is the schema itself.
	Text json.RawMessage

	unchecked string // the first pattern that matches everything, since Go does not support it

	mu       sync.Mutex // protects the fields below
	compiled *jsonschema.Schema
	steps    int // that are left

	subschemas []*jsonschema.Schema
}

// Compile reads a schema. One that refers to a URL is refused.
func Compile(text []byte) (*Schema, error) {
	if len(text) > maxSize {
		return nil, fmt.Errorf("the schema has %d bytes, the limit is %d", len(text), maxSize)
	}
	doc, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("the schema: %w", err)
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(nothing{})
	s := &Schema{Text: text}
	c.UseRegexpEngine(s.lenient)
	const url = "fbus:///schema" // with a path: a relative reference must not lead to the schema itself
	err = guard(func() (err error) {
		if err = c.AddResource(url, doc); err == nil {
			s.compiled, err = c.Compile(url)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("the schema is invalid: %s", shown(err))
	}
	if err := s.count(s.compiled, map[*jsonschema.Schema]bool{}); err != nil {
		return nil, err
	}
	// Some cycles of references show only in a validation.
	var no *jsonschema.ValidationError
	if errors.As(s.validate(map[string]any{}, maxSteps), &no) && isCycle(no) {
		return nil, fmt.Errorf("the schema is invalid: %s", shown(no))
	}
	return s, nil
}

func isCycle(e *jsonschema.ValidationError) bool {
	_, cycle := e.ErrorKind.(*kind.RefCycle)
	return cycle || slices.ContainsFunc(e.Causes, isCycle)
}

// Validate returns an error with the code bad_input if doc does not match the schema. It says where,
// and what is expected there.
func (s *Schema) Validate(doc []byte) error {
	v, err := decode(doc)
	if err != nil {
		return args.BadInput("%v", err)
	}
	if err = s.validate(v, maxSteps+len(doc)); err == nil {
		return nil
	}
	var invalid *jsonschema.ValidationError
	if !errors.As(err, &invalid) {
		return args.BadInput("%v", err)
	}
	var list []string
	problems(invalid, &list)
	return args.BadInput("%s", strings.Join(list, "; "))
}

// Exact returns an error if Validate can accept documents that do not match the schema, or can validate
// none, however small. It does not find schemas that are too complicated for some documents only: there
// Validate says so.
func (s *Schema) Exact() error {
	if s.unchecked != "" {
		return fmt.Errorf("the schema has a pattern that is not supported: %s", args.Shown(s.unchecked))
	}
	costs := map[*jsonschema.Schema]int{}
	// cost counts the subschemas that one value is validated with, up to a bit more than maxSteps. A cycle
	// that only some values lead into counts once.
	var cost func(sub *jsonschema.Schema) int
	cost = func(sub *jsonschema.Schema) int {
		if sub == nil {
			return 0
		}
		if n, known := costs[sub]; known {
			return n
		}
		costs[sub] = 1
		n := 1
		for _, list := range [][]*jsonschema.Schema{{sub.Ref, sub.Not, sub.If, sub.Then, sub.Else}, sub.AllOf, sub.AnyOf, sub.OneOf, slices.Collect(maps.Values(sub.DependentSchemas))} {
			for _, below := range list {
				n = min(n+cost(below), maxSteps+1)
			}
		}
		costs[sub] = n
		return n
	}
	for _, sub := range s.subschemas {
		if cost(sub) > maxSteps {
			return errors.New("the schema is too complicated to validate anything with")
		}
	}
	return nil
}

// validate serializes validations: the library has no place for a counter of each.
func (s *Schema) validate(v any, steps int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = steps
	return guard(func() error { return s.compiled.Validate(v) })
}

var (
	errSteps = errors.New("the schema is too complicated to validate this with")
	errPanic = errors.New("the schema cannot be used: the validator has failed")
)

// guard calls the library. A panic of it becomes an error: a schema or a document must not end the process.
func guard(call func() error) (err error) {
	defer func() {
		switch r := recover(); r {
		case nil:
		case errSteps:
			err = errSteps
		default:
			err = errPanic
		}
	}()
	return call()
}

// Check returns an error if no schema can be asked about doc: it is not JSON, or nested too deep.
func Check(doc []byte) error {
	_, err := decode(doc)
	return err
}

// decode reads a document whose nesting and numbers are bounded. Numbers keep their digits.
func decode(text []byte) (any, error) {
	if err := args.CheckJSON(text); err != nil {
		return nil, err
	}
	depth, d := 0, json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // else it would end at one that is no float64
	for {
		t, err := d.Token()
		if err != nil {
			break // at the end: it is valid
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth > maxDepth {
			return nil, fmt.Errorf("the JSON document is nested deeper than %d levels", maxDepth)
		}
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err == nil {
		err = checkNumbers(v, "")
	}
	return v, err
}

// checkNumbers returns an error if a number in a document, which is found at the path, is out of range.
func checkNumbers(v any, path string) (err error) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if err = checkNumbers(value, path+"/"+key); err != nil {
				return err
			}
		}
	case []any:
		for i, value := range v {
			if err = checkNumbers(value, path+"/"+strconv.Itoa(i)); err != nil {
				return err
			}
		}
	case json.Number:
		text, rule := string(v), ""
		_, digits, _ := strings.Cut(strings.ToLower(text), "e")
		exponent, err := strconv.Atoi(cmp.Or(digits, "0"))
		if _, large := strconv.ParseFloat(text, 64); large != nil {
			rule = "it must be between -1.8e308 and 1.8e308"
		} else if err != nil || exponent < minExponent {
			rule = fmt.Sprintf("its exponent must be at least %d", minExponent)
		} else if len(text) > maxDigits {
			rule = fmt.Sprintf("it has %d characters, the limit is %d", len(text), maxDigits)
		}
		if rule != "" {
			if path != "" {
				path = args.Shown(path) + ": "
			}
			return fmt.Errorf("%sthe number %s is out of range: %s", path, args.Shorten(text), rule)
		}
	}
	return nil
}

// nothing is a loader that refuses: a schema must not make us read files or call a server.
type nothing struct{}

func (nothing) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s is not in the schema, and is not fetched", args.Shown(url))
}

// lenient compiles an expression. One that Go does not support, such as a look-ahead, matches
// everything: the function itself may be stricter. Exact returns an error then.
func (s *Schema) lenient(expr string) (jsonschema.Regexp, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		re = regexp.MustCompile("")
		s.unchecked = cmp.Or(s.unchecked, expr)
	}
	return named{re, expr}, nil
}

type named struct {
	*regexp.Regexp
	expr string
}

func (n named) String() string { return n.expr }

// count makes a validation count its steps in s and its subschemas: the library calls the format of
// each of them, before anything that is below it.
func (s *Schema) count(sub *jsonschema.Schema, seen map[*jsonschema.Schema]bool) error {
	if sub == nil || seen[sub] {
		return nil
	}
	seen[sub] = true
	s.subschemas = append(s.subschemas, sub)
	if sub.DynamicRef != nil || sub.RecursiveRef != nil { // where they lead depends on the document
		return errors.New("the schema is invalid: $dynamicRef and $recursiveRef are not supported")
	}
	weight := 1 + len(sub.AllOf) + len(sub.AnyOf) + len(sub.OneOf)
	if sub.Enum != nil {
		for _, value := range sub.Enum.Values {
			weight += cost(value)
		}
		// The library looks at an enum before it calls the format, and at nothing else if that does not match.
		sub.AllOf = append(sub.AllOf, &jsonschema.Schema{DraftVersion: sub.DraftVersion, Location: sub.Location, Enum: sub.Enum})
		sub.Enum = nil
		seen[sub.AllOf[len(sub.AllOf)-1]] = true
	}
	written := sub.Format
	sub.Format = &jsonschema.Format{Name: "", Validate: func(v any) error {
		s.steps -= weight * cost(v)
		switch v := v.(type) {
		case map[string]any:
			s.steps -= len(v) * (1 + len(sub.PatternProperties))
		case []any:
			s.steps -= len(v)
		}
		if s.steps < 0 {
			panic(errSteps)
		}
		if written != nil {
			return written.Validate(v)
		}
		return nil
	}}
	if written != nil {
		sub.Format.Name = written.Name
	}
	return s.countIn(reflect.ValueOf(sub).Elem(), seen)
}

// cost is how many steps a value counts for: the library makes a fraction of a number each time that it compares
// it, which takes long if it has many digits.
func cost(v any) int {
	n, ok := v.(json.Number)
	if !ok {
		return 1
	}
	_, digits, _ := strings.Cut(strings.ToLower(string(n)), "e")
	exponent, _ := strconv.Atoi(digits)
	return 1 + (len(n)+max(exponent, -exponent))/32
}

// countIn finds the subschemas in a value of the library: fields, lists, maps, and interfaces of these.
func (s *Schema) countIn(v reflect.Value, seen map[*jsonschema.Schema]bool) (err error) {
	if v.CanInterface() {
		if sub, ok := v.Interface().(*jsonschema.Schema); ok {
			return s.count(sub, seen)
		}
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := 0; i < v.NumField() && err == nil; i++ {
			if f := v.Type().Field(i); f.IsExported() && f.Type != reflect.TypeFor[*any]() { // const and default are documents
				err = s.countIn(v.Field(i), seen)
			}
		}
	case reflect.Slice:
		for i := 0; i < v.Len() && err == nil; i++ {
			err = s.countIn(v.Index(i), seen)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if err == nil {
				err = s.countIn(v.MapIndex(k), seen)
			}
		}
	case reflect.Interface:
		if !v.IsNil() {
			err = s.countIn(v.Elem(), seen)
		}
	}
	return err
}

var english = message.NewPrinter(language.English)

// problems lists what is wrong in a document, and where.
func problems(e *jsonschema.ValidationError, list *[]string) {
	if len(e.Causes) == 0 && len(*list) < maxProblems {
		text := args.Shown(e.ErrorKind.LocalizedString(english))
		switch k := e.ErrorKind.(type) {
		case *kind.FalseSchema:
			text = "nothing is allowed here"
		case *kind.Enum:
			if more := len(k.Want) - maxProblems; more > 0 && strings.HasPrefix(text, "value must be one of") {
				few := *k
				few.Want = k.Want[:maxProblems]
				text = fmt.Sprintf("%s, or one of %d others", args.Shown(few.LocalizedString(english)), more)
			}
		}
		if len(e.InstanceLocation) > 0 {
			text = args.Shown("/"+strings.Join(e.InstanceLocation, "/")) + ": " + text
		}
		*list = append(*list, text)
	}
	for _, cause := range e.Causes {
		problems(cause, list)
	}
}

// shown returns an error of the library about a schema, in one line.
func shown(err error) string {
	var invalid *jsonschema.SchemaValidationError
	if errors.As(err, &invalid) {
		err = invalid.Err
	}
	var list []string
	if e := (*jsonschema.ValidationError)(nil); errors.As(err, &e) {
		problems(e, &list)
		return strings.Join(list, "; ")
	}
	var load *jsonschema.LoadURLError
	if errors.As(err, &load) {
		err = load.Err
	}
	return args.Shown(args.OneLine(err.Error()))
}
