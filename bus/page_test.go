package bus_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"fbus/bus"
)

func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// block is a paragraph, an item of a list or a row of a table of PROTOCOL.md.
type block struct {
	section string // its number
	text    string
}

// blocks splits the page. Code is left out.
func blocks(text string) (list []block) {
	heading := regexp.MustCompile(`^##+ ([0-9.]+?)\.? `)
	begins := regexp.MustCompile(`^(\||#| *- | *[0-9]+\. )`)
	section, open := "", false
	for line := range strings.SplitSeq(text, "\n") {
		if m := heading.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		switch {
		case strings.TrimSpace(line) == "":
			open = false
		case open && !begins.MatchString(line):
			list[len(list)-1].text += " " + strings.TrimSpace(line)
		case strings.HasPrefix(line, "    ") && !begins.MatchString(line): // code
		default:
			list = append(list, block{section, line})
			open = true
		}
	}
	return list
}

var (
	label   = regexp.MustCompile(`\*\*([A-Z]-[0-9.]+-[0-9]+)\*\*`)
	mention = regexp.MustCompile(`\b[A-Z]-[0-9]+(\.[0-9]+)*-[0-9]+\b`)
	must    = regexp.MustCompile(`\bMUST\b`)
)

// part returns the letter of the rules of a section.
func part(section string) string {
	switch {
	case section == "2.1":
		return "T"
	case section == "7":
		return "E"
	case section == "9.1":
		return "J"
	case strings.HasPrefix(section, "9"):
		return "F"
	}
	return "C"
}

// rules returns the numbers of the page's rules, and checks that each MUST is in one of them.
func rules(t *testing.T) map[string]bool {
	found := map[string]bool{}
	for _, b := range blocks(page(t)) {
		if b.section == "" { // it explains what the words mean
			continue
		}
		parts := label.Split(b.text, -1)
		if must.MatchString(parts[0]) {
			t.Errorf("section %s: a MUST without a number: %s", b.section, b.text)
		}
		for i, m := range label.FindAllStringSubmatch(b.text, -1) {
			if found[m[1]] {
				t.Errorf("%s stands there twice", m[1])
			}
			found[m[1]] = true
			if !strings.HasPrefix(m[1], part(b.section)+"-"+b.section+"-") {
				t.Errorf("%s is in section %s", m[1], b.section)
			}
			if n := len(must.FindAllString(parts[i+1], -1)); n < 1 || n > 2 {
				t.Errorf("%s has %d MUSTs", m[1], n)
			}
		}
	}
	return found
}

// TestRules: each rule of PROTOCOL.md is shown by a frame that is wrong, by a transcript or, where
// frames cannot show it, by a test of the Go code that testdata/rules.jsonl names.
func TestRules(t *testing.T) {
	all := rules(t)
	if len(all) < 100 {
		t.Errorf("only %d rules", len(all))
	}
	for _, m := range mention.FindAllString(page(t), -1) {
		if !all[m] {
			t.Errorf("the page mentions %s, which is no rule", m)
		}
	}
	files, _ := filepath.Glob("testdata/transcripts/*.jsonl")
	shown := map[string]bool{}
	for _, file := range append(files, "testdata/wrong.jsonl", "testdata/rules.jsonl") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scan := bufio.NewScanner(bytes.NewReader(text))
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			var line struct {
				Rules      []string
				Rule, Test string
			}
			if err := json.Unmarshal(scan.Bytes(), &line); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if line.Test != "" {
				line.Rules = []string{line.Rule}
				if !testExists(line.Test) {
					t.Errorf("%s: there is no test %s", line.Rule, line.Test)
				}
			}
			for _, rule := range line.Rules {
				if shown[rule] = true; !all[rule] {
					t.Errorf("%s: %s is no rule", file, rule)
				}
			}
		}
	}
	for rule := range all {
		if !shown[rule] {
			t.Errorf("%s is shown by nothing", rule)
		}
	}
}

// testExists reports whether there is a test: "bus/node TestX", or the path of a script.
func testExists(name string) bool {
	dir, function, ok := strings.Cut(name, " ")
	if !ok {
		_, err := os.Stat(filepath.Join("..", name))
		return err == nil
	}
	files, _ := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
	return slices.ContainsFunc(files, func(file string) bool {
		text, _ := os.ReadFile(file)
		return strings.Contains(string(text), "\nfunc "+function+"(")
	})
}

