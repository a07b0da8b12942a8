package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"golang.org/x/sys/unix"
)

// identity is what nodes on other machines are dialled with.
type identity struct {
	creds  *bus.Credentials
	ticket *trust.Ticket // nil with one's own PKI
	joined string        // the directory that it is kept in; empty: not ours to renew
	why    string
}

// identityFor is the identity to dial addr with, empty for wherever the ticket
// says: the ticket in the environment, the files of a PKI, a network that was
// joined. It is nil if there is none.
func identityFor(addr string) (*identity, error) {
	if text := os.Getenv("FBUS_TICKET"); text != "" {
		return ticketIdentity(text)
	}
	if id, err := fileIdentity(); id != nil || err != nil {
		return id, err
	}
	return joinedIdentity(addr)
}

// ticketIdentity is that of FBUS_TICKET: a file, or the text itself.
func ticketIdentity(fileOrText string) (*identity, error) {
	t, err := trust.ReadTicket(fileOrText)
	if err != nil {
		return nil, err
	}
	return &identity{creds: bus.TicketCredentials(t), ticket: t, why: "FBUS_TICKET"}, nil
}

// check refuses an identity that nothing but fbus join is for.
func (id *identity) check() error {
	if id == nil || id.ticket == nil || !id.ticket.Joining {
		return nil
	}
	return &args.Error{Code: args.CodeWrongUse,
		Message: fmt.Sprintf("FBUS_TICKET: ticket %s is an invitation, which is exchanged once and then kept", id.ticket.Name), Hint: "fbus join " + orFile(os.Getenv("FBUS_TICKET")) + ", and no FBUS_TICKET after that"}
}

// exchanged is the next step for an invitation that was used already, if it was used
// here; else it is empty.
func (id *identity) exchanged() string {
	dir, err := joinedDir()
	if err != nil {
		return ""
	}
	if _, err := os.Lstat(dir); err != nil { // opening it would make it
		return ""
	}
	j, err := trust.OpenJoined(dir)
	if err != nil {
		return ""
	}
	defer j.Close()
	if j.Begun(id.ticket) {
		return "it may have been you, and the answer was lost: fbus join " + orFile(os.Getenv("FBUS_TICKET"))
	}
	own, err := j.Load(id.ticket.Network)
	if err != nil || own.Name != id.ticket.Name || !own.CA.Equal(id.ticket.CA) {
		return ""
	}
	return fmt.Sprintf("network %s was joined here, as %s: no FBUS_TICKET is due any more", own.Network, own.Name)
}

// fileIdentity is that of somebody's own PKI.
func fileIdentity() (*identity, error) {
	cert, key, ca := os.Getenv("FBUS_TLS_CERT"), os.Getenv("FBUS_TLS_KEY"), os.Getenv("FBUS_TLS_CA")
	if cert == "" && key == "" && ca == "" {
		return nil, nil
	}
	if cert == "" || key == "" || ca == "" {
		return nil, usage("FBUS_TLS_CERT, FBUS_TLS_KEY and FBUS_TLS_CA go together: files with a certificate, its key, and the CA of the nodes").
			WithHint("set all three, or none and FBUS_TICKET=FILE")
	}
	if err := readable("FBUS_TLS_CERT=", cert, "FBUS_TLS_KEY=", key, "FBUS_TLS_CA=", ca); err != nil {
		return nil, err
	}
	f, err := trust.OpenFiles(cert, key, ca, nil)
	if err != nil {
		return nil, err
	}
	return &identity{creds: bus.FileCredentials(f), why: "FBUS_TLS_CERT"}, nil
}

// readable refuses files that can not be read, each behind the flag or variable that names it.
func readable(pairs ...string) error {
	for pair := range slices.Chunk(pairs, 2) {
		if err := unix.Access(pair[1], unix.R_OK); err != nil {
			return usage("%s%s: %v", pair[0], pair[1], err).WithHint("is it the right file, and may you read it?")
		}
	}
	return nil
}

// joinedDir is where the identities of joined networks are.
func joinedDir() (string, error) {
	home, err := homeDir()
	return filepath.Join(home, "joined"), err
}

