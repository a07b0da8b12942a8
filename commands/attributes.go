package commands

import (
	"fmt"
	"slices"
	"strings"

	"fbus/bus/args"
)

// ownAttributes are the attributes that fbus defines, and whether each has a value.
var ownAttributes = map[string]bool{"tool": false, "read-only": false, "destructive": false, "output-type": true, "output-schema": true}

// readAttributes reads NAME, NAME=VALUE and NAME=@FILE.
func readAttributes(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	attributes := map[string]string{}
	for _, word := range list {
		name, value, hasValue := strings.Cut(word, "=")
		if file, ok := strings.CutPrefix(value, "@"); ok {
			text, err := readSmall(file)
			if err != nil {
				return nil, usage("--attr %s: %s: %v", name, file, err)
			}
			value = string(args.WithoutBOM(text))
		}
		wants, ours := ownAttributes[name]
		_, twice := attributes[name]
		switch {
		case twice:
			return nil, usage("--attr %s is given twice", name)
		case !ours && !strings.Contains(name, "."):
			e := usage("--attr %s: unknown attribute: names without a dot are fbus's own", name)
			if near := nearest(name, ownNames()); near != "" {
				return nil, e.WithHint("did you mean %s?", near)
			}
			return nil, e.WithHint("fbus knows %s; your own need a dot, as in x.%s", strings.Join(ownNames(), ", "), name)
		case ours && wants && value == "":
			return nil, usage("--attr %s needs a value: --attr %s=VALUE, or =@FILE", name, name)
		case ours && !wants && hasValue:
			return nil, usage("--attr %s takes no value", name)
		case name == "output-schema":
			schema, err := compactSchema([]byte(value))
			if err != nil {
				return nil, usage("--attr output-schema%v", err)
			}
			value = schema
		}
		attributes[name] = value
	}
	if err := args.CheckAttributes(attributes); err != nil {
		return nil, usage("--attr: %v", err)
	}
	return attributes, nil
}

func ownNames() []string {
	names := make([]string, 0, len(ownAttributes))
	for name := range ownAttributes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// attributeText formats an attribute for people.
func attributeText(name, value string) string {
	if value == "" {
		return name
	}
	return fmt.Sprintf("%s=%s", name, args.Shorten(value))
}
