package trust

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
)

// Validity periods of a ticket.
const (
	DefaultTTL         = 24 * time.Hour      // of an invitation, which is passed on soon
	DefaultReusableTTL = 30 * 24 * time.Hour // of a reusable ticket
	MinTTL             = time.Minute
	maxAddresses       = 16

	// absentGrace is how long a node runs before it removes an ephemeral identity: while it was
	// down nobody could be connected.
	absentGrace = 10 * time.Minute
	// EphemeralTime is how long an ephemeral identity may be disconnected.
	EphemeralTime = time.Hour
)

// Request describes the ticket to issue.
type Request struct {
	Name      string // default: made from the serial
	Rights    Rights
	TTL       time.Duration // default DefaultTTL or DefaultReusableTTL
	Reusable  bool          // carries its own rights, for any number of users
	Uses      int           // how many may join with an invitation; default 1
	Ephemeral bool          // identities go when they were disconnected for EphemeralTime
	Node      bool          // for a second node, which has the rights of NodeRights
	Mesh      bool          // with Node: not for a node, but for the mesh of this one
	Addresses []string      // host:port of the node, a hint for the joiner
	Through   string        // the serial of the second node that the issuer asked, if one was
	token     bool          // not a ticket: see IssueToken
}

// LocalUser is the issuer of tickets that a user of the node's machine requests.
const LocalUser = "local"

// Issue creates a ticket. Before it returns, the ticket is in the list and the list is
// on the disk. by is LocalUser or the serial of the requesting ticket. If that ticket is
// unlisted, revoked or expired at the moment of the change, Issue fails. An issuer that
// expires later does not void its tickets.
func (a *Authority) Issue(by string, q Request) (*Ticket, error) {
	if err := a.checkRequest(&q); err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	hash, err := keyHash(key.Public())
	if err != nil {
		return nil, err
	}
	if err := a.checkClock(); err != nil {
		return nil, err
	}
	now, ca := a.now().UTC().Truncate(time.Second), a.root.Load().ca
	r := newRecord(&q, hash, now, ca.NotAfter)
	cert, err := a.signClient(ca, &r, !r.Reusable, key.Public())
	if err != nil {
		return nil, err
	}
	if err := a.list.update(func(t *table) (bool, error) { return true, t.issue(r, by, now) }); err != nil {
		return nil, err
	}
	return &Ticket{
		Network: a.network, Name: r.Name, Rights: r.Rights, Joining: !r.Reusable, Serial: r.Serial,
		Issued: now, Expires: r.Expires, Addresses: q.Addresses, CA: ca, Leaf: cert, Key: key,
		Uses: r.Uses, Ephemeral: r.Ephemeral, Node: r.Node,
	}, nil
}

// newRecord returns the record of what is issued now, by a CA that ends at end.
func newRecord(q *Request, hash string, now, end time.Time) Record {
	r := Record{
		Serial: newSerial(), Name: q.Name, Rights: q.Rights, State: Invited, Reusable: q.Reusable,
		Issued: now, Expires: earlier(now.Add(q.TTL), end), Key: hash, Ephemeral: q.Ephemeral, Node: q.Node, Mesh: q.Mesh, Through: q.Through,
	}
	if q.Uses > 1 {
		r.Uses = q.Uses
	}
	if q.token {
		r.Kind = Token
	}
	if q.Reusable || q.token {
		r.State = Active
	}
	if r.Name == "" {
		r.Name = r.kind() + "-" + r.Serial[:8]
	}
	return r
}

