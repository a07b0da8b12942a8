package find

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"golang.org/x/sys/unix"
)

// An Identity proves this user's identity to nodes on other machines: a ticket, or the
// files of another PKI.
type Identity struct {
	Ticket    *trust.Ticket // nil with files
	Files     *trust.Files  // nil with a ticket
	Addresses []wire.Addr   // of nodes, in the order in which they are tried
	Dir       string        // where a joined network keeps it; empty: it is not renewed
	Why       string        // where it is from, for people

	latest *trust.Ticket // after the last renewal; belongs to the goroutine that renews
}

// ForTicket returns the identity of a ticket.
func ForTicket(t *trust.Ticket) *Identity {
	id := &Identity{Ticket: t, latest: t}
	for _, a := range t.Addresses {
		id.Addresses = append(id.Addresses, wire.TCP(a))
	}
	return id
}

// Config returns the TLS configuration for the node at a host. With files the node's
// certificate must name that host.
func (id *Identity) Config(host string) *tls.Config {
	if id.Files != nil {
		return id.Files.ClientConfig(host)
	}
	return id.Ticket.ClientConfig(nil)
}

func (id *Identity) explain(err error) *args.Error {
	if id.Files != nil {
		return id.Files.Explain(err, time.Time{})
	}
	return id.Ticket.Explain(err, time.Time{})
}

// Refusal returns what an error of a connection means if it is about the right to enter, and
// nil for any other, such as one of the network. A node's certificate that this side
// does not accept is no denial: another address, or a later time, may show a better one.
func (id *Identity) Refusal(err error) *args.Error {
	if id == nil || err == nil || errors.As(err, new(*args.Error)) && !trust.Refused(err) { // or a frame reported it
		return nil
	}
	e := id.explain(err)
	out := &args.Error{Code: e.Code, Message: e.Message, Hint: e.Hint, Err: e}
	switch {
	case e.Code == args.CodeReset, e.Code == args.CodeTimeout, e.Code == args.CodeTLS:
		return nil
	case e.Code == args.CodeOtherNetwork:
		out.Code = args.CodeNetwork
	case trust.Refused(err):
		out.Code, out.Err = args.CodeNotOurs, e.Err // not e, which has the code of a denial
	}
	return out
}

// Failure returns the error of a failed handshake with the node at addr.
func (id *Identity) Failure(addr wire.Addr, err error) *args.Error {
	e := id.Refusal(err)
	if e == nil {
		te := id.explain(err)
		e = &args.Error{Code: args.CodeNoNode, Message: te.Message, Hint: te.Hint, Err: te}
	}
	e.Message = addr.String() + ": " + e.Message
	return e
}

// Check refuses an invitation: it can only be exchanged, by fbus join.
func (id *Identity) Check() error {
	if id == nil || id.Ticket == nil || !id.Ticket.Joining {
		return nil
	}
	return args.Errorf(args.CodeWrongUse, "FBUS_TICKET: ticket %s is an invitation, which is exchanged once and then kept", id.Ticket.Name).
		WithHint("fbus join %s, and no FBUS_TICKET after that", TicketWord(os.Getenv("FBUS_TICKET")))
}

// Exchanged returns the next step for an invitation that was used before, if it was used
// by this user; otherwise it is empty.
func (id *Identity) Exchanged() string {
	j, err := openJoined()
	if err != nil || j == nil {
		return ""
	}
	defer j.Close()
	if j.Begun(id.Ticket) {
		return "it may have been you, and the answer was lost: fbus join " + TicketWord(os.Getenv("FBUS_TICKET"))
	}
	own, err := j.Load(id.Ticket.Network)
	if err != nil || own.Invitation != id.Ticket.Serial || !own.SameNetwork(id.Ticket) {
		return ""
	}
	return "network " + own.Network + " was joined here, as " + own.Name + ": FBUS_TICKET is no longer needed"
}

// identityFor returns the identity to dial addr with: the ticket in the environment, the
// files of a PKI, or the network that was joined. It is nil if there is none.
func identityFor(addr wire.Addr) (*Identity, error) {
	if text := os.Getenv("FBUS_TICKET"); text != "" { // a file, or the text itself
		t, err := trust.ReadTicket(text, "FBUS_TICKET")
		if err != nil {
			return nil, err
		}
		id := ForTicket(t)
		id.Why = "FBUS_TICKET"
		return id, nil
	}
	if id, err := fileIdentity(); id != nil || err != nil {
		return id, err
	}
	return joinedIdentity(addr)
}

// fileIdentity returns the identity of another PKI.
func fileIdentity() (*Identity, error) {
	cert, key, ca := os.Getenv("FBUS_TLS_CERT"), os.Getenv("FBUS_TLS_KEY"), os.Getenv("FBUS_TLS_CA")
	if cert == "" && key == "" && ca == "" {
		return nil, nil
	}
	if cert == "" || key == "" || ca == "" {
		return nil, args.Errorf(args.CodeUsage, "FBUS_TLS_CERT, FBUS_TLS_KEY and FBUS_TLS_CA go together: files with a certificate, its key, and the CA of the nodes").
			WithHint("set all three, or none and FBUS_TICKET=FILE")
	}
	if err := Readable("FBUS_TLS_CERT=", cert, "FBUS_TLS_KEY=", key, "FBUS_TLS_CA=", ca); err != nil {
		return nil, err
	}
	f, err := trust.OpenFiles(cert, key, ca, nil)
	if err != nil {
		return nil, err
	}
	return &Identity{Files: f, Why: "FBUS_TLS_CERT"}, nil
}

