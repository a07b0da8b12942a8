package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
)

// printConfig prints the configuration of a nats-server that admits the meshes of this network
// by their tickets, and writes the files that it names.
func (o *options) printConfig(ctx context.Context, stdout io.Writer) error {
	cr, err := o.find(ctx)
	if err != nil {
		return err
	}
	if cr == nil {
		return args.Errorf(args.CodeNoCertificate, "%v, and so there is no certificate for a server", errNone).
			WithHint("run it beside the network's first node, as its user; the node has to listen on TCP")
	}
	second, err := cr.second()
	if err != nil {
		return err
	}
	defer second.Close()
	names, err := o.relays(ctx)
	if err != nil {
		return err
	}
	dir := filepath.Join(filepath.Dir(cr.dir), "mesh") // not among the tickets of a node that has joined
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cert, key, ca, err := writeFiles(dir, second.Ticket())
	if err != nil {
		return err
	}
	list := `["` + strings.Join(subjects(cr.net, o.cfg.NATSService), `", "`) + `"]`
	w := bufio.NewWriter(stdout)
	fmt.Fprintf(w, "# For nats-server 2.14.2 or later. The certificate lasts until %s: run fbus mesh\n", second.Ticket().Server.NotAfter.Format("2006-01-02"))
	fmt.Fprintf(w, "# config again before that, and when tickets were made or revoked, and then\n# nats-server --signal reload.\n")
	fmt.Fprintf(w, "listen: %s\nping_interval: 5s # so that a dead link to another server is found soon\n", o.listen)
	fmt.Fprintf(w, "tls {\n  cert_file: %s\n  key_file: %s\n  ca_file: %s\n  verify_and_map: true\n  timeout: 5\n}\n", quoted(cert), quoted(key), quoted(ca))
	fmt.Fprintf(w, "authorization {\n  users: [\n")
	for _, name := range names {
		fmt.Fprintf(w, "    { user: %q, permissions: { publish: %s, subscribe: %s } }\n", "fbus:name:"+name, list, list)
	}
	fmt.Fprintf(w, "  ]\n}\n")
	return w.Flush()
}

func quoted(path string) string { return strconv.Quote(path) }

// relays returns the names of the valid tickets with the right relay.
func (o *options) relays(ctx context.Context) ([]string, error) {
	node, _, err := o.cfg.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	text, err := output(ctx, node, "fbus.tickets", bus.Args{})
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range bytes.Lines(text) {
		var t bus.TicketInfo
		if err := json.Unmarshal(line, &t); err != nil {
			return nil, err
		}
		if t.State == trust.Active && t.Expires.After(trust.Now()) && t.Rights.Relay && !slices.Contains(names, t.Name) {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// writeFiles writes the certificate of a server, its key, and the CA.
func writeFiles(dir string, t *trust.Ticket) (cert, key, ca string, err error) {
	secret, err := x509.MarshalPKCS8PrivateKey(t.Key)
	if err != nil {
		return "", "", "", err
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, t.Network+"-nats-"+name+".pem")
		if werr := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); werr != nil {
			err = werr
		} else if werr := os.Rename(path+".new", path); werr != nil {
			err = werr
		}
		return path
	}
	cert, key, ca = write("cert", "CERTIFICATE", t.Server.Raw), write("key", "PRIVATE KEY", secret), write("ca", "CERTIFICATE", t.CA.Raw)
	return cert, key, ca, err
}
