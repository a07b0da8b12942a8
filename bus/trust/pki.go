package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

// Files are a certificate, its key and a CA from an external PKI (fbus serve --tls-cert,
// --tls-key, --tls-ca). A client needs a client certificate from that CA, direct or
// through intermediates, with the URI names of a ticket; one without fbus:name: is
// refused. There is no list. Only that PKI issues and revokes certificates. A node refuses
// those that a file of revocation lists (CRL, --tls-crl) names, and those of a CA that was
// removed from the file of CAs. A list that is older than its own next update stays in use.
type Files struct {
	cert, key, ca, crl string // crl may be empty
	node               bool   // set for a node's files
	now                func() time.Time
	current            atomic.Pointer[filesState]
	onChange           func() // nil: none
}

type filesState struct {
	pair    *tls.Certificate
	pool    *x509.CertPool
	signers []*x509.Certificate // of revocation lists: the CAs in the file, now or before
	roots   map[string]bool     // fingerprints of the keys in pool
	revoked map[string]bool     // by listKey
	next    time.Time           // when the first revocation list expires
	files   []fileID            // as last read
}

// OpenFiles reads the files of a client. now may be nil.
func OpenFiles(cert, key, ca string, now func() time.Time) (*Files, error) {
	return openFiles(&Files{cert: cert, key: key, ca: ca, now: now})
}

// OpenNodeFiles reads the files of a node; crl may be empty. It refuses a certificate that
// no client would accept, with [CodeWrongUse]. One that is only outside of its validity
// period is used: the clock may be wrong, and Refresh reports it. now may be nil.
func OpenNodeFiles(cert, key, ca, crl string, now func() time.Time) (*Files, error) {
	return openFiles(&Files{cert: cert, key: key, ca: ca, crl: crl, node: true, now: now})
}

func openFiles(f *Files) (*Files, error) {
	if f.now == nil {
		f.now = Now
	}
	return f, f.Reload()
}

// Reload reads the files again, for later connections. After an error the previous ones
// stay in use.
func (f *Files) Reload() error {
	files, err := f.stat()
	if err != nil {
		return err
	}
	certText, _, err := readBounded(f.cert)
	if err != nil {
		return err
	}
	keyText, mode, err := readBounded(f.key)
	if err != nil {
		return err
	}
	if mode&0o007 != 0 { // a group such as ssl-cert may be intended
		return errorf(args.CodeUnsafe, "%s: mode %04o gives every user access to the key", f.key, mode.Perm()).WithHint("chmod o-rwx %s", f.key)
	}
	caText, _, err := readBounded(f.ca)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return errorf(args.CodeBadTicket, "%s, %s: %v", f.cert, f.key, err).WithHint("a certificate and its key are expected, in PEM")
	}
	next, old := &filesState{pair: &pair, pool: x509.NewCertPool(), signers: certificates(caText), roots: map[string]bool{}, files: files}, f.current.Load()
	for _, ca := range next.signers {
		next.pool.AddCert(ca)
		next.roots[fingerprint(ca.RawSubjectPublicKeyInfo)] = true
	}
	if len(next.signers) == 0 {
		return errorf(args.CodeBadTicket, "%s: it has no certificate", f.ca).WithHint("a certificate is expected, in PEM: BEGIN CERTIFICATE")
	}
	if f.node { // the node reports problems of a client's certificate
		if err := checkNode(pair.Leaf, f.cert); err != nil {
			return err
		}
		if old != nil && checkTime(old.pair.Leaf, f.cert, f.now()) == nil {
			if err := checkTime(pair.Leaf, f.cert, f.now()); err != nil {
				return err
			}
		}
	}
	if f.crl != "" {
		if err := next.readLists(f.crl, old); err != nil {
			return err
		}
	}
	f.current.Store(next)
	return nil
}

// readLists reads the revocation lists in a file, PEM or DER. Each must be signed by a CA that
// is in the file of CAs, or was: a CA can be removed while its list is still there.
func (s *filesState) readLists(file string, old *filesState) error {
	text, _, err := readBounded(file)
	if err != nil {
		return err
	}
	if old != nil {
		known := func(c *x509.Certificate) bool { return slices.ContainsFunc(s.signers, c.Equal) }
		s.signers = append(s.signers, slices.DeleteFunc(slices.Clone(old.signers), known)...)
	}
	lists := [][]byte{text}
	if block, rest := pem.Decode(text); block != nil {
		for lists = nil; block != nil; block, rest = pem.Decode(rest) {
			if block.Type != listBlock {
				return errorf(args.CodeBadTicket, "%s: there is a block %q in it", file, args.Shown(block.Type)).WithHint("it must hold revocation lists only, in PEM (BEGIN X509 CRL) or DER")
			}
			lists = append(lists, block.Bytes)
		}
		if bytes.Count(text, []byte("-----BEGIN ")) != len(lists) { // pem skips what it cannot read
			return errorf(args.CodeBadTicket, "%s: it is cut short, or has a block that is no PEM", file)
		}
	}
	s.revoked = map[string]bool{}
	for _, der := range lists {
		if err := s.addList(der); err != nil {
			return errorf(args.CodeBadTicket, "%s: %v", file, err)
		}
	}
	return nil
}

