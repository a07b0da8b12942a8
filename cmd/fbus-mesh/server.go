package main

import (
	"context"
	"net"
	"strconv"
	"time"

	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
)

// serve is a NATS server, until ctx ends.
func serve(ctx context.Context, listen string, note func(format string, a ...any)) error {
	s, err := startServer(listen)
	if err != nil {
		return err
	}
	defer stopServer(s)
	note("NATS server listens at %s", s.ClientURL())
	<-ctx.Done()
	return nil
}

// startServer starts a NATS server without authentication. It is for this machine only.
func startServer(listen string) (*server.Server, error) {
	host, port, err := net.SplitHostPort(listen)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		return nil, args.Errorf(args.CodeUsage, "--listen %s: it must be HOST:PORT", listen)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, args.Errorf(args.CodeUsage, "--listen %s: without authentication the server may only listen on this machine", listen).
			WithHint("fbus mesh server --listen 127.0.0.1:%d", n)
	}
	o := &server.Options{Host: host, Port: int(n), NoSigs: true, NoLog: true}
	if n == 0 {
		o.Port = server.RANDOM_PORT
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, err
	}
	probe, err := net.Listen("tcp", listen) // the server would end the process
	if err != nil {
		return nil, args.Errorf(args.CodeUsage, "--listen %s: %v", listen, err)
	}
	probe.Close()
	go s.Start() // ends with the server
	if !s.ReadyForConnections(10 * time.Second) {
		stopServer(s)
		return nil, args.Errorf(args.CodeInternal, "the NATS server at %s has not started", listen)
	}
	return s, nil
}

func stopServer(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}
