package trust

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
)

// Ticket admits its holder to a network. It is an invitation, a reusable ticket, or the
// identity that replaced an invitation. As text it is a PEM bundle: lines for people,
// then its certificate, its key and the CA's certificate. Stock TLS libraries expect
// that order in a combined file. A ticket is as secret as its key.
type Ticket struct {
	Network string
	Name    string
	Rights  Rights // of an invitation: known to the issuer, not to the reader
	Joining bool   // an invitation: it must be exchanged first
	Serial  string
	Issued  time.Time // of a parsed ticket: the start of its validity
	Expires time.Time

	Addresses  []string // host:port to dial, in this order: hints, which may have been edited
	Invitation string   // of a joined identity: the serial of the invitation, a hint too

	Node bool // of an invitation: for a second node; a hint too

	// Of an invitation, known to the issuer, not to the reader.
	Uses      int  // how many may join with it, if more than one
	Ephemeral bool // identities go when they were disconnected for EphemeralTime

	CA     *x509.Certificate
	Leaf   *x509.Certificate
	Server *x509.Certificate // of a second node: for the same key, what it is as a node; else nil
	Key    crypto.Signer
}

const forNode = ", for a node" // in the line use

// Format encodes a ticket as text.
func (t *Ticket) Format() ([]byte, error) {
	secret, err := keyPEM(t.Key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("fbus ticket\nKeep it secret: anybody who has this text may use it.\n\n")
	line := func(key, value string) { fmt.Fprintf(&b, "%s: %s\n", key, value) }
	line("network", t.Network)
	line("name", t.Name)
	if !t.Joining || !t.Rights.Empty() {
		line("rights", t.Rights.String())
	}
	if t.Joining {
		uses, then := "once", "the member keeps these rights until "
		if t.Uses > 1 {
			uses, then = fmt.Sprintf("up to %d times", t.Uses), "each member keeps these rights until "
		}
		if t.Ephemeral {
			then += "it was disconnected for an hour, or "
		}
		then += "the ticket is revoked"
		if t.Node {
			uses += forNode
		}
		line("use", uses+": fbus join FILE")
		line("then", then)
	} else if t.Server != nil {
		line("use", "fbus serve, as a node of the network; FBUS_TICKET=FILE for its companions")
	} else {
		line("use", "FBUS_TICKET=FILE, or with any TLS 1.3 library")
	}
	line("expires", stamp(t.Expires))
	line("serial", t.Serial)
	line("server name", ServerName(t.Network))
	if t.Invitation != "" {
		line("invitation", t.Invitation)
	}
	for _, addr := range t.Addresses {
		line("address", addr)
	}
	b.WriteByte('\n')
	b.Write(certPEM(t.Leaf.Raw))
	b.Write(secret)
	b.Write(certPEM(t.CA.Raw))
	if t.Server != nil {
		b.Write(certPEM(t.Server.Raw))
	}
	return b.Bytes(), nil
}

// ParseTicket parses a ticket's text, also as one line: in base64, or with \n for each line
// end. Everything but the addresses comes from the certificates. It does not check the
// validity period.
func ParseTicket(text []byte) (*Ticket, error) {
	text = unpack(text)
	certs, key, err := parseBundle(text)
	if err != nil {
		return nil, errorf(args.CodeBadTicket, "not a ticket: %v", err)
	}
	if len(certs) == 0 && key == nil {
		return nil, errorf(args.CodeBadTicket, "not a ticket: it has no PEM block").WithHint("fbus invite makes tickets")
	}
	if key == nil {
		return nil, errorf(args.CodeBadTicket, "the ticket has no key").WithHint("was it cut short? a ticket is used with all of its text")
	}
	t := &Ticket{Key: key}
	for _, c := range certs {
		switch {
		case c.IsCA && t.CA != nil:
			return nil, errorf(args.CodeBadTicket, "the ticket has two CAs").WithHint("a file holds one ticket")
		case c.IsCA:
			t.CA = c
		case t.Leaf != nil && t.Server == nil && onlyUse(c, serverUse):
			t.Server = c
		case t.Leaf != nil && (issued(t.Leaf, c) || issued(c, t.Leaf)):
			return nil, errorf(args.CodeWrongUse, "the ticket's certificate was not signed by a CA").WithHint("ask for a new ticket")
		case t.Leaf != nil:
			return nil, errorf(args.CodeBadTicket, "the ticket has two certificates besides the CA's").WithHint("a file holds one ticket")
		default:
			t.Leaf = c
		}
	}
	if t.CA == nil || t.Leaf == nil {
		return nil, errorf(args.CodeBadTicket, "the ticket must have two certificates: its own and the CA's").WithHint("was it cut short? a ticket is used with all of its text")
	}
	if err := t.fill(); err != nil {
		return nil, err
	}
	for _, l := range comment(text) {
		t.Node = t.Node || t.Joining && strings.HasPrefix(l, "use:") && strings.Contains(l, forNode+":")
		if serial, ok := strings.CutPrefix(strings.TrimSpace(l), "invitation:"); ok && isSerial(strings.TrimSpace(serial)) {
			t.Invitation = strings.TrimSpace(serial)
		}
		addr, ok := strings.CutPrefix(strings.TrimSpace(l), "address:")
		addr = strings.TrimSpace(addr)
		if ok && checkAddress(addr) == nil && len(t.Addresses) < maxAddresses {
			t.Addresses = append(t.Addresses, addr)
		}
	}
	return t, nil
}

// fill copies the certificates' contents, and checks that the parts belong together.
func (t *Ticket) fill() error {
	t.Network = t.CA.Subject.CommonName
	if err := args.CheckNetwork(t.Network); err != nil {
		return errorf(args.CodeBadTicket, "its CA is not the CA of a network: %v", err)
	}
	if pub, ok := t.Key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(t.Leaf.PublicKey) {
		return errorf(args.CodeBadTicket, "the ticket's key is not that of its certificate")
	}
	if t.Leaf.CheckSignatureFrom(t.CA) != nil || !isCA(t.CA) {
		return errorf(args.CodeBadTicket, "the ticket's certificate was signed by the CA of %q, not by the CA in the ticket, of %q", args.Shown(t.Leaf.Issuer.CommonName), args.Shown(t.CA.Subject.CommonName))
	}
	if !onlyUse(t.Leaf, clientUse) {
		return errorf(args.CodeWrongUse, "the ticket's certificate is not for clients")
	}
	if s := t.Server; s != nil && (s.CheckSignatureFrom(t.CA) != nil || s.VerifyHostname(ServerName(t.Network)) != nil || !bytes.Equal(s.RawSubjectPublicKeyInfo, t.Leaf.RawSubjectPublicKeyInfo)) {
		return errorf(args.CodeBadTicket, "the certificate for a node in it is of another network, or for another key")
	}
	n, err := parseNames(t.Leaf.URIs)
	if err != nil {
		return errorf(args.CodeBadTicket, "the ticket's certificate is not a ticket's: %v", err)
	}
	t.Name, t.Rights, t.Joining = n.name, n.rights, n.join
	t.Serial = serialText(t.Leaf.SerialNumber)
	t.Issued, t.Expires = t.Leaf.NotBefore, t.Leaf.NotAfter
	return nil
}

// IsTicketText reports whether a text is a ticket or a part of one, and so a secret.
func IsTicketText(text string) bool { return bytes.Contains(unpack([]byte(text)), pemBegin) }

// ReadTicket reads a ticket from a file or from the text itself, since FBUS_TICKET may
// hold either. source names the variable or operand in an error. An error does not contain
// a text that is neither: it may be a ticket that was damaged, and so a secret.
func ReadTicket(fileOrText, source string) (*Ticket, error) {
	text := []byte(fileOrText)
	if !IsTicketText(fileOrText) {
		if wellFormedToken(strings.TrimSpace(fileOrText)) {
			return nil, errorf(args.CodeBadTicket, "%s is a token, not a ticket", source).WithHint("a token is sent to a gateway; fbus invite without --token makes a ticket")
		}
		if _, err := os.Lstat(fileOrText); err != nil {
			why := ""
			if errors.Is(err, os.ErrPermission) {
				why = ": permission denied"
			}
			return nil, errorf(args.CodeBadTicket, "%s is neither a file nor a ticket%s", source, why).WithHint("fbus invite makes tickets")
		}
		var err error
		if text, _, err = readBounded(fileOrText); err != nil {
			return nil, err
		}
		source = fileOrText
	}
	t, err := ParseTicket(text)
	if err != nil {
		e := *err.(*args.Error)
		e.Message = source + ": " + e.Message
		return nil, &e
	}
	return t, nil
}

// SameNetwork reports whether two tickets are of the same network: of the same CA, not only
// of the same name.
func (t *Ticket) SameNetwork(other *Ticket) bool { return sameCA(t.CA, other.CA) }

// RenewalDue reports whether an identity needs renewal: less than a third of its life is
// left.
func (t *Ticket) RenewalDue(now time.Time) bool {
	return !t.Joining && t.Leaf.NotAfter.Sub(t.Leaf.NotBefore) >= IdentityLife && renewalDue(t.Leaf.NotAfter, now)
}

// Request returns a PKCS#10 request (PEM) for the ticket's own key, to renew it.
func (t *Ticket) Request() ([]byte, error) { return makeRequest(t.Key) }

// WithCertificate returns the ticket with another certificate (PEM) for the same key, as
// Exchange and Renew return it, and with that certificate's rights. A second node's
// certificate as a node may follow, and a later certificate of the same CA: they replace
// the ticket's.
func (t *Ticket) WithCertificate(cert []byte) (*Ticket, error) {
	certs, key, err := parseBundle(cert)
	if err != nil {
		return nil, errorf(args.CodeBadTicket, "the node's answer is not a certificate: %v", err)
	}
	next := &Ticket{CA: t.CA, Key: t.Key, Server: t.Server, Addresses: slices.Clone(t.Addresses), Invitation: t.Invitation}
	if len(certs) > 1 && onlyUse(certs[1], serverUse) {
		next.Server = certs[1]
		certs = slices.Delete(certs, 1, 2)
	}
	if len(certs) == 2 && sameCA(certs[1], t.CA) {
		if certs[1].NotAfter.After(t.CA.NotAfter) {
			next.CA = certs[1]
		}
		certs = certs[:1]
	}
	if len(certs) != 1 || key != nil {
		return nil, errorf(args.CodeBadTicket, "the node's answer is not one certificate without a key")
	}
	next.Leaf = certs[0]
	if err := next.fill(); err != nil {
		return nil, err
	}
	if next.Joining {
		return nil, errorf(args.CodeBadTicket, "the node's answer is another invitation")
	}
	return next, nil
}

// certificate converts the ticket for crypto/tls.
func (t *Ticket) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{t.Leaf.Raw}, PrivateKey: t.Key, Leaf: t.Leaf}
}

