package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"fbus/bus/wire"
)

// readSchema reads the JSON Schema of the arguments. The offer carries it for callers.
// Calls are not validated: a library for that would cost every start of fbus, with or
// without a schema. fbus --version takes 0.90 million instructions in user mode. With
// google/jsonschema-go linked it takes 1.26, 40 more page faults and 8 % more time; with
// santhosh-tekuri/jsonschema v5 14.6 million, and with v6 23.3 million.
func (f *function) readSchema() error {
	if f.schemaFile == "" {
		return nil
	}
	data, err := os.ReadFile(f.schemaFile)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return usage("--schema %s: %v", f.schemaFile, err)
	}
	f.schema, err = compactSchema(data)
	if err != nil {
		return usage("--schema %s%v", f.schemaFile, err)
	}
	return nil
}

// compactSchema checks that text can be a JSON Schema and removes its spaces. The error
// begins with the position.
func compactSchema(text []byte) (string, error) {
	if err := json.Unmarshal(text, new(json.RawMessage)); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			at := int(min(syntax.Offset, int64(len(text))))
			before := text[:max(at-1, 0)]
			line := bytes.Count(before, []byte("\n"))
			return "", fmt.Errorf(":%d:%d: invalid JSON: %v", line+1, len(before)-bytes.LastIndexByte(before, '\n'), err)
		}
		return "", fmt.Errorf(": invalid JSON: %v", err)
	}
	var out bytes.Buffer
	json.Compact(&out, text)
	switch c := out.Bytes()[0]; {
	case c != '{' && c != 't' && c != 'f':
		return "", errors.New(": not a JSON Schema: it must be an object, true or false")
	case out.Len() > wire.MaxSchema:
		return "", fmt.Errorf(": the schema has %d bytes (limit %d)", out.Len(), wire.MaxSchema)
	}
	return out.String(), nil
}