// Readable refuses files that cannot be read, each after the flag or variable that names it. A
// file without a name is left out.
func Readable(pairs ...string) error {
	for pair := range slices.Chunk(pairs, 2) {
		if err := unix.Access(pair[1], unix.R_OK); pair[1] != "" && err != nil {
			return args.Errorf(args.CodeUsage, "%s%s: %v", pair[0], ShownFile(pair[1], "…"), err).WithHint("is it the right file, and may you read it?")
		}
	}
	return nil
}

// openJoined opens the directory of the networks that this user has joined, nil if there
// is none yet.
func openJoined() (*trust.Joined, error) {
	dir, err := JoinedDir()
	if err != nil {
		return nil, nil
	}
	if _, err := os.Lstat(dir); err != nil { // opening it would make it
		return nil, nil
	}
	return trust.OpenJoined(dir)
}

// joinedIdentity returns the identity for the network that was joined, or of several for
// the one that has the address; nil if there is none.
func joinedIdentity(addr wire.Addr) (*Identity, error) {
	j, err := openJoined()
	if j == nil || err != nil {
		return nil, err
	}
	defer j.Close()
	networks, err := j.Networks()
	if err != nil || len(networks) == 0 {
		return nil, err
	}
	var found []*trust.Ticket
	for _, network := range networks {
		t, err := j.Load(network)
		if err != nil {
			return nil, err
		}
		if len(networks) == 1 || slices.Contains(t.Addresses, addr.String()) {
			found = append(found, t)
		}
	}
	dir, _ := JoinedDir()
	if len(found) != 1 {
		return nil, args.Errorf(args.CodeAmbiguous, "several networks were joined: %s", strings.Join(networks, " ")).
			WithHint("choose one: FBUS_TICKET=%s", args.Quote(filepath.Join(dir, networks[0]+".pem")))
	}
	id := ForTicket(found[0])
	id.Dir, id.Why = dir, "network "+found[0].Network+", which was joined"
	return id, nil
}

// NodeNetworks returns the networks of which this user may run a node that is not the first:
// they were joined with a ticket for one. With a network it looks at that one alone.
func NodeNetworks(only ...string) ([]string, error) {
	j, err := openJoined()
	if j == nil || err != nil {
		return nil, err
	}
	defer j.Close()
	networks := only
	if len(only) == 0 {
		networks, err = j.Networks()
	}
	var found []string
	for _, network := range networks {
		t, err := j.Load(network)
		switch {
		case errors.Is(err, &args.Error{Code: args.CodeNoTicket}):
		case err != nil:
			return nil, err
		case t.Server != nil:
			found = append(found, network)
		}
	}
	return found, err
}

// RenewPause is how often a connection that lasts checks whether its identity has to be
// renewed. Tests set it: they have no hour.
var RenewPause = time.Hour

// Renew asks the node for a new certificate in the last third of the identity's life,
// and keeps it. ask sends a signing request and returns the certificate. A failure does
// no harm: there are months left, and the next connection tries again.
func (id *Identity) Renew(ctx context.Context, ask func(ctx context.Context, request []byte) ([]byte, error)) {
	if id == nil || id.Dir == "" || !id.latest.RenewalDue(trust.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := id.latest.Request()
	if err != nil {
		return
	}
	cert, err := ask(ctx, request)
	if err != nil {
		return
	}
	next, err := id.latest.WithCertificate(cert)
	if err != nil {
		return
	}
	j, err := trust.OpenJoined(id.Dir)
	if err != nil {
		return
	}
	defer j.Close()
	if j.Save(next) == nil {
		id.latest = next
	}
}

// TicketWord returns a ticket's file as a word for a command line, FILE if there is no such
// file: then the word may be the ticket itself.
func TicketWord(ticket string) string {
	if _, err := os.Lstat(ticket); err != nil || ticket == "-" {
		return "FILE"
	}
	return args.Quote(ticket)
}

// ShownFile returns the name of a file for a message, or instead if it may be a key or a ticket
// in the place of a name: those have more lines, or are longer than most names.
func ShownFile(name, instead string) string {
	if _, err := os.Lstat(name); err == nil || len(name) <= 100 && !strings.ContainsAny(name, "\r\n") {
		return args.Shown(name)
	}
	return instead
}

// HomeDir returns the directory of configuration and keys: FBUS_HOME, or fbus in the
// user's configuration directory.
func HomeDir() (string, error) {
	if dir := os.Getenv("FBUS_HOME"); dir != "" {
		return dir, nil
	}
	return UserDir("XDG_CONFIG_HOME", ".config")
}

// UserDir returns fbus in the directory that a variable of the XDG base directory specification
// names; by default it is below the home directory. That must exist: for users of services it
// may be one, as /nonexistent, that must never be made.
func UserDir(variable, below string) (string, error) {
	home, dir := os.Getenv("HOME"), os.Getenv(variable)
	if !filepath.IsAbs(dir) {
		if home == "" {
			return "", errors.New("HOME is not set")
		}
		dir = filepath.Join(home, below)
	}
	if home != "" && strings.HasPrefix(dir, filepath.Clean(home)+"/") {
		if st, err := os.Stat(home); err != nil || !st.IsDir() {
			return "", fmt.Errorf("HOME=%s is not a directory", home)
		}
	}
	return filepath.Join(dir, "fbus"), nil
}

// JoinedDir returns the directory of the identities of joined networks.
func JoinedDir() (string, error) {
	home, err := HomeDir()
	return filepath.Join(home, "joined"), err
}
