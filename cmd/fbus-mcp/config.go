package main

import (
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
	err = toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields().Decode(&file)
	var strict *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &strict) && len(strict.Errors) > 0:
		line, column := strict.Errors[0].Position()
		return nil, args.Errorf(args.CodeUsage, "%s:%d:%d: unknown key %s", path, line, column, strings.Join(strict.Errors[0].Key(), "."))
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		return nil, args.Errorf(args.CodeUsage, "%s:%d:%d: %s", path, line, column, strings.TrimPrefix(wrong.Error(), "toml: "))
	case err != nil:
		return nil, args.Errorf(args.CodeUsage, "%s: %s", path, strings.TrimPrefix(err.Error(), "toml: "))
	}
	described := map[string]string{}
	for name, tool := range file.Tools {
		if !args.ValidName(name) {
			return nil, args.Errorf(args.CodeUsage, "%s: [tools.%s]: invalid function name", path, args.Shown(name))
		}
		described[name] = tool.Description
	}
	return described, nil
}
