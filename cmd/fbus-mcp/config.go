package main

import (
	"bytes"
	"errors"
	"os"
	"strings"

	"fbus/bus/args"

	"github.com/pelletier/go-toml/v2"
)

// readFile reads the descriptions of tools, by function, from a file.
func readFile(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "%v", err)
	}
	var file struct {
		Tools map[string]struct {
			Description string `toml:"description"`
		} `toml:"tools"`
	}
	if args.IsUTF16(data) {
		return nil, args.Errorf(args.CodeUsage, "%s:1:1: it is UTF-16, and must be UTF-8", path)
	}
	err = toml.NewDecoder(bytes.NewReader(args.WithoutBOM(data))).DisallowUnknownFields().Decode(&file)
	var strict *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &strict) && len(strict.Errors) > 0:
		line, column := strict.Errors[0].Position()
		return nil, args.Errorf(args.CodeUsage, "%s:%d:%d: unknown key %s", path, line, column, args.Shown(strings.Join(strict.Errors[0].Key(), ".")))
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		return nil, args.Errorf(args.CodeUsage, "%s:%d:%d: %s", path, line, column, ruleOf(wrong))
	case err != nil:
		return nil, args.Errorf(args.CodeUsage, "%s: %s", path, args.Plain(err))
	}
	described := map[string]string{}
	for name, tool := range file.Tools {
		if !args.ValidName(name) {
			return nil, args.Errorf(args.CodeUsage, "%s: [tools.%s]: invalid function name", path, args.Shown(name))
		}
		if tool.Description == "" {
			return nil, args.Errorf(args.CodeUsage, "%s: [tools.%s]: description must not be empty", path, name)
		}
		described[name] = tool.Description
	}
	return described, nil
}

// ruleOf returns what is wrong with a file in words that are not about Go.
func ruleOf(e *toml.DecodeError) string {
	key := args.Shown(strings.Join(e.Key(), "."))
	switch {
	case !strings.Contains(e.Error(), "cannot decode"), len(e.Key()) == 0:
		return strings.TrimPrefix(args.Plain(e), "toml: ")
	case len(e.Key()) > 2:
		return key + " must be a string"
	default:
		return key + " must be a table"
	}
}
