package main

import (
	"errors"
	"os"
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
	var all map[string]any
	var known struct {
		Mesh struct {
			Share       []string `toml:"share"`
			Accept      []string `toml:"accept"`
			Name        string   `toml:"name"`
			Advertise   []string `toml:"advertise"`
			NATSService []string `toml:"nats-service"`
		} `toml:"mesh"`
	}
	if err = toml.Unmarshal(data, &all); err == nil {
		part, _ := toml.Marshal(map[string]any{"mesh": all["mesh"]})
		decoder := toml.NewDecoder(strings.NewReader(string(part)))
		err = decoder.DisallowUnknownFields().Decode(&known)
	}
	var strict *toml.StrictMissingError
	switch m := known.Mesh; {
	case errors.As(err, &strict) && len(strict.Errors) > 0:
		return args.Errorf(args.CodeUsage, "%s: unknown key %s", path, strings.Join(strict.Errors[0].Key(), "."))
	case err != nil:
		return args.Errorf(args.CodeUsage, "%s: %s", path, strings.TrimPrefix(err.Error(), "toml: "))
	default:
		if m.Share != nil && !given("share") {
			c.Share = m.Share
		}
		if m.Accept != nil && !given("accept") {
			c.Accept = m.Accept
		}
		if m.Name != "" && !given("name") {
			c.Name = m.Name
		}
		if m.Advertise != nil && !given("advertise") {
			c.Advertise = m.Advertise
		}
		if m.NATSService != nil && !given("nats-service") {
			c.NATSService = m.NATSService
		}
	}
	return nil
}
