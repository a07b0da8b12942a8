package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"

	"fbus/bus/args"

	"github.com/pelletier/go-toml/v2"
)

// read takes what a file says in [mesh], except what was given on the command line. The file may
// have other tables: those of fbus serve and fbus up.
func (c *config) read(path string, given func(flag string) bool) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return args.Errorf(args.CodeUsage, "%v", err)
	}
	var known struct {
		Mesh struct {
			Share       []string `toml:"share"`
			Accept      []string `toml:"accept"`
			Name        string   `toml:"name"`
			Advertise   []string `toml:"advertise"`
			NATSService []string `toml:"nats-service"`
		} `toml:"mesh"`
	}
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&known)
	if strict := (*toml.StrictMissingError)(nil); errors.As(err, &strict) {
		err = nil
		for i := range strict.Errors {
			e := &strict.Errors[i]
			if key := e.Key(); len(key) > 1 && key[0] == "mesh" {
				line, column := e.Position()
				return args.Errorf(args.CodeUsage, "%s:%d:%d: mesh: unknown key %s", path, line, column, args.Shown(strings.Join(key[1:], ".")))
			}
		}
	}
	var wrong *toml.DecodeError
	switch m := known.Mesh; {
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		return args.Errorf(args.CodeUsage, "%s:%d:%d: %s", path, line, column, ruleOf(wrong))
	case err != nil:
		return args.Errorf(args.CodeUsage, "%s: %v", path, args.Plain(err))
	default:
		c.filed = map[string]string{}
		set := func(key string, there bool, use func()) {
			if there && !given(key) {
				c.filed[key] = path + ": mesh: " + key
				use()
			}
		}
		set("share", m.Share != nil, func() { c.Share = m.Share })
		set("accept", m.Accept != nil, func() { c.Accept = m.Accept })
		set("name", m.Name != "", func() { c.Name = m.Name })
		set("advertise", m.Advertise != nil, func() { c.Advertise = m.Advertise })
		set("nats-service", m.NATSService != nil, func() { c.NATSService = m.NATSService })
	}
	return nil
}

// ruleOf returns what is wrong with a file in words that are not about Go.
func ruleOf(e *toml.DecodeError) string {
	switch key := e.Key(); {
	case !strings.Contains(e.Error(), "cannot decode"), len(key) == 0, key[0] != "mesh":
		return args.Plain(e)
	case len(key) == 1:
		return "mesh must be a table"
	case key[1] == "name":
		return "mesh: name must be a string"
	default:
		return "mesh: " + key[1] + ` must be an array of strings, like ["…"]`
	}
}

// checkAddress refuses what others cannot dial.
func checkAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	n, bad := strconv.ParseUint(port, 10, 16)
	if err != nil || bad != nil || host == "" || n == 0 || strings.ContainsAny(host, " /@") {
		return errors.New("it must be HOST:PORT, with a number as PORT")
	}
	return nil
}
