// Command fbus-gateway serves the functions of a bus over HTTP. It is run as fbus gateway.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"
	"fbus/bus/tuning"
	"fbus/cmd/companion"

	"github.com/spf13/pflag"
)

func main() {
	log.SetOutput(io.Discard) // net/http's client logs there what a server sends
	companion.Main(command)
}

const help = `fbus gateway: serve functions and jobs over HTTP

Usage: fbus gateway [flags]
       fbus gateway socket

It listens on a socket for this user alone, and on 127.0.0.1:8010 for holders of a token.

  token=$(fbus invite --token --call 'resize*' --name web --ttl 30d)
  curl -H "Authorization: Bearer $token" --data-binary @in.png localhost:8010/call/resize > out.png
  curl --unix-socket "$(fbus gateway socket)" http://x/call/greet --json '{"name":"Bob"}'
  fbus run --offer shout='tr a-z A-Z' -- fbus gateway --demo

socket  prints the path of the socket.

Flags:
%s`

// defaultListen is where the gateway listens if nothing else is said.
const defaultListen = "127.0.0.1:8010"

func command(ctx context.Context, words []string, stdout, stderr io.Writer) error {
	c := defaults()
	flags := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
	flags.SortFlags = false
	configFile := flags.StringP("config", "c", "", "read `FILE` (TOML); flags precede it")
	check := flags.Bool("check", false, "say what is wrong with the file and the flags, and do nothing else")
	demo := flags.Bool("demo", false, "listen on the socket alone, and print a command line that works")
	flags.StringVar(&c.Node, "node", "", "the node's `ADDR`: the path of its socket, or HOST[:PORT]")
	flags.StringArrayVar(&c.Listen, "listen", c.Listen, "where to listen for holders of a token, `HOST:PORT`; may be repeated")
	flags.StringVar(&c.Socket, "socket", "", "where to listen for this user, `PATH`; default gateway.sock in the directory of fbus's configuration")
	flags.StringVar(&c.TLSCert, "tls-cert", "", "certificate of this gateway, `FILE`")
	flags.StringVar(&c.TLSKey, "tls-key", "", "its key, `FILE`")
	proxies := flags.StringSlice("behind-proxy", nil, "serve without TLS a proxy that has it, at `ADDR`, or a network as 10.0.0.0/8")
	flags.BoolVar(&c.NoAuth, "no-auth", false, "ask for no token; only on this machine")
	flags.StringVar(&c.AccessLog, "access-log", "", "append a line of JSON for each request to `FILE`; default gateway.log in the directory of fbus's state; none writes none")
	flags.DurationVar(&c.Drain, "drain", c.Drain, "how long requests may take to finish when the gateway is told to stop, `D`")
	metricsFunctions := flags.StringArray("metrics-functions", nil, "functions that have metrics of their own, `GLOB`; may be repeated; all others are added up")
	quiet := flags.BoolP("quiet", "q", false, "no notices")
	wantHelp := flags.BoolP("help", "h", false, "show this help")
	usage := func(format string, a ...any) error {
		return args.Errorf(args.CodeUsage, format, a...).WithHint("fbus gateway --help")
	}
	if err := flags.Parse(words); err != nil {
		return usage("%v", err)
	}
	if *wantHelp {
		_, err := fmt.Fprintf(stdout, help, flags.FlagUsages())
		return err
	}
	listen, wrong := slices.Clone(c.Listen), &faults{}
	if *configFile != "" {
		var err error
		if wrong, err = c.read(*configFile); err != nil {
			return said(stderr, err)
		}
		if flags.Changed("listen") {
			c.Listen = nil // it would be added to
		}
		flags.Parse(words)           // they precede the file
		if flags.Changed("listen") { // a second Parse adds to a list
			c.Listen = listen
		}
	}
	flags.Visit(func(f *pflag.Flag) { wrong.flag(f.Name) })
	if flags.Changed("behind-proxy") {
		list, bad := parsePrefixes(*proxies, elements{})
		if c.Proxies = list; len(bad) > 0 {
			wrong.refuse("behind-proxy", -1, args.Errorf(args.CodeUsage, "%v", bad))
		}
	}
	for _, glob := range *metricsFunctions {
		if err := trust.CheckGlob(glob); err != nil {
			wrong.refuse("metrics-functions", -1, args.AsError(err, args.CodeUsage))
		}
	}
	if flags.Changed("metrics-functions") {
		c.MetricsFunctions = *metricsFunctions
	}
	own := flags.Args()
	if len(own) > 0 && (len(own) > 1 || own[0] != "socket") {
		return usage("unexpected word %q", own[0])
	}
	if *demo {
		c.Listen = nil
	}
	if len(own) == 0 {
		c.check(wrong)
	}
	if err := wrong.err(); err != nil {
		return said(stderr, err)
	}
	if c.Socket == "" {
		var err error
		if c.Socket, err = socketPath(); err != nil {
			return err
		}
	}
	if len(own) > 0 {
		_, err := fmt.Fprintln(stdout, c.Socket)
		return err
	}
	var pair *keyPair
	if c.TLSCert != "" {
		pair = &keyPair{cert: c.TLSCert, key: c.TLSKey}
		if _, err := pair.current(); err != nil {
			return err
		}
	}
	if *check {
		return nil
	}
	note := func(format string, a ...any) {
		if !*quiet {
			fmt.Fprintln(stderr, "fbus:", args.OneLine(fmt.Sprintf(format, a...)))
		}
	}
	return c.run(ctx, pair, *demo, note, stdout)
}

