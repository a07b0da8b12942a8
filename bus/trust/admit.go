package trust

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"fbus/bus/args"
)

// Identity identifies the other end of a connection, with its rights.
type Identity struct {
	Name    string
	Serial  string
	Rights  Rights    // empty while Joining
	Expires time.Time // the connection must end then
	Joining bool      // an invitation: it may only exchange itself
	Issuer  string    // identifies the CAs of another PKI, for [Files.Standing]
	First   string    // of an authority's: the serial before all renewals
	Since   time.Time // when that was issued

	chain   []*x509.Certificate        // as the peer of another PKI sent it
	checked atomic.Pointer[filesState] // the files that it was checked against
}

// Caller returns the name for FBUS_CALLER and the log: "ticket:NAME". The holder of an
// invitation is kept apart from the later owner of the name, and uses none of that
// owner's limits.
func (id *Identity) Caller() string {
	if id.Joining {
		return "invitation:" + id.Name
	}
	return "ticket:" + id.Name
}

// Admit returns the identity of a peer that completed this handshake, according to the
// authority's current list, or an error that gives the reason for refusal. Call it
// before reading anything from the peer. The error's code and message may be sent to the
// peer. The list records from, the peer's address. An identity returned with an error is
// only what the CA signed; use it for the log.
//
// Admit accepts a burnt invitation (Joining) until it expires, since the reply to the
// exchange may have been lost. Exchange decides what that peer gets.
func (a *Authority) Admit(cs tls.ConnectionState, from string) (*Identity, error) {
	now := a.now()
	id, err := signed(cs, a.root.Load().ca, now)
	if err != nil {
		return nil, err
	}
	r, err := a.check(id, now)
	if err != nil {
		return id, err
	}
	hash, err := keyHash(cs.PeerCertificates[0].PublicKey)
	if err != nil || hash != r.Key {
		return id, errorf(args.CodeBadCertificate, "the certificate's key is not the one that was recorded for ticket %s", r.Name)
	}
	a.list.saw(id.Serial, from)
	id.First, id.Since = a.list.current.Load().first(r)
	return id, nil
}

// signed returns what a network's CA has signed about a peer that completed a handshake.
func signed(cs tls.ConnectionState, ca *x509.Certificate, now time.Time) (*Identity, error) {
	if err := checkClient(cs, now); err != nil {
		return nil, err
	}
	chain := cs.VerifiedChains[0]
	if len(cs.VerifiedChains) != 1 || len(chain) != 2 || !bytes.Equal(chain[1].RawSubjectPublicKeyInfo, ca.RawSubjectPublicKeyInfo) {
		return nil, errorf(args.CodeOtherNetwork, "the certificate was not signed by the CA of network %s itself", ca.Subject.CommonName)
	}
	cert := chain[0]
	if !onlyUse(cert, clientUse) {
		return nil, errorf(args.CodeWrongUse, "the certificate is not for clients only").WithHint(hintClient)
	}
	n, err := parseNames(cert.URIs)
	if err != nil {
		return nil, err
	}
	return &Identity{Name: n.name, Serial: serialText(cert.SerialNumber), Rights: n.rights, Expires: cert.NotAfter, Joining: n.join}, nil
}

// Shown returns the owner of a certificate that failed a handshake because it has
// expired or is not valid yet. It returns nil if the CA did not sign it or the list does
// not contain it. The peer has not proved that it holds the key, so use the identity
// only for the log.
func (a *Authority) Shown(err error) *Identity {
	var e x509.CertificateInvalidError
	if !errors.As(err, &e) || a.root.Load().ca.CheckSignature(e.Cert.SignatureAlgorithm, e.Cert.RawTBSCertificate, e.Cert.Signature) != nil {
		return nil
	}
	n, err := parseNames(e.Cert.URIs)
	if err != nil {
		return nil
	}
	t, err := a.list.load()
	if err != nil {
		return nil
	}
	serial := serialText(e.Cert.SerialNumber)
	if r := t.get(serial); r == nil || r.Name != n.name {
		return nil
	}
	return &Identity{Name: n.name, Serial: serial, Joining: n.join}
}

