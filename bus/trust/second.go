package trust

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus/args"
)

// Second admits the peers of a node that is not its network's first: it has a certificate of
// the network's CA, but neither the CA's key nor the list of issued serials. It admits what
// the CA has signed, unless the revocation list of the first node contains it.
type Second struct {
	joined *Joined
	maxAge time.Duration // of the revocation list; 0: any
	now    func() time.Time

	mu      sync.Mutex // held while the revocation list or the ticket is replaced
	ticket  atomic.Pointer[Ticket]
	server  atomic.Pointer[tls.Config] // for the CA's certificate in the ticket
	list    atomic.Pointer[received]
	refused atomic.Pointer[firstRefusal] // by the first node, for good; nil: it is not
	onGone  func(serials []string)
}

const (
	revocationSuffix = ".revoked" // in the directory of joined networks
	refusalSuffix    = ".refused"
	interval         = 50 * time.Second
)

// firstRefusal is the first node's answer that a ticket of this node is void. It is kept on the disk: the
// first node may be away when this one is started again.
type firstRefusal struct {
	Serial  string `json:"serial"`
	Message string `json:"message"`
	kept    bool
}

// OpenSecond opens what a user has got by joining a network with a ticket for a node. dir is
// that of [OpenJoined]. maxAge bounds the age of the revocation list; 0 is no bound. now may
// be nil. Call Close when done.
func OpenSecond(dir, network string, maxAge time.Duration, now func() time.Time) (*Second, error) {
	if now == nil {
		now = Now
	}
	j, err := OpenJoined(dir)
	if err != nil {
		return nil, err
	}
	s := &Second{joined: j, maxAge: maxAge, now: now}
	t, err := j.Load(network)
	if err == nil && t.Server == nil {
		err = errorf(args.CodeWrongUse, "network %s was joined as %s, with a ticket that is not for a node", network, t.Name).
			WithHint("ask for a ticket that is: fbus invite --for-node")
	}
	if err == nil {
		s.use(t)
		err = errors.Join(s.loadList(), s.loadRefusal())
	}
	if err != nil {
		j.Close()
		return nil, err
	}
	return s, nil
}

// use puts a ticket in place.
func (s *Second) use(t *Ticket) {
	pool := x509.NewCertPool()
	pool.AddCert(t.CA)
	server := serverConfig(pool, s.now)
	server.Certificates = []tls.Certificate{{Certificate: [][]byte{t.Server.Raw}, PrivateKey: t.Key, Leaf: t.Server}}
	s.server.Store(server)
	s.ticket.Store(t)
}

// Reload reads the ticket again: the user may have joined again, with a new one.
func (s *Second) Reload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, err := s.joined.Load(s.Ticket().Network); err == nil && t.Server != nil && t.SameNetwork(s.Ticket()) {
		s.use(t)
	}
}

// Close closes the files.
func (s *Second) Close() error { return s.joined.Close() }

// Ticket returns the identity of this node, with which it connects to others.
func (s *Second) Ticket() *Ticket { return s.ticket.Load() }

// File returns the file of that identity, for companions of this node.
func (s *Second) File() string { return s.joined.dir.join(s.Ticket().Network + identitySuffix) }

// First returns the addresses of the network's first node, for people.
func (s *Second) First() string { return strings.Join(s.Ticket().Addresses, " or ") }

func (s *Second) listName() string { return s.Ticket().Network + revocationSuffix }

