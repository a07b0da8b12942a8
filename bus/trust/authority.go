package trust

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"fbus/bus/args"
)

// Options say which authority to open.
type Options struct {
	Dir     string // of this network alone: $FBUS_HOME/networks/ID
	Network string // its id

	Now  func() time.Time              // default Now
	Warn func(format string, a ...any) // what a person should know; default nobody
}

// Authority is the trust root of a network: its CA, and the list of what it has
// issued. Several processes may have it open: each sees the others' changes.
// Its methods may be called at the same time.
type Authority struct {
	network string
	dir     *privateDir
	list    *list
	ca      *x509.Certificate
	pool    *x509.CertPool
	key     *ecdsa.PrivateKey
	now     func() time.Time
	warn    func(string, ...any)

	mu   sync.Mutex // protects node
	node *tls.Certificate
}

// caName is the file of the CA's certificate and key. They share one so that a
// crash can not leave one without the other.
const caName = "ca.pem"

// Open opens the authority, and founds it at first use. Close it in the end.
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
	a := &Authority{network: o.Network, dir: dir, now: o.Now, warn: o.Warn}
	a.list = &list{dir: dir, network: o.Network, now: o.Now, warn: o.Warn, shut: map[string]time.Time{}, seen: map[string]sighting{}, noted: o.Now(), pause: seenPause}
	if err := a.open(); err != nil {
		dir.close()
		return nil, err
	}
	return a, nil
}

// Founded reports whether a network's directory has an authority.
func Founded(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, caName))
	return err == nil
}

// open reads the authority's files, or makes them, while no other process does.
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

// found makes the list, and then the CA: if the CA is there, the list was.
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
	cert, err := makeCA(a.network, key, a.now().UTC().Truncate(time.Second))
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

// keepList makes a new list if there is none any more. What was issued is then
// unlisted.
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

// readCA takes the CA from its file, if it is one that can be used.
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
	if err := checkTime(ca, "the CA of network "+a.network, a.now()); err != nil {
		return err
	}
	a.ca, a.key, a.pool = ca, secret, x509.NewCertPool()
	a.pool.AddCert(ca)
	return nil
}

func isCA(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0
}

// Close writes what is still in memory and lets go of the files. Nobody is
// admitted any more.
func (a *Authority) Close() error {
	a.list.close()
	return a.dir.close()
}

// Network is the network's id.
func (a *Authority) Network() string { return a.network }

// CA is the certificate of the authority, in PEM.
func (a *Authority) CA() []byte { return certPEM(a.ca.Raw) }

// NodeCertificate is the node's certificate for tls.Config.GetCertificate. It is
// made in memory, lasts a year, and is made anew when less than a third of that
// is left, or when the clock was set such that it is of no use.
func (a *Authority) NodeCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if a.node != nil {
		left := a.node.Leaf.NotAfter.Sub(now)
		if left >= nodeLife/3 && left <= nodeLife || left > 0 && a.node.Leaf.NotAfter.Equal(a.ca.NotAfter) {
			return a.node, nil
		}
	}
	cert, key, err := a.signNode(now.UTC().Truncate(time.Second))
	if err != nil {
		return nil, errorf(args.CodeTLS, "the node's certificate cannot be made: %v", err)
	}
	a.node = &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	return a.node, nil
}

// Tickets is the list of all that was issued, in that order, with who was seen
// last.
func (a *Authority) Tickets() ([]Record, error) {
	t, err := a.list.load()
	if err != nil {
		return nil, err
	}
	records := append([]Record(nil), t.records...)
	a.list.addLate(records)
	return records, nil
}

// Refresh looks whether another process has changed the list, and tells those
// who asked with OnRevoke. Admit does so too: a node with nothing but live
// connections calls this every few seconds.
func (a *Authority) Refresh() error {
	_, err := a.list.load()
	return err
}

// OnRevoke has f called with each serial that is no longer admitted, on the
// goroutine that noticed and with no lock held, once or more. It must be set
// before anybody is admitted. That a list is lost is no revocation: nobody new
// is admitted, and who is connected stays.
func (a *Authority) OnRevoke(f func(serial string)) {
	a.list.mu.Lock()
	defer a.list.mu.Unlock()
	a.list.onGone = append(a.list.onGone, f)
}
