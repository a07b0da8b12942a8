package trust

import (
	"crypto"
	"errors"
	"io/fs"
	"strings"

	"fbus/bus/args"
)

// Joined is the directory of the networks that this user has joined. It holds an
// identity file for each, and the keys of pending exchanges.
type Joined struct{ dir *privateDir }

const (
	identitySuffix = ".pem"
	pendingSuffix  = ".joining"
)

// OpenJoined opens the directory, creating it if needed. Call Close when done.
func OpenJoined(dir string) (*Joined, error) {
	d, err := openPrivate(dir)
	if err != nil {
		return nil, err
	}
	return &Joined{dir: d}, nil
}

// Close closes the directory.
func (j *Joined) Close() error { return j.dir.close() }

// Begin makes the joiner's own key for an invitation, stores it on the disk, and returns
// the request (PEM) for the node. Calling it again with the same invitation uses the
// same key, also after Finish, so a lost reply or a crash costs nothing.
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
		var text []byte
		// Joining again must not use up another use of the invitation.
		if own, lerr := j.Load(invitation.Network); lerr == nil && own.Invitation == invitation.Serial {
			key, err = own.Key, nil
		} else {
			key, err = newKey()
		}
		if err == nil {
			text, err = keyPEM(key)
		}
		if err == nil {
			_, err = j.dir.write(pendingName(invitation), text)
		}
	}
	if err != nil {
		return nil, err
	}
	return makeRequest(key)
}

// Begun reports whether Begin has made a key for the invitation and the exchange is
// pending. Begin and Finish resume it.
func (j *Joined) Begun(invitation *Ticket) bool {
	_, err := j.pending(invitation)
	return err == nil
}

// Finish stores the identity signed by the node (PEM), and returns it.
func (j *Joined) Finish(invitation *Ticket, cert []byte) (*Ticket, error) {
	key, err := j.pending(invitation)
	if err != nil {
		return nil, err
	}
	own := *invitation
	own.Key, own.Invitation = key, invitation.Serial
	t, err := own.WithCertificate(cert)
	if err != nil {
		return nil, err
	}
	if err := j.Save(t); err != nil {
		return nil, err
	}
	j.dir.remove(pendingName(invitation)) // a leftover does no harm
	return t, nil
}

// Abandon removes the key of an invitation that can no longer be exchanged: it has
// expired, was revoked, or was used with another key.
func (j *Joined) Abandon(invitation *Ticket) { j.dir.remove(pendingName(invitation)) }

// Save stores an identity or a reusable ticket for its network. An existing one with
// another name is set aside: see [Joined.Aside]. But that of a node stays, and a ticket
// that is not for a node is itself put aside: it would end the node.
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
	unlock, err := j.dir.lock() // or another process's sweep would take our file for a leftover
	if err != nil {
		return err
	}
	defer unlock()
	old, err := j.Load(t.Network)
	if errors.Is(err, &args.Error{Code: args.CodeNoTicket}) {
		j.dir.remove(t.Network + revocationSuffix) // of an earlier network of that name
	}
	name := t.Network + identitySuffix
	switch {
	case err != nil:
	case old.Server != nil && t.Server == nil:
		name = asideName(t)
	case old.Name != t.Name:
		aside, err := old.Format()
		if err == nil {
			_, err = j.dir.write(asideName(old), aside)
		}
		if err != nil {
			return err
		}
	}
	_, err = j.dir.write(name, text)
	return err
}

// put writes a file of another kind than Save does.
func (j *Joined) put(name string, text []byte) error {
	unlock, err := j.dir.lock()
	if err != nil {
		return err
	}
	defer unlock()
	_, err = j.dir.write(name, text)
	return err
}

// Aside returns the file of an identity that was set aside. The file has the only copy
// of its key. It can still be used through FBUS_TICKET.
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
	if err == nil && t.Network != network {
		err = errorf(args.CodeDamaged, "it is for network %s", t.Network)
	}
	if err != nil {
		return nil, errorf(args.CodeDamaged, "%s: %v", j.dir.join(network+identitySuffix), err).WithHint("remove it and join again")
	}
	return t, nil
}

// Networks returns the ids of the joined networks, sorted.
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

// Remove removes a network's identity.
func (j *Joined) Remove(network string) error {
	if _, err := j.Load(network); errors.Is(err, &args.Error{Code: args.CodeNoTicket}) {
		return err
	}
	return j.dir.remove(network + identitySuffix)
}

// sameCA checks that a ticket's CA is the joined network's. A network of the same name
// with another CA is another network, and must not replace the joined one.
func (j *Joined) sameCA(t *Ticket) error {
	old, err := j.Load(t.Network)
	if errors.Is(err, &args.Error{Code: args.CodeNoTicket}) {
		return nil
	}
	if err != nil {
		return err
	}
	if !t.SameNetwork(old) {
		return errorf(args.CodeOtherNetwork, "another network %s, with another CA, was joined already", t.Network).
			WithHint("if that network was created again, remove %s first", j.dir.join(t.Network+identitySuffix))
	}
	return nil
}

// pendingName returns the key file of an invitation. Each invitation has its own, so two
// concurrent joins do not mix.
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
