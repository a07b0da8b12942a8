package trust

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"fbus/bus/args"
)

// writePKI writes a node's certificate from an external PKI, and returns the paths.
func writePKI(t *testing.T, dir string, change func(*x509.Certificate)) (cert, key, ca string, client *tls.Certificate) {
	t.Helper()
	root, rootKey := testCA(t, "net")
	node := testLeaf(t, root, rootKey, func(x *x509.Certificate) {
		x.ExtKeyUsage = []x509.ExtKeyUsage{serverUse}
		x.URIs, x.DNSNames = nil, []string{"bus.net.fbus.invalid"}
	})
	secret, err := keyPEM(node.PrivateKey)
	must(t, err)
	cert, key, ca = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	must(t, os.WriteFile(cert, certPEM(node.Leaf.Raw), 0o644))
	must(t, os.WriteFile(key, secret, 0o600))
	must(t, os.WriteFile(ca, certPEM(root.Raw), 0o644))
	return cert, key, ca, testLeaf(t, root, rootKey, change)
}

// TestFiles checks that an external PKI grants rights through URI names.
func TestFiles(t *testing.T) {
	c := newClock()
	cert, key, ca, client := writePKI(t, t.TempDir(), func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{clientUse, serverUse} })
	f, err := OpenFiles(cert, key, ca, c.now)
	must(t, err)
	n := serve(t, f, c.now)
	cfg := func(cert *tls.Certificate) *tls.Config { return withCert(f.ClientConfig("bus.net.fbus.invalid"), cert) }
	if got, err := n.enter(t, cfg(client)); got != "x" {
		t.Fatalf("%q, %v", got, err)
	}
	if id := n.admitted(t); id.Caller() != "ticket:x" || id.Rights.String() != "call *" {
		t.Errorf("%+v", id)
	}
	<-n.handled
	before := f.current.Load()
	must(t, f.Refresh())
	if f.current.Load() != before {
		t.Error("files that have not changed were read again")
	}
	old := cfg(client)
	_, err = n.enter(t, f.ClientConfig("elsewhere.example"))
	wantCode(t, Explain(err, c.now()), args.CodeWrongUse, "elsewhere.example")
	<-n.refused
	// With another CA in the file, the old CA's clients are refused, and so is its node.
	cert2, key2, ca2, _ := writePKI(t, t.TempDir(), nil)
	for from, to := range map[string]string{cert2: cert, key2: key, ca2: ca} {
		must(t, os.Rename(from, to))
	}
	must(t, f.Refresh())
	old.InsecureSkipVerify = true
	_, err = n.enter(t, old)
	n.rejected(t, "of the old CA", args.CodeOtherNetwork)
	wantCode(t, Explain(err, c.now()), args.CodeOtherNetwork)
}

// TestFilesExplain checks the explanation of a bare alert to a client that dialled with
// files.
func TestFilesExplain(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	cert, key, ca, client := writePKI(t, dir, nil)
	node, err := OpenFiles(cert, key, ca, c.now)
	must(t, err)
	n := serve(t, node, c.now)
	below := testLeaf(t, client.Leaf, client.PrivateKey.(*ecdsa.PrivateKey), nil)
	root, rootKey := testCA(t, "net")
	for _, r := range []struct {
		cert  *tls.Certificate
		chain []byte
		code  string
	}{
		{testLeaf(t, root, rootKey, nil), nil, args.CodeOtherNetwork},
		{below, certPEM(client.Leaf.Raw), args.CodeWrongUse},
	} {
		secret, err := keyPEM(r.cert.PrivateKey)
		must(t, err)
		file := filepath.Join(dir, "client.pem")
		must(t, os.WriteFile(file, slices.Concat(certPEM(r.cert.Leaf.Raw), r.chain, secret), 0o600))
		f, err := OpenFiles(file, file, ca, c.now)
		must(t, err)
		_, err = n.enter(t, f.ClientConfig("bus.net.fbus.invalid"))
		wantCode(t, f.Explain(err, c.now()), r.code, file)
		<-n.refused
	}
}

// TestFilesRefused checks certificates of that CA without a name, with an invalid right,
// or of an invitation.
func TestFilesRefused(t *testing.T) {
	c := newClock()
	for what, change := range map[string]func(*x509.Certificate){
		"no name": func(x *x509.Certificate) { x.URIs = nil; x.Subject.CommonName = "fbus:admin" },
		"typo":    func(x *x509.Certificate) { x.URIs[1].Opaque = "cal:x" },
		"join":    func(x *x509.Certificate) { x.URIs = names{name: "x", join: true}.uris() },
	} {
		cert, key, ca, client := writePKI(t, t.TempDir(), change)
		f, err := OpenFiles(cert, key, ca, c.now)
		must(t, err)
		n := serve(t, f, c.now)
		n.enter(t, withCert(f.ClientConfig("bus.net.fbus.invalid"), client))
		select {
		case e := <-n.refused:
			if e.Code != args.CodeBadCertificate && e.Code != args.CodeBadRight {
				t.Errorf("%s: %v", what, e)
			}
		case <-n.ids:
			t.Errorf("%s: admitted", what)
		}
	}
}

