package commands

import (
	"fmt"
	"io"
	"strings"

	"fbus/bus/args"
	"fbus/bus/paths"
)

// maxSmallFile bounds a file of variables, a schema and the value of an attribute: neither an
// environment nor an offer has room for more.
const maxSmallFile = 1 << 20

// readEnvFile reads NAME=VALUE lines. Blank lines and those that begin with # or ; are skipped, as is
// the word export. A value in matching quotes loses them; nothing else in it is special. Errors
// name the line and not its text, which may be a secret.
func readEnvFile(path string) ([]string, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, usage("--env-file %s: %v", path, err)
	}
	var env []string
	number := 0
	for line := range strings.Lines(string(args.WithoutBOM(data))) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if rest, ok := strings.CutPrefix(line, "export "); ok {
			line = strings.TrimSpace(rest)
		}
		name, value, ok := strings.Cut(line, "=")
		value = strings.TrimSpace(value)
		switch {
		case !ok:
			return nil, usage("--env-file %s:%d: a line must be NAME=VALUE", path, number)
		case !isVariable(name):
			return nil, usage("--env-file %s:%d: invalid name before =", path, number)
		case strings.ContainsRune(value, 0):
			return nil, usage("--env-file %s:%d: a NUL byte", path, number)
		}
		if n := len(value); n >= 2 && value[0] == value[n-1] && (value[0] == '"' || value[0] == '\'') {
			value = value[1 : n-1]
		}
		env = append(env, name+"="+value)
	}
	return env, nil
}

// readSmall reads a file that the user named, up to maxSmallFile: a device such as /dev/zero
// has no end. It may be a FIFO, as <(…) is. The error is without the path.
func readSmall(path string) ([]byte, error) {
	f, err := paths.Open(path)
	if err != nil {
		return nil, args.WithoutPath(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSmallFile+1))
	if err == nil && len(data) > maxSmallFile {
		err = fmt.Errorf("longer than %d bytes", maxSmallFile)
	}
	return data, args.WithoutPath(err)
}

// isVariable reports whether a name is usual for a variable.
func isVariable(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || c == '.' || c == '-' && i > 0 || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !letter && (c < '0' || c > '9' || i == 0) {
			return false
		}
	}
	return name != ""
}
