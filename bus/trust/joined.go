package trust

import (
	"bytes"
	"crypto"
	"errors"
	"io/fs"
	"strings"

	"fbus/bus/args"
)

// Joined is the directory of the networks that this user has joined: a file with
// the identity for each, and the keys of invitations that are being exchanged.
type Joined struct{ dir *privateDir }

const (
	identitySuffix = ".pem"
	pendingSuffix  = ".joining"
)

// OpenJoined opens the directory, and makes it if need be. Close it in the end.
func OpenJoined(dir string) (*Joined, error) {
	d, err := openPrivate(dir)
	if err != nil {
		return nil, err
	}
	return &Joined{dir: d}, nil
}

// Close lets go of the directory.
func (j *Joined) Close() error { return j.dir.close() }

// Begin makes the key of one's own that an invitation is exchanged for, and has it
// on the disk before it returns the request (PEM) for the node. Begun again
// with the same invitation, it is the same key: so a lost reply, or a crash before
// Finish, costs nothing.
func (j *Joined) Begin(invitation *Ticket) ([]byte, error) {
	if !invitation.Joining {
		return nil, errorf(args.CodeWrongUse, "ticket %s is not an invitation: it is used as it is", invitation.Name)
	}
	if err := j.sameCA(invitation); err != nil {
		return nil, err
	}
	unlock, err := j.dir.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	j.dir.sweep()
	key, err := j.pending(invitation)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = j.makePending(invitation)
	}
	if err != nil {
		return nil, err
	}
	return makeRequest(key)
}

// Begun reports whether Begin has made a key for the invitation that is still to be
// exchanged: Begin and Finish go on with it.
func (j *Joined) Begun(invitation *Ticket) bool {
	_, err := j.pending(invitation)
	return err == nil
}

// Finish keeps the identity that the node has signed (PEM), and returns it.
func (j *Joined) Finish(invitation *Ticket, cert []byte) (*Ticket, error) {
	key, err := j.pending(invitation)
	if err != nil {
		return nil, err
	}
	own := *invitation
	own.Key = key
	t, err := own.WithCertificate(cert)
	if err != nil {
		return nil, err
	}
	if err := j.Save(t); err != nil {
		return nil, err
	}
	j.dir.remove(pendingName(invitation)) // what is left of it does no harm
	return t, nil
}

// Abandon forgets the key that was made for an invitation which nobody exchanges any more:
// it has expired, was revoked, or somebody has used it with another key.
func (j *Joined) Abandon(invitation *Ticket) { j.dir.remove(pendingName(invitation)) }

// Save keeps an identity or a reusable ticket as the one for its network. One of
// another name that was there is set aside: see [Joined.Aside].
func (j *Joined) Save(t *Ticket) error {
	if t.Joining {
		return errorf(args.CodeWrongUse, "ticket %s is an invitation: exchange it", t.Name).WithHint("fbus join FILE")
	}
	if err := j.sameCA(t); err != nil {
		return err
	}
	text, err := t.Format()
	if err != nil {
		return err
	}
	unlock, err := j.dir.lock() // or another's sweep would take our file for a leftover
	if err != nil {
		return err
	}
	defer unlock()
	if old, err := j.Load(t.Network); err == nil && old.Name != t.Name {
		if err := j.setAside(old); err != nil {
			return err
		}
	}
	_, err = j.dir.write(t.Network+identitySuffix, text)
	return err
}

func (j *Joined) setAside(old *Ticket) error {
	text, err := old.Format()
	if err == nil {
		_, err = j.dir.write(asideName(old), text)
	}
	return err
}

// Aside is the file in which an identity is that was set aside: there is no other copy
// of its key. As a file it can be used still, in FBUS_TICKET.
func (j *Joined) Aside(t *Ticket) string { return j.dir.join(asideName(t)) }

func asideName(t *Ticket) string { return t.Network + "." + t.Name + identitySuffix }

// Load returns the identity for a network.
func (j *Joined) Load(network string) (*Ticket, error) {
	if err := args.CheckNetwork(network); err != nil {
		return nil, err
	}
	text, _, err := j.dir.read(network+identitySuffix, maxTicket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(args.CodeNoTicket, "network %s was never joined: %v", network, err).WithHint("fbus join TICKET")
	}
	if err != nil {
		return nil, err
	}
	t, err := ParseTicket(text)
	if err != nil {
		return nil, errorf(args.CodeDamaged, "%s: %v", j.dir.join(network+identitySuffix), err).WithHint("remove it and join again")
	}
	if t.Network != network {
		return nil, errorf(args.CodeDamaged, "%s: it is for network %s", j.dir.join(network+identitySuffix), t.Network).WithHint("remove it and join again")
	}
	return t, nil
}

// Networks returns the ids of the networks that were joined, sorted.
func (j *Joined) Networks() ([]string, error) {
	names, err := j.dir.list()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, identitySuffix); ok && args.CheckNetwork(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Remove forgets a network.
func (j *Joined) Remove(network string) error {
	if _, err := j.Load(network); errors.Is(err, &args.Error{Code: args.CodeNoTicket}) {
		return err
	}
	return j.dir.remove(network + identitySuffix)
}

// sameCA: a network of the same name with another CA is another network, and
// must not take the place of the one that was joined.
func (j *Joined) sameCA(t *Ticket) error {
	old, err := j.Load(t.Network)
	if errors.Is(err, &args.Error{Code: args.CodeNoTicket}) {
		return nil
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(old.CA.Raw, t.CA.Raw) {
		return errorf(args.CodeOtherNetwork, "another network %s, with another CA, was joined already", t.Network).
			WithHint("if that network was created again, remove %s first", j.dir.join(t.Network+identitySuffix))
	}
	return nil
}

// pendingName: an invitation has a key of its own, so that two that are joined at
// once do not mix.
func pendingName(t *Ticket) string { return t.Network + "." + t.Serial + pendingSuffix }

func (j *Joined) pending(t *Ticket) (crypto.Signer, error) {
	text, _, err := j.dir.read(pendingName(t), maxTicket)
	if err != nil {
		return nil, err
	}
	_, key, err := parseBundle(text)
	if err == nil && key == nil {
		err = errorf(args.CodeDamaged, "it has no key")
	}
	if err != nil {
		return nil, errorf(args.CodeDamaged, "%s: %v", j.dir.join(pendingName(t)), err)
	}
	return key, nil
}

func (j *Joined) makePending(t *Ticket) (crypto.Signer, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	text, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	_, err = j.dir.write(pendingName(t), text)
	return key, err
}
