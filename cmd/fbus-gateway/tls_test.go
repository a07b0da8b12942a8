package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/trust"
	"fbus/cmd/testbus"
)

// serverPair writes a certificate for localhost and its key, and returns what trusts it.
func serverPair(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gateway"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost", "bus.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	cert, _ := x509.ParseCertificate(der)
	pool.AddCert(cert)
	return pool
}

// TestTickets: under TLS a ticket's certificate admits its holder with the ticket's rights, until it is
// revoked, over HTTP/1 and HTTP/2. A token works as well.
func TestTickets(t *testing.T) {
	home, dir := t.TempDir(), t.TempDir()
	t.Setenv("FBUS_HOME", home)
	pool := serverPair(t, dir)
	x := newSite(t, func(c *config) { c.TLSCert, c.TLSKey = filepath.Join(dir, "cert"), filepath.Join(dir, "key") })
	if err := os.MkdirAll(filepath.Join(home, "networks", "test"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "networks", "test", "ca.pem"), x.a.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	x.offer(bus.Offer{Name: "who", Slots: 2}, func(_ context.Context, inv *bus.Invocation) bus.Result { return bus.Result{Output: []byte(inv.Caller)} })
	x.offer(bus.Offer{Name: "cat"}, echo)
	testbus.Until(x.t, "the list of revoked certificates is there", func() bool { c := x.g.certs.current(); return c != nil && c.Number() > 0 })
	rights := trust.Rights{Call: []string{"who", "cat"}}
	ticket, err := x.a.Issue(trust.LocalUser, trust.Request{Name: "web", Rights: rights, Reusable: true, Addresses: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ticket.ClientConfig(nil).GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil {
		t.Fatal(err)
	}
	url := strings.Replace(x.far, "http:", "https:", 1)
	for _, h2 := range []bool{false, true} {
		ask := func(path string, cert *tls.Certificate, headers ...string) *reply {
			config := &tls.Config{RootCAs: pool}
			if cert != nil {
				config.Certificates = []tls.Certificate{*cert}
			}
			tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: h2}
			defer tr.CloseIdleConnections()
			r, _ := http.NewRequestWithContext(t.Context(), "POST", url+path, bytes.NewReader(bytes.Repeat([]byte("x"), 100_000)))
			for i := 0; i+1 < len(headers); i += 2 {
				r.Header.Set(headers[i], headers[i+1])
			}
			resp, err := tr.RoundTrip(r)
			if err != nil {
				t.Fatal(path, err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if (resp.ProtoMajor == 2) != h2 {
				t.Error(resp.Proto)
			}
			return &reply{resp, string(body), err}
		}
		if r := ask("/call/who", certificate); r.StatusCode != 200 || !strings.HasSuffix(r.body, "/ticket:web") {
			t.Error(r.Status, r.body)
		}
		if r := ask("/call/cat", certificate, "TE", "trailers"); r.StatusCode != 200 || len(r.body) != 100_000 || r.Trailer.Get("Fbus-Status") != "0" {
			t.Error(r.Status, len(r.body), r.Trailer)
		}
		if r := ask("/call/other", certificate); r.StatusCode != 403 {
			t.Error(r.Status, r.body)
		}
		if r := ask("/call/who", nil); r.StatusCode != 401 {
			t.Error(r.Status, r.body)
		}
		if r := ask("/call/who", nil, "Authorization", "Bearer "+x.token("ci"+r2(h2), "who")); r.StatusCode != 200 {
			t.Error(r.Status, r.body)
		}
	}
	if _, _, err := x.a.Revoke("web"); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{*certificate}}}
	defer tr.CloseIdleConnections()
	testbus.Until(x.t, "the ticket is refused", func() bool {
		r, _ := http.NewRequestWithContext(t.Context(), "POST", url+"/call/who", nil)
		resp, err := tr.RoundTrip(r)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 401
	})
}

func r2(h2 bool) string {
	if h2 {
		return "2"
	}
	return "1"
}