func (s *filesState) addList(der []byte) error {
	list, err := parseRevocationList(der, s.signers)
	if err != nil {
		return err
	}
	for _, r := range list.RevokedCertificateEntries {
		s.revoked[listKey(fingerprint(list.RawIssuer), serialText(r.SerialNumber))] = true
	}
	if !list.NextUpdate.IsZero() && (s.next.IsZero() || list.NextUpdate.Before(s.next)) {
		s.next = list.NextUpdate
	}
	return nil
}

// parseRevocationList returns a complete revocation list that one of the signers has signed.
func parseRevocationList(der []byte, signers []*x509.Certificate) (*x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, errorf(args.CodeBadTicket, "not a revocation list: %v", err).WithHint("it must hold revocation lists (CRL), in PEM or DER")
	}
	err = errors.New("no CA has that name")
	if !slices.ContainsFunc(signers, func(ca *x509.Certificate) bool {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) {
			return false
		}
		err = list.CheckSignatureFrom(ca)
		return err == nil
	}) {
		return nil, errorf(args.CodeBadTicket, "the revocation list of %q was not signed by a CA in the file of CAs: %v", args.Shown(list.Issuer.CommonName), err).
			WithHint("a CA's certificate needs the key usage cRLSign; the file of CAs must also hold an intermediate CA that signs a list")
	}
	// RFC 5280, sections 5.2 and 5.3: a list with an unknown critical extension is a delta or
	// covers only some certificates.
	extensions := list.Extensions
	for i := range list.RevokedCertificateEntries {
		extensions = append(extensions, list.RevokedCertificateEntries[i].Extensions...)
	}
	for _, x := range extensions {
		if x.Critical {
			return nil, errorf(args.CodeBadTicket, "the revocation list of %q is not a complete list: it has the critical extension %s", args.Shown(list.Issuer.CommonName), x.Id)
		}
	}
	return list, nil
}

// listKey identifies a certificate: serials are unique for each issuer only.
func listKey(issuer, serial string) string { return issuer + " " + serial }

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:16])
}

// certificates returns the certificates in a PEM text, as AppendCertsFromPEM reads them.
func certificates(text []byte) (list []*x509.Certificate) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == certBlock && len(block.Headers) == 0 {
			list = append(list, c)
		}
	}
	return list
}

// checkNode returns an error if clients would refuse a node's certificate, whatever
// address they dial.
func checkNode(c *x509.Certificate, file string) error {
	switch uses := c.ExtKeyUsage; {
	case len(uses)+len(c.UnknownExtKeyUsage) > 0 && !slices.Contains(uses, serverUse) && !slices.Contains(uses, x509.ExtKeyUsageAny):
		return errorf(args.CodeWrongUse, "%s: no client accepts it: its extended key usage is not serverAuth", file).
			WithHint("get a certificate for a server, with extendedKeyUsage=serverAuth")
	case len(c.DNSNames) == 0 && len(c.IPAddresses) == 0:
		return errorf(args.CodeWrongUse, "%s: no client accepts it: it has no DNS name and no address, and clients look for the host that they dial", file).
			WithHint("get one with subjectAltName=DNS:HOST or IP:ADDRESS")
	}
	return nil
}

// OnChange registers a function that Refresh calls after it has read files that changed:
// Check may now refuse peers that were admitted before. Register it before the first
// Refresh.
func (f *Files) OnChange(changed func()) { f.onChange = changed }

// Refresh reads the files again if one of them has changed, as it does at a renewal. It
// returns an error while the node's certificate is not valid by this clock, or a revocation
// list is overdue.
func (f *Files) Refresh() error {
	now, err := f.stat()
	if err != nil {
		return stale(err)
	}
	if !slices.Equal(now, f.current.Load().files) {
		if err := f.Reload(); err != nil {
			return stale(err)
		}
		if f.onChange != nil {
			f.onChange()
		}
	}
	return f.checkClock()
}