func (a *Authority) checkRequest(q *Request) error {
	if q.Name != "" {
		if err := CheckName(q.Name); err != nil {
			return err
		}
	}
	switch {
	case q.Uses < 0 || q.Uses > maxLive:
		return errorf(args.CodeBadRight, "a ticket must be for 1 to %d uses, not %d", maxLive, q.Uses)
	case q.Uses > 0 && q.Reusable:
		return errorf(args.CodeBadRight, "a reusable ticket is not joined with: it has no number of uses")
	case q.Ephemeral && q.Reusable:
		return errorf(args.CodeBadRight, "a reusable ticket is no identity that could be ephemeral")
	case q.Node && (q.Reusable || q.Uses > 1 || q.Ephemeral):
		return errorf(args.CodeBadRight, "a ticket for a node is for one machine that stays: it cannot be reusable, ephemeral or for several uses")
	case q.Mesh && !q.Node:
		return errorf(args.CodeBadRight, "a ticket for a mesh has to be one for a node")
	case q.Node && !q.Rights.Empty() && !q.Rights.Equal(Rights{Admin: true}):
		return errorf(args.CodeBadRight, "a ticket for a node has its rights: %s; only admin can be added", NodeRights(false))
	case q.Uses > 1 && q.Name != "":
		if err := CheckName(identityName(q.Name, q.Uses)); err != nil {
			return errorf(args.CodeBadRight, "the name %q leaves no room for numbers of identities", args.Shown(q.Name)).WithHint("use a shorter name")
		}
	}
	if q.Node {
		q.Rights = NodeRights(q.Rights.Admin)
	}
	if q.token {
		if err := q.checkToken(); err != nil {
			return err
		}
	}
	if q.Rights.Empty() {
		if q.token {
			return errorf(args.CodeBadRight, "the token would allow nothing").WithHint("use --call GLOB or --monitor")
		}
		return errorf(args.CodeBadRight, "the ticket would allow nothing").WithHint("use --call GLOB, --offer GLOB, --monitor, --relay or --admin")
	}
	if err := q.Rights.Check(); err != nil {
		return err
	}
	if q.TTL == 0 && (q.Reusable || q.token) {
		q.TTL = DefaultReusableTTL
	} else if q.TTL == 0 {
		q.TTL = DefaultTTL
	}
	if q.TTL < MinTTL {
		return errorf(args.CodeBadRight, "a ticket must be valid for at least 1m, not %s", q.TTL)
	}
	if q.TTL > caLife {
		return errorf(args.CodeBadRight, "a ticket for %s would outlive the network's CA", q.TTL).WithHint("a year is 365d")
	}
	if len(q.Addresses) > maxAddresses {
		return errorf(args.CodeBadRight, "%d addresses exceed the limit of %d", len(q.Addresses), maxAddresses)
	}
	for _, addr := range q.Addresses {
		if err := checkAddress(addr); err != nil {
			return err
		}
	}
	return nil
}

// checkAddress accepts host:port, and rejects text that could pass for a separate line.
func checkAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" || len(addr) > 300 || strings.ContainsFunc(addr, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errorf(args.CodeBadRight, "invalid address %q", args.Shown(addr)).WithHint("an address is HOST:PORT, with an IPv6 address in brackets: [2001:db8::1]:10101")
	}
	return args.CheckNoToken("address", addr)
}

// issue adds a record that by requests. Its name must be free.
func (t *table) issue(r Record, by string, now time.Time) error {
	if by != LocalUser {
		issuer, err := t.issuer(by, now)
		if err != nil {
			return err
		}
		r.IssuedBy = issuer.Serial
	}
	if r.Through != "" {
		through, err := t.issuer(r.Through, now)
		if err != nil {
			return err
		}
		r.Through = through.Serial
	}
	if t.get(r.Serial) != nil {
		return errorf(args.CodeStorage, "the serial %s was made twice", r.Serial)
	}
	if err := t.room(&r, now); err != nil {
		return err
	}
	if others := t.named(r.Name, now); len(others) > 0 {
		return errorf(args.CodeNameTaken, "%s exists already, until %s", others[0].what(), stamp(others[0].Expires)).
			WithHint("choose another name, or revoke it first: fbus revoke %s", r.Name)
	}
	t.add(r)
	return nil
}

// issuer returns the latest record of a serial that may have tickets issued now.
func (t *table) issuer(serial string, now time.Time) (*Record, error) {
	r, err := t.state(serial)
	switch {
	case err != nil:
		return nil, err
	case now.After(r.Expires):
		return nil, expired(r.what(), r.Expires, now)
	case r.State != Active:
		return nil, errorf(args.CodeWrongUse, "ticket %s is an invitation: it cannot issue tickets", r.Name)
	}
	return t.latest(r), nil
}

