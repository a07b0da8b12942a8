package trust

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"fbus/bus/args"
)

// Files are a certificate, its key and a CA from an external PKI (fbus serve --tls-cert,
// --tls-key, --tls-ca). A client needs a client certificate from that CA, direct or
// through intermediates, with the URI names of a ticket; one without fbus:name: is
// refused. There is no list. Only that PKI issues and revokes certificates; removing the
// CA from the file also shuts them out.
type Files struct {
	cert, key, ca string
	node          bool // set for a node's files
	now           func() time.Time
	current       atomic.Pointer[filesState]
}

type filesState struct {
	pair  *tls.Certificate
	pool  *x509.CertPool
	files [3]os.FileInfo // as last read
}

// OpenFiles reads the files of a client. now may be nil.
func OpenFiles(cert, key, ca string, now func() time.Time) (*Files, error) {
	return openFiles(&Files{cert: cert, key: key, ca: ca, now: now})
}

// OpenNodeFiles reads the files of a node. It refuses a certificate that no client would
// accept, with [CodeWrongUse]. now may be nil.
func OpenNodeFiles(cert, key, ca string, now func() time.Time) (*Files, error) {
	return openFiles(&Files{cert: cert, key: key, ca: ca, node: true, now: now})
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
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caText) {
		return errorf(args.CodeBadTicket, "%s: it has no certificate", f.ca).WithHint("a certificate is expected, in PEM: BEGIN CERTIFICATE")
	}
	if f.node { // the node reports problems of a client's certificate
		if err := checkTime(pair.Leaf, f.cert, f.now()); err != nil {
			return err
		}
		if err := checkNode(pair.Leaf, f.cert); err != nil {
			return err
		}
	}
	f.current.Store(&filesState{&pair, pool, files})
	return nil
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

// Refresh reads the files again if one of them has changed, as it does at a renewal.
func (f *Files) Refresh() error {
	now, err := f.stat()
	if err != nil {
		return stale(err)
	}
	for i, was := range f.current.Load().files {
		if !os.SameFile(was, now[i]) || !was.ModTime().Equal(now[i].ModTime()) || was.Size() != now[i].Size() {
			return stale(f.Reload())
		}
	}
	return nil
}

// stale adds to an error that the previous files stay in use.
func stale(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: the files that were read before stay in use", err)
	}
	return err
}

func (f *Files) stat() (files [3]os.FileInfo, err error) {
	for i, name := range []string{f.cert, f.key, f.ca} {
		if files[i], err = os.Stat(name); err != nil {
			return files, errorf(args.CodeStorage, "%v", err)
		}
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
	return &Identity{Name: n.name, Serial: serialText(cert.SerialNumber), Rights: n.rights, Expires: cert.NotAfter}, nil
}

// Check reports, as an error, that an admitted peer would now be refused.
func (f *Files) Check(id *Identity) error {
	if now := f.now(); now.After(id.Expires) {
		return expired("the certificate of "+id.Name, id.Expires, now)
	}
	return nil
}