// Check reports, as an error, that an admitted peer would now be refused.
func (a *Authority) Check(id *Identity) error {
	_, err := a.check(id, a.now())
	return err
}

// Unused returns nil if the invitation with that serial can still be exchanged for any
// key, or an error with the reason. It changes nothing.
func (a *Authority) Unused(serial string) error {
	t, err := a.list.load()
	if err != nil {
		return err
	}
	switch r, err := t.state(serial); {
	case err != nil:
		return err
	case r.State == Burnt:
		return used(r)
	case r.State != Invited:
		return errorf(args.CodeWrongUse, "ticket %s is not an invitation: it is used as it is", r.Name)
	case a.now().After(r.Expires):
		return expired(r.what(), r.Expires, a.now())
	}
	return nil
}

// Standing returns the current rights of a serial's holder, following every exchange and
// renewal. It serves work that was left here: a client that is not connected cannot
// present a certificate.
func (a *Authority) Standing(serial string) (Rights, error) {
	t, err := a.list.load()
	if err != nil {
		return Rights{}, err
	}
	r, err := t.state(serial)
	for err == nil && r.Into != "" {
		r, err = t.state(r.Into)
	}
	if err == nil && a.now().After(r.Expires) {
		err = expired(r.what(), r.Expires, a.now())
	}
	if err != nil {
		return Rights{}, err
	}
	return r.Rights, nil
}

// check compares a certificate with its record in the list.
func (a *Authority) check(id *Identity, now time.Time) (*Record, error) {
	t, err := a.list.load()
	if err != nil {
		return nil, err
	}
	r, err := t.state(id.Serial)
	if err != nil {
		return nil, err
	}
	if end := earlier(r.Expires, id.Expires); now.After(end) {
		return nil, expired(r.what(), end, now)
	}
	if r.Kind == Token || id.Name != r.Name || id.Joining != (r.State == Invited || r.State == Burnt) {
		return nil, errorf(args.CodeBadCertificate, "the certificate is not what was issued with the serial %s", r.Serial)
	}
	want := r.Rights
	if id.Joining {
		want = Rights{}
	}
	if !id.Rights.Equal(want) {
		return nil, errorf(args.CodeBadCertificate, "the certificate of ticket %s allows %s, but the list %s", r.Name, id.Rights, want)
	}
	return r, nil
}

// checkClient checks the cryptography of a peer that connected as a client.
func checkClient(cs tls.ConnectionState, now time.Time) error {
	switch {
	case cs.Version != tls.VersionTLS13:
		return errorf(args.CodeTLSVersion, "the connection is not TLS 1.3")
	case cs.DidResume:
		return errorf(args.CodeTLS, "the connection resumes another one, which would skip checks")
	case len(cs.PeerCertificates) == 0:
		return noCertificate()
	case cs.PeerCertificates[0].IsCA:
		return errorf(args.CodeWrongUse, "the certificate is a CA's, not a client's")
	case len(cs.VerifiedChains) == 0 || len(cs.VerifiedChains[0]) < 2:
		return errorf(args.CodeOtherNetwork, "the certificate was not verified")
	}
	cert := cs.PeerCertificates[0]
	if !slices.Contains(cert.ExtKeyUsage, clientUse) {
		return errorf(args.CodeWrongUse, "the certificate is not for clients")
	}
	return checkTime(cert, "the certificate", now)
}

// onlyUse reports whether a certificate is limited to one use. x509 accepts a
// certificate without a usage extension for every use.
func onlyUse(c *x509.Certificate, use x509.ExtKeyUsage) bool {
	return !c.IsCA && len(c.ExtKeyUsage) == 1 && c.ExtKeyUsage[0] == use && len(c.UnknownExtKeyUsage) == 0
}