// Asker returns the name of somebody for whom a second node asks, as [Identity.Caller] has it. node
// is the serial of that node. by is the serial of a ticket, or uid:N for a user of the node's machine.
// The second node is not believed that a ticket administers the network: the list has to say so.
func (a *Authority) Asker(node, by string) (caller string, err error) {
	t, err := a.list.load()
	if err != nil {
		return "", err
	}
	n, err := t.issuer(node, a.now())
	switch uid, local := strings.CutPrefix(by, "uid:"); {
	case err != nil:
		return "", err
	case !n.Node:
		return "", errorf(args.CodeDenied, "%s is not of a node: it may not ask for others", n.what())
	case local && len(uid) > 0 && len(uid) <= 10 && strings.Trim(uid, "0123456789") == "":
		return by, nil
	}
	r, err := t.issuer(by, a.now())
	if err != nil {
		return "", err
	}
	if !r.Rights.Admin || r.Kind == Token {
		return "", errorf(args.CodeDenied, "%s does not administer the network", r.what()).WithHint("ask a node's administrator")
	}
	return "ticket:" + r.Name, nil
}

// room returns an error if the list has no place for a record.
func (t *table) room(r *Record, now time.Time) error {
	live, limit := 0, maxLive
	if r.IssuedBy != "" { // the rest is for the node's owner
		limit = maxLive / 4 * 3
	}
	for i := range t.records {
		if t.records[i].Live(now) {
			live++
		}
	}
	if live >= limit {
		return errorf(args.CodeStorage, "too many tickets (limit %d)", limit).WithHint("revoke tickets that are no longer used")
	}
	return nil
}

// Exchange turns an invitation into an identity for the key of a PKCS#10 request (PEM).
// serial is that of the invitation that admitted the peer. It returns the certificate
// (PEM) once the list is on the disk. The same key may ask again until the invitation
// expires. from is the peer's address. For a second node its certificate as a node follows,
// for the same key. If the CA's certificate was renewed, the current one follows: the
// identity may outlive the one in the invitation.
func (a *Authority) Exchange(serial string, request []byte, from string) ([]byte, error) {
	return a.sign(serial, request, func(t *table, inv *Record, hash string, now, end time.Time) (Record, bool, error) {
		return t.exchange(inv, hash, from, now, end)
	})
}

// sign answers a PKCS#10 request (PEM) with a certificate, once the list is on the disk.
// find returns the identity for the serial's record and the hash of the request's key; the
// CA ends at end.
func (a *Authority) sign(serial string, request []byte, find func(t *table, r *Record, hash string, now, end time.Time) (identity Record, changed bool, err error)) ([]byte, error) {
	pub, err := parseRequest(request)
	if err != nil {
		return nil, err
	}
	hash, err := keyHash(pub)
	if err != nil {
		return nil, err
	}
	if err := a.checkClock(); err != nil {
		return nil, err
	}
	now, root := a.now().UTC().Truncate(time.Second), a.root.Load()
	var identity Record
	err = a.list.update(func(t *table) (changed bool, err error) {
		r, err := t.state(serial)
		if err == nil {
			identity, changed, err = find(t, r, hash, now, root.ca.NotAfter)
		}
		return changed, err
	})
	if err != nil {
		return nil, err
	}
	cert, err := a.signClient(root.ca, &identity, false, pub)
	if err != nil {
		return nil, err
	}
	answer := certPEM(cert.Raw)
	if identity.Node {
		server, err := a.signNode(pub, now, secondLife)
		if err != nil {
			return nil, errorf(args.CodeTLS, "the node's certificate cannot be signed: %v", err)
		}
		answer = append(answer, certPEM(server.Raw)...)
	}
	if root.renewed {
		answer = append(answer, certPEM(root.ca.Raw)...)
	}
	return answer, nil
}

// exchange finds the invitation's identity for this key, or creates it.
func (t *table) exchange(inv *Record, hash, from string, now, end time.Time) (identity Record, changed bool, err error) {
	switch {
	case inv.State == Active:
		return identity, false, errorf(args.CodeWrongUse, "ticket %s is not an invitation: it is used as it is", inv.Name)
	case now.After(inv.Expires):
		return identity, false, expired(inv.what(), inv.Expires, now)
	case hash == inv.Key:
		return identity, false, errorf(args.CodeBadCertificate, "the request is for the invitation's own key, which others may have read").WithHint("make a new key")
	}
	for i := range t.records {
		r := &t.records[i]
		switch {
		case r.Key != hash || r.Via != inv.Serial && r.Serial != inv.Into:
		case r.State == Revoked:
			return identity, false, revoked(r, r.Ended)
		case r.State == Active:
			return *t.latest(r), false, nil
		}
	}
	if inv.State == Burnt {
		return identity, false, used(inv)
	}
	identity = Record{
		Serial: newSerial(), Name: inv.Name, Rights: inv.Rights, State: Active, Ephemeral: inv.Ephemeral, Node: inv.Node, Mesh: inv.Mesh,
		Issued: now, Expires: earlier(now.Add(IdentityLife), end), Key: hash, IssuedBy: inv.IssuedBy, Through: inv.Through,
	}
	if inv.Uses > 1 {
		if err := t.room(&identity, now); err != nil {
			return identity, false, err
		}
		identity.Via = inv.Serial
		for k := inv.Used + 1; ; k++ { // another ticket may have that name
			if identity.Name = identityName(inv.Name, k); len(t.named(identity.Name, now)) == 0 {
				break
			}
		}
		if inv.Used++; inv.Used == inv.Uses {
			inv.State, inv.Ended, inv.By = Burnt, now, from
		}
	} else {
		inv.State, inv.Into, inv.Ended, inv.By = Burnt, identity.Serial, now, from
	}
	t.add(identity)
	return identity, true, nil
}

