package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"fbus/bus/args"

	"github.com/nats-io/nats.go"
	"github.com/synadia-io/orbit.go/natscontext"
)

// A NATS context is a file of the nats command: the URL of a server, and the credentials for it.

// contextFile returns the path of the file of a context. Without a name it is the one that
// nats context select has selected, and the path is empty if there is none.
func contextFile(name string) (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		if name == "" {
			return "", nil
		}
		return "", args.Errorf(args.CodeUsage, "--context %s: %v", args.Shown(name), err)
	}
	dir = filepath.Join(dir, "nats")
	if name == "" {
		text, err := os.ReadFile(filepath.Join(dir, "context.txt"))
		if name = strings.TrimSpace(string(text)); err != nil || name == "" {
			return "", nil
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "context", "*.json"))
	i := slices.IndexFunc(files, func(path string) bool { return filepath.Base(path) == name+".json" })
	if i >= 0 {
		return files[i], nil
	}
	e := args.Errorf(args.CodeUsage, "there is no NATS context %s in %s", args.Shown(name), filepath.Join(dir, "context"))
	for i, path := range files {
		files[i] = strings.TrimSuffix(filepath.Base(path), ".json")
	}
	if len(files) > 0 {
		return "", e.WithHint("there are: %s", args.Shown(strings.Join(files, ", ")))
	}
	return "", e.WithHint("nats context add NAME, or fbus mesh nats://HOST:4222")
}

// connectContext connects as a context says; with urls to these servers.
func connectContext(file, urls string, opts []nats.Option) (*nats.Conn, error) {
	if urls != "" {
		opts = append(opts, func(o *nats.Options) error {
			o.Servers = strings.Split(urls, ",")
			return nil
		})
	}
	nc, settings, err := natscontext.Connect(file, opts...)
	if err == nil && (settings.NSCLookup != "" || settings.UserJwt != "") { // the library does not use them
		nc.Close()
		err = errors.New("its nsc and user_jwt are not supported: it needs creds")
	}
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "NATS context %s: %v", file, err)
	}
	return nc, nil
}