// loadList reads the revocation list that was kept.
func (s *Second) loadList() error {
	data, _, err := s.joined.dir.read(s.listName(), revocationsLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	list, err := receive(data, FromDisk, s.Ticket().CA, s.now())
	if err != nil {
		return errorf(args.CodeDamaged, "%s: %v", s.joined.dir.join(s.listName()), err).WithHint("remove it: the first node has a new one")
	}
	s.list.Store(list)
	return nil
}

// loadRefusal reads the refusal that was kept.
func (s *Second) loadRefusal() error {
	name := s.Ticket().Network + refusalSuffix
	data, _, err := s.joined.dir.read(name, maxTicket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r := &firstRefusal{kept: true}
	if err == nil {
		err = args.DecodeStrict(data, r)
	}
	if err != nil {
		return errorf(args.CodeDamaged, "%s: %v", s.joined.dir.join(name), err).WithHint("join again with a new ticket, and remove it")
	}
	s.refused.Store(r)
	return nil
}

// Update takes a revocation list (PEM) that the first node has signed, wherever it is from, keeps it,
// and has the connections of newly revoked serials closed before it returns. A list with a lower number
// than the one here is refused: somebody may play back what an earlier connection has sent. One of the
// same number that was signed earlier changes nothing.
func (s *Second) Update(text []byte, from string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := receive(text, from, s.Ticket().CA, s.now())
	if err != nil {
		return err
	}
	old := s.list.Load()
	if old == nil {
		old = &received{}
	}
	if next.number == old.number && next.at.Before(old.at) {
		return nil
	}
	if next.number < old.number {
		return errorf(args.CodeDamaged, "the first node's list of revoked tickets has the number %d, and an earlier one had %d: was its clock set back?", next.number, old.number).
			WithHint("restart the first node when its clock is right, and revoke again what it has lost; or, to trust its list as it is, stop this node and remove %s", s.joined.dir.join(s.listName()))
	}
	s.list.Store(next)
	if gone := next.since(old); len(gone) > 0 && s.onGone != nil {
		s.onGone(gone)
	}
	return s.joined.put(s.listName(), text)
}

// Refused notes the first node's answer to this node: nil, or an error. After one that says
// that this node's ticket is void nobody is admitted, until the user joins again. It returns an
// error if it cannot keep that on the disk.
func (s *Second) Refused(err error) error {
	var e *args.Error
	was, name := s.refused.Load(), s.Ticket().Network+refusalSuffix
	switch {
	case err == nil && was != nil:
		s.refused.Store(nil)
		if err := s.joined.dir.remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case !errors.As(err, &e) || e.Code != args.CodeRevoked && e.Code != args.CodeUnlisted:
		return nil
	case was != nil && was.kept && was.Serial == s.Ticket().Serial:
		return nil
	}
	r := &firstRefusal{Serial: s.Ticket().Serial, Message: e.Error()}
	text, err := json.Marshal(r)
	if err == nil {
		err = s.joined.put(name, text)
	}
	r.kept = err == nil
	s.refused.Store(r)
	return err
}

// RenewalDue reports whether this node's certificates are to be renewed, which the first node
// does at any time.
func (s *Second) RenewalDue() bool {
	t, now := s.Ticket(), s.now()
	return t.RenewalDue(now) || t.Server.NotAfter.Sub(now) < secondLife-24*time.Hour
}

// Renewed keeps the first node's answer to a request for renewal (PEM).
func (s *Second) Renewed(certs []byte) error {
	s.Reload()
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := s.Ticket().WithCertificate(certs) // for the same key only
	if err != nil {
		return err
	}
	if err := s.joined.Save(next); err != nil {
		return err
	}
	s.use(next)
	return nil
}

// OnRevoke registers f to be called with the serials that are no longer admitted. Register it
// before admitting any peer.
func (s *Second) OnRevoke(f func(serials []string)) { s.onGone = f }

// ServerConfig is for the node's listener. A peer that completes the handshake is not
// admitted yet: see [Second.Admit].
func (s *Second) ServerConfig() *tls.Config {
	c := s.server.Load().Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.server.Load(), nil }
	return c
}

// Admit returns the identity of a peer that completed this handshake. See [Authority.Admit]
// for when to call it.
func (s *Second) Admit(cs tls.ConnectionState, _ string) (*Identity, error) {
	ca := s.Ticket().CA
	id, err := signed(cs, ca, s.now())
	if err != nil {
		return nil, err
	}
	id.Issuer = fingerprint(ca.RawSubjectPublicKeyInfo)
	// The first serial is not known here. Renewals do not change the key.
	leaf := cs.PeerCertificates[0]
	id.First, id.Since = fingerprint(leaf.RawSubjectPublicKeyInfo), leaf.NotBefore
	return id, s.Check(id)
}

// Check reports, as an error, that an admitted peer would now be refused.
func (s *Second) Check(id *Identity) error {
	list, now := s.list.Load(), s.now()
	if id.Joining {
		return errorf(args.CodeNoNode, "this node is not the first of network %s, and exchanges no invitations: %s does", s.Ticket().Network, s.First())
	}
	if list != nil && !list.revoked[id.Serial].IsZero() {
		return revoked(&Record{Name: id.Name}, list.revoked[id.Serial])
	}
	if now.After(id.Expires) {
		return expired("ticket "+id.Name, id.Expires, now)
	}
	return s.stale()
}

// Standing returns an error if a certificate is revoked now. It serves work that was left here.
func (s *Second) Standing(_, serial string) error {
	if list := s.list.Load(); list != nil && !list.revoked[serial].IsZero() {
		return errorf(args.CodeRevoked, "its ticket was revoked at %s", stamp(list.revoked[serial]))
	}
	return nil
}

// CheckToken returns an error if a token that the first node has admitted is not valid any more, and
// notes that in its record.
func (s *Second) CheckToken(r *Record) error {
	if list := s.list.Load(); list != nil && !list.revoked[r.Serial].IsZero() {
		r.State, r.Ended = Revoked, list.revoked[r.Serial].UTC()
		return revoked(r, r.Ended)
	}
	if now := s.now(); now.After(r.Expires) {
		return expired(r.what(), r.Expires, now)
	}
	return nil
}

// stale returns an error if nobody can be admitted now.
func (s *Second) stale() error {
	list, t, refused := s.list.Load(), s.Ticket(), s.refused.Load()
	switch {
	case refused != nil && refused.Serial == t.Serial:
		return errorf(args.CodeShut, "the network's first node refuses this node, so it admits nobody over TCP: %s", refused.Message).
			WithHint("join again with a new ticket: fbus invite --for-node, at the network's first node")
	case list == nil:
		return errorf(args.CodeShut, "this node has no list of revoked tickets from the network's first node, %s, yet, so it admits nobody over TCP", s.First())
	case !list.revoked[t.Serial].IsZero():
		return errorf(args.CodeShut, "this node's ticket %s was revoked at %s, so it admits nobody over TCP", t.Name, stamp(list.revoked[t.Serial])).
			WithHint("join again with a new ticket: fbus invite --for-node, at the network's first node")
	case s.maxAge > 0 && s.now().Sub(list.at) > s.maxAge:
		return errorf(args.CodeShut, "the list of revoked tickets from the network's first node, %s, is of %s, older than --trust-max-age allows (%s), so this node admits nobody over TCP",
			s.First(), stamp(list.at), s.maxAge) // not its age: each text is shown once
	}
	return nil
}

// Refresh returns an error while nobody can be admitted, or while no client accepts this
// node's certificate. A node calls it every few seconds.
func (s *Second) Refresh() error {
	if err := s.stale(); err != nil {
		return err
	}
	return checkTime(s.Ticket().Server, "this node's certificate", s.now())
}

// Number returns the number of the revocation list; 0 without one.
func (s *Second) Number() int64 {
	if list := s.list.Load(); list != nil {
		return list.number
	}
	return 0
}

// List returns the revocation list (PEM); nil without one.
func (s *Second) List() []byte {
	if list := s.list.Load(); list != nil {
		return list.text
	}
	return nil
}

// Interval returns how often the revocation list is to be got at least.
func (s *Second) Interval() time.Duration {
	if s.maxAge > 0 {
		return min(interval, s.maxAge/4)
	}
	return interval
}

// SecondInfo describes what a node that is not its network's first has of the first one.
type SecondInfo struct {
	First    []string  `json:"first"`              // addresses of the first node
	Away     string    `json:"away,omitempty"`     // why it cannot be reached; empty: it is connected
	Number   int64     `json:"number"`             // of the list of revoked tickets; 0: there is none yet
	Age      float64   `json:"age"`                // of that list, in seconds
	From     string    `json:"from,omitempty"`     // where that list is from: [FromFirst], …
	Revoked  int       `json:"revoked"`            // how many serials it contains
	MaxAge   float64   `json:"max_age,omitempty"`  // past which nobody is admitted over TCP
	Shut     string    `json:"shut,omitempty"`     // why nobody is admitted over TCP
	Until    time.Time `json:"until"`              // when this node's certificate ends; it is renewed each day
	Identity string    `json:"identity,omitempty"` // the file of this node's ticket, for its companions; for administrators
}

// Info describes this node's trust, as far as it knows.
func (s *Second) Info() *SecondInfo {
	i := &SecondInfo{First: s.Ticket().Addresses, MaxAge: s.maxAge.Seconds(), Until: s.Ticket().Server.NotAfter.UTC(), Identity: s.File()}
	if list := s.list.Load(); list != nil {
		i.Number, i.Age, i.From, i.Revoked = list.number, max(0, s.now().Sub(list.at)).Seconds(), list.from, len(list.revoked)
	}
	if err := s.stale(); err != nil {
		i.Shut = err.Error()
	}
	return i
}
