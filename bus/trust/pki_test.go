package trust

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
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
	c.add(48 * time.Hour)
	_, err = OpenNodeFiles(cert, key, ca, c.now)
	wantCode(t, err, args.CodeExpired, "clock", cert)
	_, err = OpenFiles(cert, key, ca, c.now)
	must(t, err)
	c.add(-96 * time.Hour)
	_, err = OpenNodeFiles(cert, key, ca, c.now)
	wantCode(t, err, args.CodeNotYetValid, "clock")
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
		f, err := OpenNodeFiles(cert, key, ca, c.now)
		must(t, err)
		before := f.current.Load()
		secret, err := keyPEM(client.PrivateKey)
		must(t, err)
		must(t, os.WriteFile(cert, certPEM(client.Leaf.Raw), 0o644))
		must(t, os.WriteFile(key, secret, 0o600))
		_, err = OpenNodeFiles(cert, key, ca, c.now)
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