func (f *Files) checkClock() error {
	s, now := f.current.Load(), f.now()
	leaf := s.pair.Leaf
	switch {
	case f.node && now.Before(leaf.NotBefore):
		return errorf(args.CodeNotYetValid, "%s: by this clock the certificate is not yet valid, not before %s, so no client accepts this node", f.cert, stamp(leaf.NotBefore)).WithHint("check the clock of this machine: date -u")
	case f.node && now.After(leaf.NotAfter):
		return errorf(args.CodeExpired, "%s: by this clock the certificate expired at %s, so no client accepts this node", f.cert, stamp(leaf.NotAfter)).WithHint("replace the file, it is read again; or check the clock of this machine: date -u")
	case !s.next.IsZero() && now.After(s.next):
		return errorf(args.CodeExpired, "%s: a revocation list should have been replaced at %s: it stays in use, but later revocations are not known", f.crl, stamp(s.next))
	}
	return nil
}

// stale adds to an error that the previous files stay in use.
func stale(err error) error {
	return fmt.Errorf("%w: the files that were read before stay in use", err)
}

func (f *Files) stat() (files []fileID, err error) {
	for _, name := range []string{f.cert, f.key, f.ca, f.crl} {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); name != "" && err != nil {
			return nil, errorf(args.CodeStorage, "%v", &os.PathError{Op: "stat", Path: name, Err: err})
		}
		files = append(files, idOf(&st))
	}
	return files, nil
}

// ServerConfig is for the node's listener. A peer that completes the handshake is not
// admitted yet: see Admit.
func (f *Files) ServerConfig() *tls.Config {
	c := serverConfig(f.current.Load().pool, f.now)
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s := f.current.Load()
		c := serverConfig(s.pool, f.now)
		c.Certificates = []tls.Certificate{*s.pair}
		return c, nil
	}
	return c
}

// ClientConfig is for dialling a node of that PKI. The node's certificate must have host
// as a DNS name or address.
func (f *Files) ClientConfig(host string) *tls.Config {
	s := f.current.Load()
	return clientConfig(s.pool, host, s.pair, f.now)
}

// Admit returns the identity of a peer that completed this handshake, from the names in
// its certificate. See [Authority.Admit] for when to call it.
func (f *Files) Admit(cs tls.ConnectionState, _ string) (*Identity, error) {
	if err := checkClient(cs, f.now()); err != nil {
		return nil, err
	}
	cert := cs.PeerCertificates[0]
	n, err := parseNames(cert.URIs)
	if err != nil {
		return nil, err
	}
	if n.join {
		return nil, errorf(args.CodeBadCertificate, "the certificate is an invitation, which this node does not exchange").WithHint("the node uses its own PKI")
	}
	id := &Identity{Name: n.name, Serial: serialText(cert.SerialNumber), Rights: n.rights, Expires: cert.NotAfter, chain: cs.PeerCertificates}
	chain, err := f.check(id)
	if err == nil {
		id.Issuer = fingerprint(chain[len(chain)-1].RawSubjectPublicKeyInfo) + " " + fingerprint(cert.RawIssuer)
	}
	return id, err
}

// Standing returns an error if a certificate is revoked now, or its CA was removed. issuer is
// that of its [Identity]. It serves work that was left here.
func (f *Files) Standing(issuer, serial string) error {
	s := f.current.Load()
	root, issuer, _ := strings.Cut(issuer, " ")
	if !s.roots[root] || s.revoked[listKey(issuer, serial)] {
		return errorf(args.CodeRevoked, "its certificate was revoked, or its CA is not trusted any more")
	}
	return nil
}

// Check reports, as an error, that an admitted peer would now be refused. It costs nothing
// while the files stay the same.
func (f *Files) Check(id *Identity) error {
	_, err := f.check(id)
	return err
}

// check also returns a chain that was verified now, if one was.
func (f *Files) check(id *Identity) ([]*x509.Certificate, error) {
	now, s := f.now(), f.current.Load()
	if now.After(id.Expires) {
		return nil, expired("the certificate of "+id.Name, id.Expires, now)
	}
	if id.checked.Load() == s {
		return nil, nil
	}
	between := x509.NewCertPool()
	for _, c := range id.chain[1:] {
		between.AddCert(c)
	}
	chains, err := id.chain[0].Verify(x509.VerifyOptions{Roots: s.pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{clientUse}})
	if err != nil {
		return nil, errorf(args.CodeRevoked, "the certificate of %s was signed by a CA that this node does not trust any more: %v", id.Name, err)
	}
	i := slices.IndexFunc(chains, s.unrevoked)
	if i < 0 {
		return nil, errorf(args.CodeRevoked, "the certificate of %s was revoked, according to the list of its CA", id.Name).WithHint("ask for a new one")
	}
	id.checked.Store(s)
	return chains[i], nil
}

// unrevoked reports whether no list names a certificate of the chain.
func (s *filesState) unrevoked(chain []*x509.Certificate) bool {
	return !slices.ContainsFunc(chain, func(c *x509.Certificate) bool {
		return s.revoked[listKey(fingerprint(c.RawIssuer), serialText(c.SerialNumber))]
	})
}