// TestFilesErrors checks that errors name the faulty file.
func TestFilesErrors(t *testing.T) {
	c := newClock()
	cert, key, ca, _ := writePKI(t, t.TempDir(), nil)
	_, err := OpenFiles(cert, key, cert+".none", c.now)
	wantCode(t, err, args.CodeStorage, "none")
	_, err = OpenFiles(cert, key, key, c.now)
	wantCode(t, err, args.CodeBadTicket, key)
	_, err = OpenFiles(ca, key, ca, c.now)
	wantCode(t, err, args.CodeBadTicket, key)
	must(t, os.Chmod(key, 0o604))
	_, err = OpenFiles(cert, key, ca, c.now)
	wantCode(t, err, args.CodeUnsafe, "chmod")
	must(t, os.Chmod(key, 0o640))
	// With a wrong clock a node starts, and is right once the clock is.
	c.add(48 * time.Hour)
	f, err := OpenNodeFiles(cert, key, ca, "", c.now)
	must(t, err)
	wantCode(t, f.Refresh(), args.CodeExpired, "clock", cert)
	c.add(-96 * time.Hour)
	wantCode(t, f.Refresh(), args.CodeNotYetValid, "clock")
	c.add(48 * time.Hour)
	must(t, f.Refresh())
}

// TestNodeFiles checks that a node's certificate that no client would accept is refused
// at the start and at a reload. After a failed reload the previous files stay in use.
func TestNodeFiles(t *testing.T) {
	c := newClock()
	for want, change := range map[string]func(*x509.Certificate){
		"":              func(x *x509.Certificate) { x.ExtKeyUsage = append(x.ExtKeyUsage, serverUse) },
		"serverAuth":    func(x *x509.Certificate) { x.DNSNames = []string{"a.example"} },
		"no DNS name":   func(x *x509.Certificate) { x.ExtKeyUsage, x.DNSNames = []x509.ExtKeyUsage{serverUse}, nil },
		"DNS:HOST or I": func(x *x509.Certificate) { x.ExtKeyUsage, x.DNSNames = nil, nil },
	} {
		dir := t.TempDir()
		cert, key, ca, client := writePKI(t, dir, func(x *x509.Certificate) { x.DNSNames = []string{"a.example"}; change(x) })
		f, err := OpenNodeFiles(cert, key, ca, "", c.now)
		must(t, err)
		before := f.current.Load()
		secret, err := keyPEM(client.PrivateKey)
		must(t, err)
		must(t, os.WriteFile(cert, certPEM(client.Leaf.Raw), 0o644))
		must(t, os.WriteFile(key, secret, 0o600))
		_, err = OpenNodeFiles(cert, key, ca, "", c.now)
		if want == "" {
			must(t, err)
			must(t, f.Refresh())
			continue
		}
		wantCode(t, err, args.CodeWrongUse, want)
		wantCode(t, f.Refresh(), args.CodeWrongUse)
		if f.current.Load() != before {
			t.Errorf("%s: those that were read before are in use no more", want)
		}
	}
}

// crlCA creates a CA that may sign revocation lists, below another one unless that is nil.
func crlCA(t *testing.T, name string, by *x509.Certificate, byKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := newKey()
	must(t, err)
	c := &x509.Certificate{
		SerialNumber: serialNumber(newSerial()), Subject: pkix.Name{CommonName: name}, NotBefore: newClock().now(), NotAfter: newClock().now().Add(caLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	if by == nil {
		by, byKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, key.Public(), byKey)
	must(t, err)
	ca, err := x509.ParseCertificate(der)
	must(t, err)
	return ca, key
}

// crl creates a revocation list, in DER.
func crl(t *testing.T, ca *x509.Certificate, key *ecdsa.PrivateKey, critical bool, revoked ...*x509.Certificate) []byte {
	t.Helper()
	now := newClock().now()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(30 * 24 * time.Hour)}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now})
	}
	if critical { // issuingDistributionPoint
		list.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca, key)
	must(t, err)
	return der
}

