package mcp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"fbus/bus/args"
)

// hidden reports whether a character is invisible but not for an agent.
func hidden(r rune) bool { return r == '\u200b' || r >= 0xe0000 && r <= 0xe007f }

// cleanSchema makes the descriptions in a schema safe to show. It returns an error if a name is not: it
// cannot be changed.
func cleanSchema(text json.RawMessage) (json.RawMessage, error) {
	var doc any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&doc); err != nil {
		return nil, err
	}
	changed := false
	var walk func(v any) error
	walk = func(v any) (err error) {
		switch v := v.(type) {
		case []any:
			for i := 0; i < len(v) && err == nil; i++ {
				err = walk(v[i])
			}
		case map[string]any:
			for key, value := range v {
				if strings.ContainsFunc(key, func(r rune) bool { return hidden(r) || args.Unsafe(r) }) {
					return fmt.Errorf("the schema has a name with a control character or an invisible one: %q", args.Shown(key))
				}
				said, ok := value.(string)
				switch {
				case key == "const" || key == "enum": // documents
				case ok && (key == "description" || key == "title" || key == "$comment"):
					if clean := plain(said); clean != said {
						v[key], changed = clean, true
					}
				case !ok:
					if err := walk(value); err != nil {
						return err
					}
				}
			}
		}
		return err
	}
	if err := walk(doc); err != nil || !changed {
		return text, err
	}
	return json.Marshal(doc)
}