// said prints faults, a line each. It returns any other error.
func said(stderr io.Writer, err error) error {
	wrong, ok := errors.AsType[*faults](err)
	if !ok {
		return err
	}
	for _, line := range wrong.lines() {
		fmt.Fprintln(stderr, "fbus:", args.OneLine(line))
	}
	return companion.Status(args.StatusOf(args.CodeUsage))
}

// memoryMark is the memory use from which the collector runs more often: about what 64 connections need.
const memoryMark = 16 << 20

// run listens and serves until ctx ends.
func (c *config) run(ctx context.Context, pair *keyPair, demo bool, note func(format string, a ...any), stdout io.Writer) error {
	g := newGateway(c, note)
	g.tls = pair
	unix, err := listenUnix(c.Socket)
	if err != nil {
		return err
	}
	defer unix.Close()
	listeners := []*listener{unix}
	note("listening on %s", c.Socket)
	for _, addr := range c.Listen {
		tcp, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) && slices.Equal(c.Listen, []string{defaultListen}) {
			note("%s is in use: --listen HOST:PORT names another place", addr)
			continue
		}
		if err != nil {
			return args.Errorf(args.CodeUsage, "--listen %s: %v", addr, args.WithoutPath(err))
		}
		defer tcp.Close()
		l := c.listener(tcp)
		listeners = append(listeners, l)
		note("listening at %s", l)
	}
	if c.AccessLog == "" {
		dir, err := stateDir()
		if err != nil {
			return err
		}
		c.AccessLog = filepath.Join(dir, "gateway.log")
	}
	if filepath.Base(c.AccessLog) != "none" {
		if g.log, err = openAccessLog(c.AccessLog, note); err != nil {
			return err
		}
		defer g.log.close()
	}
	defer tuning.Start(memoryMark).Stop()
	if demo {
		go g.demo(ctx, stdout) // ends with it
	}
	return g.serve(ctx, listeners...)
}

// listener returns what is known of a TCP listener.
func (c *config) listener(tcp net.Listener) *listener {
	host := hostOf(tcp.Addr().String())
	return &listener{Listener: tcp, open: c.NoAuth, tls: c.TLSCert != "", proxies: c.Proxies, loopback: isLoopback(host)}
}

// stateDir returns the directory of what fbus writes as it runs.
func stateDir() (string, error) {
	dir := os.Getenv("FBUS_STATE")
	if dir == "" {
		var err error
		if dir, err = find.UserDir("XDG_STATE_HOME", ".local/state"); err != nil {
			return "", err
		}
	}
	return dir, os.MkdirAll(dir, 0o700)
}
