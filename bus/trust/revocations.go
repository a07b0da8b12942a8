package trust

import (
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"slices"
	"time"

	"fbus/bus/args"
)

// revocations lists the serials that were revoked before their certificates expire. Second
// nodes get it as an X.509 revocation list (CRL). The list of tickets forgets old records;
// this one does not, since a second node admits a certificate that it does not contain.
type revocations struct {
	Number  int64        `json:"number"` // rises with each addition, and each start of the first node
	Revoked []revocation `json:"revoked"`
}

type revocation struct {
	Serial string    `json:"serial"`
	At     time.Time `json:"at"`
	Until  time.Time `json:"until"` // when the certificate expires
}

const (
	revocationsName  = "revocations"
	revocationsLimit = 64 << 20

	// slowClock is for how long after its end a certificate stays in the revocation list: a
	// second node's clock may be slow.
	slowClock = 24 * time.Hour
	// nextUpdate is when a revocation list says that the next one comes. It is a formality:
	// a second node asks each minute, and --trust-max-age bounds its age.
	nextUpdate = 7 * 24 * time.Hour
)

// RevocationList returns what was revoked, as a revocation list (CRL, PEM) that the CA signs
// now, and its number.
func (a *Authority) RevocationList() (text []byte, number int64, err error) {
	if err := a.checkClock(); err != nil {
		return nil, 0, err
	}
	r, err := a.revocations()
	if err != nil {
		return nil, 0, err
	}
	now := a.now().UTC().Truncate(time.Second)
	list := &x509.RevocationList{Number: big.NewInt(r.Number), ThisUpdate: now, NextUpdate: now.Add(nextUpdate)}
	for _, e := range r.Revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serialNumber(e.Serial), RevocationTime: e.At})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, signer(a.root.Load().ca), a.key)
	if err != nil {
		return nil, 0, errorf(args.CodeInternal, "the list of revoked tickets cannot be signed: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: listBlock, Bytes: der}), r.Number, nil
}

// signer returns a CA's certificate as one that may sign revocation lists. The CAs of
// networks that were made before there were second nodes lack that key usage.
func signer(ca *x509.Certificate) *x509.Certificate {
	c := *ca
	c.KeyUsage |= x509.KeyUsageCRLSign
	return &c
}

// revocations returns the file's content, after adding what was revoked since.
func (a *Authority) revocations() (*revocations, error) {
	a.revoking.Lock()
	defer a.revoking.Unlock()
	t, err := a.list.load()
	if err != nil {
		return nil, err
	}
	if a.revokedOf == t {
		return a.revoked, nil
	}
	unlock, err := a.dir.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	next := &revocations{Revoked: []revocation{}}
	data, _, err := a.dir.read(revocationsName, revocationsLimit)
	if err == nil {
		err = args.DecodeStrict(data, next)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, orHint(errorf(args.CodeDamaged, "the list of revoked tickets cannot be read, so second nodes get none: %v", err),
			"restore %s from a backup; or remove it, and revoke again what is not in fbus tickets --all", a.dir.join(revocationsName))
	}
	now := a.now()
	has := map[string]bool{}
	next.Revoked = slices.DeleteFunc(next.Revoked, func(e revocation) bool {
		has[e.Serial] = true
		return now.Sub(e.Until) > slowClock
	})
	before, starts := len(next.Revoked), a.revoked == nil
	for i := range t.records {
		if r := &t.records[i]; r.State == Revoked && !has[r.Serial] && now.Sub(r.Expires) <= slowClock {
			next.Revoked = append(next.Revoked, revocation{r.Serial, r.Ended, r.Expires})
		}
	}
	if len(next.Revoked) > before || starts {
		// The file, or the whole directory, may be an older copy: second nodes refuse a number that is
		// less than an earlier one, and this one is greater if the clock is right.
		next.Number = max(next.Number+1, now.Unix())
		if data, err = json.Marshal(next); err == nil {
			_, err = a.dir.write(revocationsName, append(data, '\n'))
		}
		if err != nil && len(next.Revoked) > before {
			return nil, errorf(args.CodeStorage, "the list of revoked tickets for second nodes cannot be written: %v", err)
		}
	}
	a.revoked, a.revokedOf = next, t
	return next, nil
}

// Where a second node has its revocation list from.
const (
	FromFirst = "first" // the first node
	FromRelay = "relay" // a relay has passed it on: the mesh
	FromDisk  = "disk"  // an earlier run, which has kept it
)

// received is a revocation list, as a second node has got it.
type received struct {
	text    []byte // PEM
	from    string // one of the words above
	number  int64
	at      time.Time
	revoked map[string]time.Time // by serial
}

// receive checks a revocation list (PEM) of a network's CA.
func receive(text []byte, from string, ca *x509.Certificate, now time.Time) (*received, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != listBlock {
		return nil, errorf(args.CodeDamaged, "there is no revocation list in it")
	}
	list, err := parseRevocationList(block.Bytes, []*x509.Certificate{signer(ca)})
	if err != nil {
		return nil, errorf(args.CodeDamaged, "it is not a revocation list that the network's CA has signed")
	}
	if list.Number == nil || !list.Number.IsInt64() {
		return nil, errorf(args.CodeDamaged, "the list has no number")
	}
	// It was signed within the second that begins at ThisUpdate.
	r := &received{text: text, from: from, number: list.Number.Int64(), at: earlier(list.ThisUpdate.Add(time.Second), now), revoked: map[string]time.Time{}}
	for _, e := range list.RevokedCertificateEntries {
		r.revoked[serialText(e.SerialNumber)] = e.RevocationTime
	}
	return r, nil
}

// since returns the serials that are revoked in r, but not in an older list.
func (r *received) since(old *received) (gone []string) {
	for serial := range r.revoked {
		if _, known := old.revoked[serial]; !known {
			gone = append(gone, serial)
		}
	}
	slices.SortFunc(gone, cmp.Compare)
	return gone
}