// A bearer token lets a program without TLS certificates use the bus through a relay, which asks
// the node about it. Its text is fbus_ and, in base64url without padding, 32 random bytes and
// their CRC-32 (IEEE, big-endian). The list has its SHA-256 alone.
const tokenBytes = 32

// newToken returns the text of a new token.
func newToken() string {
	var p [tokenBytes]byte
	rand.Read(p[:]) // never fails
	return args.TokenPrefix + base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(p[:], crc32.ChecksumIEEE(p[:])))
}

// wellFormedToken reports whether a text can be a token, by its checksum.
func wellFormedToken(text string) bool {
	code, ok := strings.CutPrefix(text, args.TokenPrefix)
	p, err := base64.RawURLEncoding.DecodeString(code)
	return ok && err == nil && len(p) == tokenBytes+4 && binary.BigEndian.Uint32(p[tokenBytes:]) == crc32.ChecksumIEEE(p[:tokenBytes])
}

// tokenNamed begins the name of a token's bearer, and the key of its name in the index.
const tokenNamed = "token:"

func hashToken(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// IssueToken creates a bearer token, and returns its text, which is kept nowhere, and its record.
// It is [Authority.Issue] in all else.
func (a *Authority) IssueToken(by string, q Request) (token string, r Record, err error) {
	q.token = true
	if err := a.checkRequest(&q); err != nil {
		return "", r, err
	}
	if err := a.checkClock(); err != nil {
		return "", r, err
	}
	token = newToken()
	now := a.now().UTC().Truncate(time.Second)
	r = newRecord(&q, hashToken(token), now, a.root.Load().ca.NotAfter)
	if err := a.list.update(func(t *table) (bool, error) { return true, t.issue(r, by, now) }); err != nil {
		return "", r, err
	}
	return token, r, nil
}

// checkToken refuses what is for tickets alone. The bearer of a token has no connection to the node. A
// relay must not offer, relay or administer for them.
func (q *Request) checkToken() error {
	switch {
	case q.Reusable, q.Uses > 0, q.Ephemeral:
		return errorf(args.CodeBadRight, "a token is used as it is: nobody joins with it")
	case len(q.Addresses) > 0:
		return errorf(args.CodeBadRight, "a token is used through a relay: it has no addresses")
	case q.Rights.Admin, q.Rights.Relay, len(q.Rights.Offer) > 0:
		return errorf(args.CodeBadRight, "a token cannot allow to offer, to administer or to relay").WithHint("use a ticket for that; a token has --call GLOB and --monitor")
	}
	return nil
}

// Token returns the record of a token that a relay presents, or an error with the reason for its
// refusal. The look-up is by its SHA-256: its time tells nothing about other tokens. The list
// records from, the relay's address.
func (a *Authority) Token(text, from string) (*Record, error) {
	t, err := a.list.load()
	if err != nil {
		return nil, err
	}
	serial, ok := t.tokens[hashToken(text)]
	switch {
	case !ok && !wellFormedToken(text):
		return nil, errorf(args.CodeUnlisted, "this is not a token").WithHint("was it cut short? it is %s and 48 letters, digits, - or _", args.TokenPrefix)
	case !ok:
		return nil, errorf(args.CodeUnlisted, "the token is not on the list of this network").WithHint("ask for a new one")
	}
	r, err := t.state(serial)
	if err != nil {
		return nil, err
	}
	if now := a.now(); now.After(r.Expires) {
		return nil, expired(r.what(), r.Expires, now)
	}
	a.list.saw(serial, from)
	return r, nil
}

// TokenNamed returns the record of the valid token of that name, or an error with the reason why there
// is none. It does not wait for the disk.
func (a *Authority) TokenNamed(name string) (*Record, error) {
	t := a.list.current.Load()
	serial := ""
	if t != nil {
		serial = t.tokens[tokenNamed+name]
	}
	if serial == "" {
		return nil, errorf(args.CodeUnlisted, "there is no token %s on the list of this network", args.Shown(name))
	}
	r, err := t.state(serial)
	if now := a.now(); err == nil && now.After(r.Expires) {
		err = expired(r.what(), r.Expires, now)
	}
	return r, err
}

// TokenExpired reports whether a token has expired between two times.
func (a *Authority) TokenExpired(from, to time.Time) bool {
	if t := a.list.current.Load(); t != nil {
		for i := range t.records {
			if r := &t.records[i]; r.Kind == Token && r.Expires.After(from) && !r.Expires.After(to) {
				return true
			}
		}
	}
	return false
}