func crlPEM(lists ...[]byte) (text []byte) {
	for _, der := range lists {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return text
}

// replace writes a file as a renewal does.
func replace(t *testing.T, file string, text []byte) {
	t.Helper()
	must(t, os.WriteFile(file+".new", text, 0o600))
	must(t, os.Rename(file+".new", file))
}

// TestRevocationLists checks that certificates that a list names, and those of a CA that was
// removed, do not enter, and that peers that have entered are refused from the next refresh
// on.
func TestRevocationLists(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	root, rootKey := crlCA(t, "root", nil, nil)
	middle, middleKey := crlCA(t, "middle", root, rootKey)
	cert, key, ca, _ := writePKI(t, dir, nil)
	lists := filepath.Join(dir, "crl")
	own, err := os.ReadFile(ca) // of the node alone
	must(t, err)
	replace(t, ca, slices.Concat(own, certPEM(root.Raw)))
	one, two, below := testLeaf(t, root, rootKey, nil), testLeaf(t, root, rootKey, nil), testLeaf(t, middle, middleKey, nil)
	below.Certificate = append(below.Certificate, middle.Raw)
	replace(t, lists, crlPEM(crl(t, root, rootKey, false, one.Leaf)))
	f, err := OpenNodeFiles(cert, key, ca, lists, c.now)
	must(t, err)
	changes := 0
	f.OnChange(func() { changes++ })
	must(t, f.Refresh())
	n := serve(t, f, c.now)
	client, err := OpenFiles(cert, key, ca, c.now)
	must(t, err)
	enter := func(cert *tls.Certificate) *Identity {
		t.Helper()
		if got, err := n.enter(t, withCert(client.ClientConfig("bus.net.fbus.invalid"), cert)); got != "x" {
			t.Fatalf("%q, %v", got, err)
		}
		<-n.handled
		return n.admitted(t)
	}
	if got, _ := n.enter(t, withCert(client.ClientConfig("bus.net.fbus.invalid"), one)); got != "ERROR revoked" {
		t.Errorf("got %q", got)
	}
	n.rejected(t, "listed", args.CodeRevoked)
	second, third := enter(two), enter(below)
	must(t, f.Check(second))
	must(t, f.Standing(second.Issuer, second.Serial))
	must(t, f.Standing(third.Issuer, third.Serial))
	wantCode(t, f.Standing(second.Issuer, serialText(one.Leaf.SerialNumber)), args.CodeRevoked)

	replace(t, lists, crl(t, root, rootKey, false, one.Leaf, middle)) // DER
	must(t, f.Refresh())
	must(t, f.Check(second))
	wantCode(t, f.Check(third), args.CodeRevoked, "list of its CA")

	// The CA is removed, its list is still there, and stays valid when that changes.
	replace(t, ca, own)
	must(t, f.Refresh())
	wantCode(t, f.Check(second), args.CodeRevoked, "does not trust")
	wantCode(t, f.Standing(third.Issuer, third.Serial), args.CodeRevoked)
	replace(t, lists, crlPEM(crl(t, root, rootKey, false)))
	must(t, f.Refresh())
	if changes != 3 {
		t.Errorf("told of %d changes", changes)
	}
	_, err = OpenNodeFiles(cert, key, ca, lists, c.now)
	wantCode(t, err, args.CodeBadTicket, "not signed by a CA")
}

// TestRevocationListErrors checks lists that are refused: the previous ones stay in use. One
// that is overdue is used, and reported.
func TestRevocationListErrors(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	root, rootKey := crlCA(t, "root", nil, nil)
	other, otherKey := crlCA(t, "root", nil, nil)
	cert, key, ca, _ := writePKI(t, dir, nil)
	lists := filepath.Join(dir, "crl")
	replace(t, ca, certPEM(root.Raw))
	listed := testLeaf(t, root, rootKey, nil)
	id := &Identity{Name: "x", Expires: c.now().Add(time.Hour), chain: []*x509.Certificate{listed.Leaf}}
	good := crl(t, root, rootKey, false, listed.Leaf)
	replace(t, lists, good)
	f, err := OpenNodeFiles(cert, key, ca, lists, c.now)
	must(t, err)
	for what, text := range map[string][]byte{
		"not signed by a CA": crlPEM(good, crl(t, other, otherKey, false)),
		"critical extension": crl(t, root, rootKey, true),
		"not a revocation":   good[:len(good)-1],
		"CERTIFICATE":        certPEM(root.Raw),
		"PEM or DER":         nil,
		"cut short":          append(crlPEM(good), crlPEM(good)[:100]...),
	} {
		replace(t, lists, text)
		wantCode(t, f.Refresh(), args.CodeBadTicket, lists, what)
		_, err := OpenNodeFiles(cert, key, ca, lists, c.now)
		wantCode(t, err, args.CodeBadTicket, what)
		wantCode(t, f.Check(id), args.CodeRevoked)
	}
	must(t, os.Remove(lists))
	wantCode(t, f.Refresh(), args.CodeStorage, lists)
	replace(t, lists, good)
	id.Expires = c.now().Add(caLife)
	c.add(31 * 24 * time.Hour)
	f.node = false // its certificate has expired as well
	wantCode(t, f.Refresh(), args.CodeExpired, "stays in use")
}