// identityName is the name of the kth identity of an invitation for several.
func identityName(invitation string, k int) string { return fmt.Sprintf("%s-%d", invitation, k) }

// DropAbsent removes the ephemeral identities that were disconnected for EphemeralTime, and
// returns their last records. connected are the serials that have connections now. A node
// calls it every minute, so that after a crash the time counts from about the last moment
// of a connection.
func (a *Authority) DropAbsent(connected map[string]int) (gone []Record, err error) {
	t, err := a.list.load()
	if err != nil {
		return nil, err
	}
	now, due := a.now(), false
	for i := range t.records {
		r := &t.records[i]
		switch {
		case !r.Ephemeral || r.State != Active:
		case connected[r.Serial] > 0:
			a.list.present(r)
		default:
			due = due || now.Sub(later(r.Issued, r.Seen)) >= EphemeralTime
		}
	}
	if !due || now.Sub(a.opened) < absentGrace {
		return nil, nil
	}
	err = a.list.update(func(t *table) (bool, error) {
		a.list.addLate(t.records)
		last := map[string]time.Time{} // by name: several certificates of one identity
		for _, r := range t.records {
			if r.Ephemeral && r.State == Active {
				last[r.Name] = later(last[r.Name], later(r.Issued, r.Seen))
			}
		}
		issuers := map[string]bool{}
		for _, r := range t.records {
			issuers[r.IssuedBy] = issuers[r.IssuedBy] || r.Live(now)
		}
		t.records = slices.DeleteFunc(t.records, func(r Record) bool {
			if !r.Ephemeral || r.State != Active || now.Sub(last[r.Name]) < EphemeralTime || issuers[r.Serial] {
				return false
			}
			gone = append(gone, r)
			return true
		})
		return len(gone) > 0, nil
	})
	if err != nil {
		return nil, err
	}
	var serials []string
	for _, r := range gone {
		serials = append(serials, r.Serial)
	}
	a.list.tell(serials) // one may have connected at this moment
	return gone, nil
}

