package trust

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus/args"
)

// Options select the authority to open.
type Options struct {
	Dir     string // for this network only: $FBUS_HOME/networks/ID
	Network string // its id

	Now  func() time.Time              // default Now
	Warn func(format string, a ...any) // receives warnings for a person; default none
}

// Authority is a network's trust root: its CA, and the list of the certificates it
// issued. Several processes may open the same authority; each sees the others' changes.
// Its methods may be called concurrently.
type Authority struct {
	*list
	key  *ecdsa.PrivateKey
	root atomic.Pointer[root]

	opened time.Time

	making sync.Mutex // protects node
	node   *tls.Certificate

	revoking  sync.Mutex // protects the fields below
	revoked   *revocations
	revokedOf *table // that revoked was made from
}

// root is the CA's certificate. In the last fifth of its life it is replaced by another one
// for the same key. What the CA has signed is valid under both: no ticket is lost.
type root struct {
	ca      *x509.Certificate
	server  *tls.Config // of a connection
	renewed bool        // not the first certificate, so it is sent to those who hold another
}

// caName is the file of the CA's certificate and key. They share one file so that a
// crash cannot leave one without the other.
const caName = "ca.pem"

// Open opens the authority, and creates it at first use. Call Close when done.
func Open(o Options) (*Authority, error) {
	if err := args.CheckNetwork(o.Network); err != nil {
		return nil, err
	}
	if o.Now == nil {
		o.Now = Now
	}
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	dir, err := openPrivate(o.Dir)
	if err != nil {
		return nil, err
	}
	a := &Authority{list: &list{dir: dir, network: o.Network, now: o.Now, warn: o.Warn, limit: listLimit, seen: map[string]sighting{}, noted: o.Now()}, opened: o.Now()}
	if err := a.open(); err != nil {
		dir.close()
		return nil, err
	}
	if err := a.renewCA(); err != nil {
		a.warn("%v", err)
	}
	return a, nil
}

// Founded reports whether a network's directory has an authority.
func Founded(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, caName))
	return err == nil
}

// open reads the authority's files, or creates them, under a lock against other
// processes.
func (a *Authority) open() error {
	unlock, err := a.dir.lock()
	if err != nil {
		return err
	}
	defer unlock()
	a.dir.sweep()
	data, _, err := a.dir.read(caName, maxTicket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if data, err = a.found(); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := a.keepList(); err != nil {
			return err
		}
	}
	if err := a.readCA(data); err != nil {
		return err
	}
	_, err = a.list.load()
	return err
}