// TestFields: the tables of PROTOCOL.md have the fields of the JSON that the node's own functions
// take and answer, with their types.
func TestFields(t *testing.T) {
	for heading, v := range map[string]any{
		"Answer of fbus.metrics":                               bus.Metrics{},
		"Line of fbus.watch":                                   bus.Change{},
		"Further fields of a function in fbus.watch":           bus.Demand{},
		"Line of fbus.jobs":                                    bus.JobInfo{},
		"Last line of fbus.jobs":                               bus.JobTotal{},
		"Line of fbus.wait":                                    bus.WaitInfo{},
		"Argument of fbus.wait":                                bus.JobWait{},
		"Argument of fbus.batch":                               bus.BatchThen{},
		"Input of what fbus.batch posts":                       bus.BatchEnd{},
		"Line of fbus.functions":                               bus.FunctionInfo{},
		"Line of fbus.calls":                                   bus.CallInfo{},
		"Line of fbus.nodes":                                   bus.NodeInfo{},
		"Argument of fbus.invite":                              bus.Invitation{},
		"Argument of fbus.trust":                               bus.TrustQuery{},
		"Answer of fbus.invite for a token, and of fbus.admit": bus.TokenInfo{},
		"Line of fbus.tickets":                                 bus.TicketInfo{},
		"Answer of fbus.revoke":                                bus.RevokedInfo{},
		"Line of fbus.hold and fbus.release":                   bus.HeldInfo{},
		"Argument of fbus.hold and fbus.release":               bus.HoldQuery{},
		"Argument of fbus.log":                                 bus.LogQuery{},
		"Line of fbus.log":                                     bus.LogEntry{},
		"Last line of fbus.log":                                bus.LogNext{},
		"Argument of fbus.jobs, fbus.retry and fbus.purge":     bus.JobQuery{},
	} {
		_, table, ok := strings.Cut(page(t), "\n#### "+heading+"\n")
		if !ok {
			t.Errorf("there is no table %q", heading)
			continue
		}
		table, _, _ = strings.Cut(table, "\n#")
		want, got := map[string]string{}, map[string]string{}
		fieldsOf(reflect.TypeOf(v), "", want)
		for _, row := range regexp.MustCompile(`(?m)^\| ([a-z_.,\[\] ]+?) \| ([a-z ]+\??) \|`).FindAllStringSubmatch(table, -1) {
			for name := range strings.SplitSeq(row[1], ", ") {
				if name != "field" {
					got[name] = row[2]
				}
			}
		}
		for name, of := range want {
			if got[name] != of {
				t.Errorf("%s: %s is %q on the page, and %q in Go", heading, name, got[name], of)
			}
		}
		for name := range got {
			if want[name] == "" {
				t.Errorf("%s: %s is only on the page", heading, name)
			}
		}
		// A caller ignores what it does not know.
		if err := json.Unmarshal([]byte(`{"x_new":[1]}`), reflect.New(reflect.TypeOf(v)).Interface()); err != nil {
			t.Errorf("%s: %v", heading, err)
		}
	}
}

// fieldsOf adds the fields of a type's JSON: the path of each, and its type.
func fieldsOf(of reflect.Type, prefix string, fields map[string]string) {
	for i := range of.NumField() {
		f := of.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
			continue
		case f.Anonymous && name == "":
			fieldsOf(f.Type, prefix, fields)
			continue
		}
		kind, inner := jsonType(f.Type)
		if strings.HasPrefix(options, "omit") {
			kind += "?"
		}
		fields[prefix+name] = kind
		if inner != nil {
			if strings.HasPrefix(kind, "array") {
				name += "[]"
			}
			fieldsOf(inner, prefix+name+".", fields)
		}
	}
}

// jsonType names a type as the page does, and returns the struct in it, if it has one.
func jsonType(of reflect.Type) (name string, inner reflect.Type) {
	pointer := of.Kind() == reflect.Pointer
	if pointer {
		of = of.Elem()
	}
	switch {
	case of == reflect.TypeFor[time.Time]():
		return "time", nil
	case of == reflect.TypeFor[json.RawMessage]():
		return "any", nil
	case of.Name() == "Rights" && pointer:
		return "array of string or null", nil
	case of.Name() == "Rights":
		return "array of string", nil
	}
	switch of.Kind() {
	case reflect.String:
		return "string", nil
	case reflect.Bool:
		return "boolean", nil
	case reflect.Float64:
		return "number", nil
	case reflect.Slice:
		name, inner := jsonType(of.Elem())
		return "array of " + name, inner
	case reflect.Map:
		name, _ := jsonType(of.Elem())
		return "object of " + name, nil
	case reflect.Struct:
		return "object", of
	}
	return "integer", nil
}