// Left records that a connection of a serial has ended, from which on an ephemeral identity
// is absent.
func (a *Authority) Left(serial string) {
	if t := a.list.current.Load(); t != nil {
		if r := t.get(serial); r != nil && r.Ephemeral {
			a.list.present(r)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Renew returns a new certificate (PEM) for the same key and identity. Before the last
// third of the validity period, and after a lost reply, it returns the current
// certificate. The older certificate stays valid until it expires. For a second node a new
// certificate as a node follows. If the CA's certificate was renewed, the current one
// follows.
func (a *Authority) Renew(serial string, request []byte) ([]byte, error) {
	return a.sign(serial, request, (*table).renew)
}

func (t *table) renew(r *Record, hash string, now, end time.Time) (identity Record, changed bool, err error) {
	switch {
	case r.State != Active || r.Reusable:
		return identity, false, errorf(args.CodeWrongUse, "ticket %s is not an identity: only identities are renewed", r.Name)
	case now.After(r.Expires):
		return identity, false, expired(r.what(), r.Expires, now)
	case hash != r.Key:
		return identity, false, errorf(args.CodeBadCertificate, "the request is for another key than that of ticket %s", r.Name)
	}
	r = t.latest(r)
	if !renewalDue(r.Expires, now) || r.Expires.Equal(end) {
		return *r, false, nil
	}
	identity = *r
	identity.First, _ = t.first(r)
	identity.Serial, identity.Issued, identity.Expires = newSerial(), now, earlier(now.Add(IdentityLife), end)
	for i := range t.records { // the list may drop the expired one before them
		for _, by := range []*string{&t.records[i].IssuedBy, &t.records[i].Through} {
			if *by == r.Serial {
				*by = identity.Serial
			}
		}
	}
	r.Into = identity.Serial
	t.add(identity)
	return identity, true, nil
}

func renewalDue(expires, now time.Time) bool { return expires.Sub(now) < IdentityLife/3 }

// Revoke revokes the ticket with that name or serial, everything it was exchanged or
// renewed into, and every ticket issued with it. It returns their records. Before it
// writes the list to the disk, no peer enters with these tickets, they issue nothing, and
// the OnRevoke callback has run. If the list cannot be written, Revoke returns an error,
// but the revocation holds until this Authority is closed, and Refresh tries again. If
// all of them were revoked before, Revoke changes nothing: it returns the records of the
// last revocation, and its time.
func (a *Authority) Revoke(nameOrSerial string) (gone []Record, before time.Time, err error) {
	now := a.now().UTC().Truncate(time.Second)
	err = a.list.write(a.list.limit, func(t *table) (bool, error) {
		kin := t.kin(nameOrSerial)
		if len(kin) == 0 {
			return false, errorf(args.CodeNoTicket, "there is no ticket or token with the name or serial %s", args.Shown(nameOrSerial)).WithHint("fbus tickets lists them")
		}
		for _, r := range kin {
			if r.State != Revoked {
				r.State, r.Ended = Revoked, now
				gone = append(gone, *r)
			} else if r.Ended.After(before) {
				before = r.Ended
			}
		}
		if len(gone) > 0 {
			before = time.Time{}
			a.list.shutOut(t)
			return true, nil
		}
		for _, r := range kin {
			if r.Ended.Equal(before) {
				gone = append(gone, *r)
			}
		}
		return a.list.ahead.Load(), nil
	})
	if err != nil && len(gone) > 0 {
		err = errorf(args.CodeStorage, "%s is refused, but not permanently yet: do not restart the node before the list of tickets can be written: %v", args.Shown(nameOrSerial), err).
			WithHint("correct the cause, and revoke it again")
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	if _, err := a.revocations(); err != nil { // it is tried again when a second node asks
		a.warn("%v", err)
	}
	return gone, before, nil
}

// kin finds the records that are revoked along with a name or serial: those of that name,
// or of that serial's chain of exchange and renewal, and those issued with one of them.
// Expired ones are included, since only this clock considers them expired.
func (t *table) kin(nameOrSerial string) (found []*Record) {
	in := map[string]bool{}
	for i := range t.records {
		if r := &t.records[i]; r.Serial == nameOrSerial || r.Name == nameOrSerial { // no name looks like a serial
			in[r.Serial] = true
		}
	}
	for n := 0; n < len(in); { // until none is added
		n = len(in)
		for i := range t.records {
			r := &t.records[i]
			if in[r.Serial] || in[r.Into] || in[r.IssuedBy] || in[r.Through] || in[r.Via] {
				in[r.Serial] = true
				if r.Into != "" {
					in[r.Into] = true
				}
			}
		}
	}
	for i := range t.records {
		if r := &t.records[i]; in[r.Serial] {
			found = append(found, r)
		}
	}
	return found
}

func unlisted(serial string) *args.Error {
	return errorf(args.CodeUnlisted, "the ticket with serial %s is not on the list of this network: the list was lost or is an older copy", args.Shown(serial)).
		WithHint("ask for a new ticket; an ephemeral identity is removed when it was disconnected for an hour")
}

func used(r *Record) *args.Error {
	if r.Uses > 1 {
		return errorf(args.CodeUsed, "ticket %s was used already, %d times, the last time at %s, from %s", r.Name, r.Used, stamp(r.Ended), r.By).WithHint("ask for a new one")
	}
	return errorf(args.CodeUsed, "ticket %s was used already, at %s, from %s", r.Name, stamp(r.Ended), r.By).
		WithHint("ask for a new one; if that was not you, fbus revoke %s locks the other user out", r.Name)
}

func revoked(r *Record, at time.Time) *args.Error {
	return errorf(args.CodeRevoked, "%s was revoked at %s", r.what(), stamp(at)).WithHint("ask for a new %s", r.kind())
}

// stamp formats a time for both people and programs.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
