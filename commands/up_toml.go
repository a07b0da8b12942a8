package commands

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// tomlFile is a TOML document as a list of values with positions. It does not tell
// tables, dotted keys and inline tables apart. Decoding into structs would report the
// positions of unknown keys and wrong types, but not of values that an option refuses.
type tomlFile struct {
	settings []setting
	tables   []setting // without values: an empty table counts too
}

// setting is a key with its value.
type setting struct {
	key   []string
	at    string // position of the last part of the key, FILE:LINE:COLUMN
	value tomlValue
}

// tomlValue is a string, int64, bool, []tomlValue, or otherType.
type tomlValue struct {
	v  any
	at string
}

// otherType names the type of a value that no option takes.
type otherType string

// parseTOML reads a document. Positions and errors begin with name.
func parseTOML(name string, data []byte) (*tomlFile, error) {
	// The decoder finds duplicates; only the parser knows all positions.
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			line, column := de.Position()
			return nil, usage("%s:%d:%d: %s", name, line, column, strings.TrimPrefix(de.Error(), "toml: "))
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
			p.file.tables = append(p.file.tables, setting{key: key, at: at})
		case unstable.KeyValue:
			p.set(table, e)
		}
	}
	if err := p.Error(); err != nil {
		return nil, usage("%s: %v", name, err)
	}
	return &p.file, nil
}

type tomlParser struct {
	unstable.Parser
	name string
	file tomlFile
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

// set records a key and its value; an inline table gives one for each of its keys.
func (p *tomlParser) set(table []string, kv *unstable.Node) {
	key, at := p.key(table, kv.Key())
	v := kv.Value()
	if v.Kind != unstable.InlineTable {
		p.file.settings = append(p.file.settings, setting{key, at, p.value(v, at)})
		return
	}
	p.file.tables = append(p.file.tables, setting{key: key, at: at})
	for inner := v.Children(); inner.Next(); {
		p.set(key, inner.Node())
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
		v.v = string(n.Data)
	case unstable.Bool:
		v.v = string(n.Data) == "true"
	case unstable.Integer:
		i, err := strconv.ParseInt(strings.ReplaceAll(string(n.Data), "_", ""), 0, 64)
		if v.v = i; err != nil {
			v.v = otherType("an integer of more than 64 bits")
		}
	case unstable.Array:
		list := []tomlValue{}
		for e := n.Children(); e.Next(); {
			list = append(list, p.value(e.Node(), v.at))
		}
		v.v = list
	case unstable.InlineTable:
		v.v = otherType("a table")
	case unstable.Float:
		v.v = otherType("a number with a fraction")
	default:
		v.v = otherType("a date or time")
	}
	return v
}

// text returns the value for the parser of a flag; ok is false for types that no flag
// takes.
func (v tomlValue) text() (s string, ok bool) {
	switch x := v.v.(type) {
	case string:
		return x, true
	case int64:
		return strconv.FormatInt(x, 10), true
	}
	return "", false
}

// typeName returns the type of a value, for messages.
func (v tomlValue) typeName() string {
	switch x := v.v.(type) {
	case string:
		return "a string"
	case int64:
		return "a whole number"
	case bool:
		return "true or false"
	case []tomlValue:
		return "an array"
	case otherType:
		return string(x)
	}
	return "nothing"
}