// joinedIdentity is that of the network that was joined; of several, of the one
// that has the address.
func joinedIdentity(addr string) (*identity, error) {
	dir, err := joinedDir()
	if err != nil {
		return nil, nil
	}
	if _, err := os.Lstat(dir); err != nil {
		return nil, nil
	}
	j, err := trust.OpenJoined(dir)
	if err != nil {
		return nil, err
	}
	defer j.Close()
	networks, err := j.Networks()
	if err != nil || len(networks) == 0 {
		return nil, err
	}
	if len(networks) > 1 {
		if networks, err = withAddress(j, networks, addr); err != nil {
			return nil, err
		}
	}
	t, err := j.Load(networks[0])
	if err != nil {
		return nil, err
	}
	return &identity{creds: bus.TicketCredentials(t), ticket: t, joined: dir, why: "network " + t.Network + ", which was joined"}, nil
}

// withAddress is the one network of several that has the address.
func withAddress(j *trust.Joined, networks []string, addr string) ([]string, error) {
	var found []string
	for _, id := range networks {
		t, err := j.Load(id)
		if err != nil {
			return nil, err
		}
		if addr != "" && slices.Contains(t.Addresses, wire.WithPort(addr)) {
			found = append(found, id)
		}
	}
	if len(found) == 1 {
		return found, nil
	}
	dir, _ := joinedDir()
	return nil, &args.Error{Code: args.CodeAmbiguous, Message: "several networks were joined: " + strings.Join(networks, " "),
		Hint: "choose one: FBUS_TICKET=" + quoteWord(filepath.Join(dir, networks[0]+".pem"))}
}

// renew asks the node for a new certificate in the last third of an identity's
// life. That it fails is no harm yet: there are months left.
func (id *identity) renew(ctx context.Context, c *bus.Client) {
	if id == nil || id.joined == "" || !id.ticket.RenewalDue(trust.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	next, err := renewed(ctx, c, id.ticket)
	if err != nil {
		return
	}
	j, err := trust.OpenJoined(id.joined)
	if err != nil {
		return
	}
	defer j.Close()
	if j.Save(next) == nil {
		id.ticket = next
	}
}

// renewPause is how often a connection that lasts looks whether its identity is to
// be renewed; a test has no hour.
var renewPause = time.Hour

// keep renews the identity of a connection that lasts for months, until it ends. The
// node then lets it last as long as the new certificate.
func (id *identity) keep(c *bus.Client, pause time.Duration) {
	if id.joined == "" {
		return
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-c.Done():
			return
		case <-tick.C:
			id.renew(context.Background(), c)
		}
	}
}

// renewed is the ticket with the certificate that the node gives for it.
func renewed(ctx context.Context, c *bus.Client, t *trust.Ticket) (*trust.Ticket, error) {
	request, err := t.Request()
	if err != nil {
		return nil, err
	}
	cert, err := output(ctx, c, "fbus.renew", args.List(string(request)))
	if err != nil {
		return nil, err
	}
	return t.WithCertificate(cert)
}

// asDenied makes what is wrong with an identity an error of dialling with it.
func asDenied(err error) error {
	var te *trust.Error
	if errors.As(err, &te) && !errors.As(err, new(*args.Error)) {
		return &args.Error{Code: te.Code, Message: te.Message, Err: te}
	}
	return err
}

// mayDo is what somebody may do, for people: may …
func mayDo(r *trust.Rights) string {
	switch {
	case r == nil:
		return "do everything"
	case r.Empty():
		return "do nothing"
	case r.Admin:
		without := *r
		without.Admin = false
		return strings.TrimPrefix(mayDo(&without)+", administer the node", "do nothing, ")
	}
	return r.String()
}

// orFile is a ticket's file as a word, whatever the ticket came from.
func orFile(ticket string) string {
	if ticket == "" || ticket == "-" || strings.Contains(ticket, "-----BEGIN ") {
		return "FILE"
	}
	return quoteWords([]string{ticket})
}
