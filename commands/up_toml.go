package commands

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"fbus/bus/args"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// setting is a key of a TOML document with its value. A document is a list of them, in
// the order of the file: tables, dotted keys and inline tables look the same. Decoding
// into structs would report the positions of unknown keys and wrong types, but not of
// values that an option refuses.
type setting struct {
	key   []string
	at    string // position of the last part of the key, FILE:LINE:COLUMN
	value tomlValue
}

// tomlValue is a string, int64, bool or []tomlValue, or nil for a type that no option
// takes.
type tomlValue struct {
	v    any
	kind string // for messages: a string
	at   string
}

// aTable is the kind of a table.
const aTable = "a table"

// parseTOML reads a document. Positions and errors begin with name.
func parseTOML(name string, data []byte) ([]setting, error) {
	if args.IsUTF16(data) {
		return nil, usage("%s:1:1: it is UTF-16, and must be UTF-8", name)
	}
	data = args.WithoutBOM(data)
	// The decoder finds duplicates; only the parser knows all positions.
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := de.Position()
			why, _, _ := strings.Cut(strings.TrimPrefix(de.Error(), "toml: "), ": strconv.")
			return nil, usage("%s:%d:%d: %s", name, line, column, why)
		}
		return nil, usage("%s: %v", name, err)
	}
	p := &tomlParser{name: name}
	p.Reset(data)
	var table []string
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			key, at := p.key(nil, e.Key())
			table = key
			if e.Kind == unstable.ArrayTable {
				return nil, usage("%s: [[%s]]: arrays of tables are not allowed", at, strings.Join(key, "."))
			}
			p.settings = append(p.settings, setting{key, at, tomlValue{kind: aTable, at: at}})
		case unstable.KeyValue:
			p.set(table, e)
		}
	}
	if err := p.Error(); err != nil {
		return nil, usage("%s: %v", name, err)
	}
	return p.settings, nil
}

type tomlParser struct {
	unstable.Parser
	name     string
	settings []setting
}

// at returns where a range begins, or only the name of the document.
func (p *tomlParser) at(r unstable.Range) string {
	if r.Length == 0 {
		return p.name
	}
	start := p.Shape(r).Start
	return fmt.Sprintf("%s:%d:%d", p.name, start.Line, start.Column)
}

// key reads a key with dots, below its table.
func (p *tomlParser) key(table []string, parts unstable.Iterator) (key []string, at string) {
	key = append(key, table...)
	for parts.Next() {
		key = append(key, string(parts.Node().Data))
		at = p.at(parts.Node().Raw)
	}
	return key, at
}

// set records a key and its value, then the keys of an inline table.
func (p *tomlParser) set(table []string, kv *unstable.Node) {
	key, at := p.key(table, kv.Key())
	v := kv.Value()
	p.settings = append(p.settings, setting{key, at, p.value(v, at)})
	if v.Kind == unstable.InlineTable {
		for inner := v.Children(); inner.Next(); {
			p.set(key, inner.Node())
		}
	}
}

// value reads a value. If its position is not known, the position of its key is used.
func (p *tomlParser) value(n *unstable.Node, keyAt string) tomlValue {
	v := tomlValue{at: p.at(n.Raw)}
	if v.at == p.name {
		v.at = keyAt
	}
	switch n.Kind {
	case unstable.String:
		v.v, v.kind = string(n.Data), "a string"
	case unstable.Bool:
		v.v, v.kind = string(n.Data) == "true", "true or false"
	case unstable.Integer:
		v.kind = "a whole number"
		v.v, _ = strconv.ParseInt(strings.ReplaceAll(string(n.Data), "_", ""), 0, 64) // in range: it was decoded
	case unstable.Array:
		list := []tomlValue{}
		for e := n.Children(); e.Next(); {
			list = append(list, p.value(e.Node(), v.at))
		}
		v.v, v.kind = list, "an array"
	case unstable.InlineTable:
		v.kind = aTable
	case unstable.Float:
		v.kind = "a number with a fraction"
	default:
		v.kind = "a date or time"
	}
	return v
}
