package trust

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus/args"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("TRUST_TEST_WRITER"); dir != "" {
		writeUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

// clock is a settable clock.
type clock struct {
	mu sync.Mutex // protects t
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// privateTemp creates a directory that only this user can enter. The parent of t.TempDir
// may be open to others, but belongs to this user.
func privateTemp(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "home", "networks", "net")
}

func openTest(t testing.TB, dir string, c *clock) *Authority {
	t.Helper()
	a, err := Open(Options{Dir: dir, Network: "net", Now: c.now, Warn: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func rights(t testing.TB, words ...string) Rights {
	t.Helper()
	r, err := ParseRights(words...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// issue issues a ticket, by default a reusable one with the right to call a.
func issue(t testing.TB, a *Authority, q Request) *Ticket {
	t.Helper()
	return issueBy(t, a, LocalUser, q)
}

func issueBy(t testing.TB, a *Authority, by string, q Request) *Ticket {
	t.Helper()
	if q.Rights.Empty() {
		q.Rights = rights(t, "call:a")
	}
	ticket, err := a.Issue(by, q)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// request returns a PKCS#10 request for a new key.
func request(t testing.TB) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	req, err := makeRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return req, key
}

func wantCode(t testing.TB, err error, code string, words ...string) {
	t.Helper()
	var e *args.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("got %v (%+v), want the code %s", err, e, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(e.Message+"\n"+e.Hint, w) {
			t.Errorf("%q, hint %q: lacks %q", e.Message, e.Hint, w)
		}
	}
}

// testCA creates a foreign CA of the same shape.
func testCA(t testing.TB, network string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := makeCA(network, key, newClock().now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca, key
}

// testLeaf creates a client certificate with the given defect.
func testLeaf(t testing.TB, ca *x509.Certificate, caKey *ecdsa.PrivateKey, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	c := leaf("ticket x", clientUse)
	c.SerialNumber = serialNumber(newSerial())
	c.NotBefore, c.NotAfter = newClock().now().Add(-time.Hour), newClock().now().Add(time.Hour)
	c.URIs = names{name: "x", rights: rights(t, "call:*")}.uris()
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}
}