// found creates the list and then the CA, so an existing CA implies that there was a
// list.
func (a *Authority) found() ([]byte, error) {
	switch _, err := a.list.load(); {
	case errors.Is(err, fs.ErrNotExist):
		if err := a.writeEmptyList(); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case len(a.list.current.Load().records) > 0:
		return nil, errorf(args.CodeDamaged, "%s is missing, but there is a list of tickets that it signed", a.dir.join(caName)).
			WithHint("restore it from a backup; or remove %s too, and issue new tickets", a.dir.join(listName))
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	return a.writeCA(key, nil)
}

// writeCA writes the CA's file, with a new certificate that replaces old, if not nil.
func (a *Authority) writeCA(key *ecdsa.PrivateKey, old *x509.Certificate) ([]byte, error) {
	cert, err := makeCA(a.network, key, a.now().UTC().Truncate(time.Second), old)
	if err != nil {
		return nil, errorf(args.CodeStorage, "the CA cannot be made: %v", err)
	}
	secret, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	data := append(fmt.Appendf(nil, "The authority of the fbus network %s. Anybody who has this file owns the network.\n\n", a.network), certPEM(cert)...)
	data = append(data, secret...)
	_, err = a.dir.write(caName, data)
	return data, err
}

// renewCA replaces the CA's certificate in the last fifth of its life, or when it has
// expired.
func (a *Authority) renewCA() error {
	due := func() bool { return a.root.Load().ca.NotAfter.Sub(a.now()) < caRenewal }
	if !due() {
		return nil
	}
	unlock, err := a.dir.lock()
	if err != nil {
		return err
	}
	defer unlock()
	data, _, err := a.dir.read(caName, maxTicket)
	if err == nil {
		err = a.readCA(data) // another process may have replaced it
	}
	if err == nil && due() {
		if data, err = a.writeCA(a.key, a.root.Load().ca); err == nil {
			err = a.readCA(data)
		}
	}
	if err != nil {
		return errorf(args.CodeStorage, "the CA of network %s, which ends at %s, cannot be renewed: %v", a.network, stamp(a.root.Load().ca.NotAfter), err)
	}
	return nil
}

// Refresh checks whether another process has changed the list, and notifies the OnRevoke
// callback. Admit does so too. Refresh also writes, every ten seconds, which tickets Admit
// has seen, and renews the CA. It returns an error while the CA is not valid by this clock.
// A node calls it every few seconds.
func (a *Authority) Refresh() error {
	return cmp.Or(a.list.refresh(), a.renewCA(), a.checkClock())
}

// checkClock checks that the CA is valid by this clock. Otherwise no peer completes a
// handshake, and nothing is issued.
func (a *Authority) checkClock() error {
	const so = "so no other machine is admitted and no ticket is issued"
	const hint = "check the clock of this machine: date -u"
	ca, now := a.root.Load().ca, a.now()
	switch {
	case now.Before(ca.NotBefore):
		return errorf(args.CodeNotYetValid, "by this clock the CA of network %s is not yet valid, not before %s, %s", a.network, stamp(ca.NotBefore), so).WithHint(hint)
	case now.After(ca.NotAfter):
		return errorf(args.CodeExpired, "by this clock the CA of network %s expired at %s, %s", a.network, stamp(ca.NotAfter), so).WithHint(hint)
	}
	return nil
}

// keepList creates an empty list if the file is missing. Certificates issued before are
// then unlisted.
func (a *Authority) keepList() error {
	_, err := a.dir.stat(listName)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.warn("%s is missing: all tickets of network %s are refused and must be issued again", a.dir.join(listName), a.network)
	return a.writeEmptyList()
}

func (a *Authority) writeEmptyList() error {
	data, err := formatList(a.network, nil)
	if err != nil {
		return err
	}
	_, err = a.dir.write(listName, data)
	return err
}

// readCA parses the CA's file and checks that the CA is usable.
func (a *Authority) readCA(data []byte) error {
	path := a.dir.join(caName)
	bad := func(format string, v ...any) *args.Error {
		return orHint(errorf(args.CodeDamaged, path+": "+format, v...), "restore it from a backup; or remove %s, and issue new tickets", a.dir.path)
	}
	certs, key, err := parseBundle(data)
	if err != nil {
		return bad("%v", err)
	}
	secret, ok := key.(*ecdsa.PrivateKey)
	if len(certs) != 1 || !ok {
		return bad("it must hold one certificate and an ECDSA key")
	}
	ca := certs[0]
	switch {
	case !isCA(ca):
		return bad("the certificate is not a CA's")
	case ca.CheckSignature(ca.SignatureAlgorithm, ca.RawTBSCertificate, ca.Signature) != nil:
		return bad("its signature is wrong")
	case !secret.PublicKey.Equal(ca.PublicKey):
		return bad("the key is not the certificate's")
	case ca.Subject.CommonName != a.network:
		return bad("it is the CA of network %s, not of %s", args.Shown(ca.Subject.CommonName), a.network)
	}
	if a.key == nil {
		a.key = secret
	} else if !a.key.Equal(secret) { // the node's certificate would be another CA's
		return bad("it was replaced by another CA: restart the node")
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	server := serverConfig(pool, a.now)
	server.GetCertificate = a.NodeCertificate
	a.root.Store(&root{ca, server, ca.NotAfter.Sub(ca.NotBefore) > caLife+backdate})
	return nil
}

func isCA(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0
}

// Close writes pending sightings and closes the files. No peer is admitted afterwards.
func (a *Authority) Close() error {
	a.list.writeSightings()
	return a.dir.close()
}

// Network returns the network's id.
func (a *Authority) Network() string { return a.network }

// CA returns the authority's certificate in PEM.
func (a *Authority) CA() []byte { return certPEM(a.root.Load().ca.Raw) }

// NodeCertificate returns the node's certificate, for tls.Config.GetCertificate. It is
// kept in memory and valid for a year. It is replaced when less than a third of that is
// left, or when a clock change makes it unusable.
func (a *Authority) NodeCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.making.Lock()
	defer a.making.Unlock()
	now := a.now()
	if a.node != nil {
		left := a.node.Leaf.NotAfter.Sub(now)
		if left >= nodeLife/3 && left <= nodeLife || left > 0 && a.node.Leaf.NotAfter.Equal(a.root.Load().ca.NotAfter) {
			return a.node, nil
		}
	}
	key, err := newKey() // stored nowhere else
	var cert *x509.Certificate
	if err == nil {
		cert, err = a.signNode(key.Public(), now.UTC().Truncate(time.Second), nodeLife)
	}
	if err != nil {
		return nil, errorf(args.CodeTLS, "the node's certificate cannot be made: %v", err)
	}
	a.node = &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	return a.node, nil
}

// Tickets returns all records in order of issue, with the latest sightings.
func (a *Authority) Tickets() ([]Record, error) {
	t, err := a.list.load()
	if err != nil {
		return nil, err
	}
	records := append([]Record(nil), t.records...)
	a.list.addLate(records)
	return records, nil
}
