package trust

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"fbus/bus/args"
)

// State is the current state of a serial.
type State string

// States of a serial. Only the first two are live: their name is taken.
const (
	Invited State = "invited" // an unused invitation
	Active  State = "active"  // an identity, or a reusable ticket
	Burnt   State = "burnt"   // an invitation that was exchanged for Into
	Revoked State = "revoked" // revoked; kept so that its holder can learn why
)

// Kind distinguishes what is in the list.
type Kind string

// Token is the kind of a bearer token. All others are tickets.
const Token Kind = "token"

// Record describes one serial in the list. Times are in whole seconds, as in
// certificates.
type Record struct {
	Serial    string    `json:"serial"` // 32 hexadecimal digits
	Name      string    `json:"name"`
	Kind      Kind      `json:"kind,omitempty"`
	Rights    Rights    `json:"rights"` // of an invitation: those of the later identity
	State     State     `json:"state"`
	Reusable  bool      `json:"reusable,omitempty"`
	Uses      int       `json:"uses,omitempty"`      // of an invitation: how many may join with it, if more than one
	Used      int       `json:"used,omitempty"`      // and how many have
	Via       string    `json:"via,omitempty"`       // of an identity: the serial of an invitation with Uses
	Ephemeral bool      `json:"ephemeral,omitempty"` // the identity goes when it was disconnected for EphemeralTime
	Node      bool      `json:"node,omitempty"`      // of a node that is not the network's first: it has a node's certificate too
	Issued    time.Time `json:"issued"`
	Expires   time.Time `json:"expires"`
	Key       string    `json:"key"`                 // SHA-256 of the public key (SubjectPublicKeyInfo), or of a token, in hexadecimal
	First     string    `json:"first,omitempty"`     // of a renewed certificate: the serial before all renewals
	Into      string    `json:"into,omitempty"`      // the serial that replaced it: the identity, or the renewed certificate
	Ended     time.Time `json:"ended,omitzero"`      // when it was burnt or revoked
	By        string    `json:"by,omitempty"`        // the address of the exchange that burnt it
	IssuedBy  string    `json:"issued_by,omitempty"` // the serial of the requesting ticket; empty: a user of the node's machine
	Seen      time.Time `json:"seen,omitzero"`       // last entry, or of an ephemeral identity, last moment of a connection; may lag after a crash
	From      string    `json:"from,omitempty"`      // the address of that entry
}

// Live reports whether the record occupies its name at that time.
func (r *Record) Live(now time.Time) bool {
	return (r.State == Invited || r.State == Active) && !now.After(r.Expires)
}

// what names the record for people: "ticket ci".
func (r *Record) what() string { return r.kind() + " " + r.Name }

func (r *Record) kind() string { return string(cmp.Or(r.Kind, "ticket")) }

// The list is one file, replaced as a whole. A line holds the version, the network and
// the SHA-256 of the rest; then come the records as JSON. A truncated or changed file is
// damaged, and none of it is trusted.
const (
	listName    = "tickets"
	listVersion = "fbus-tickets 1"
	listLimit   = 16 << 20
)

func formatList(network string, records []Record) ([]byte, error) {
	if records == nil {
		records = []Record{}
	}
	body, err := json.MarshalIndent(records, "", " ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(fmt.Appendf(nil, "%s %s %x\n", listVersion, network, sha256.Sum256(body)), body...), nil
}

func parseList(network string, data []byte) ([]Record, error) {
	head, body, _ := bytes.Cut(data, []byte("\n"))
	if !bytes.HasPrefix(head, []byte(listVersion+" ")) {
		return nil, errorf(args.CodeDamaged, "it does not begin with %q", listVersion)
	}
	want := fmt.Sprintf("%s %s %x", listVersion, network, sha256.Sum256(body))
	if string(head) != want {
		if !bytes.HasPrefix(head, []byte(listVersion+" "+network+" ")) {
			return nil, errorf(args.CodeDamaged, "it is not the list of network %s", network)
		}
		return nil, errorf(args.CodeDamaged, "its checksum does not match its content")
	}
	var records []Record
	if err := args.DecodeStrict(body, &records); err != nil { // unknown fields would be lost with the next change
		return nil, errorf(args.CodeDamaged, "%v", err)
	}
	seen := map[string]bool{}
	for i := range records {
		if err := records[i].check(); err != nil {
			return nil, err
		}
		if seen[records[i].Serial] {
			return nil, errorf(args.CodeDamaged, "serial %s is in it twice", records[i].Serial)
		}
		seen[records[i].Serial] = true
	}
	return records, nil
}

func (r *Record) check() error {
	switch {
	case !isSerial(r.Serial):
		return errorf(args.CodeDamaged, "invalid serial %q", args.Shown(r.Serial))
	case CheckName(r.Name) != nil:
		return errorf(args.CodeDamaged, "serial %s has the name %q", r.Serial, args.Shown(r.Name))
	case !slices.Contains([]State{Invited, Active, Burnt, Revoked}, r.State):
		return errorf(args.CodeDamaged, "serial %s is in the state %q", r.Serial, args.Shown(string(r.State)))
	case len(r.Key) != 64 || !isHex(r.Key):
		return errorf(args.CodeDamaged, "serial %s has no key", r.Serial)
	case r.IssuedBy != "" && !isSerial(r.IssuedBy):
		return errorf(args.CodeDamaged, "serial %s was issued by %q", r.Serial, args.Shown(r.IssuedBy))
	case r.Via != "" && !isSerial(r.Via):
		return errorf(args.CodeDamaged, "serial %s has joined with %q", r.Serial, args.Shown(r.Via))
	case r.Uses < 0 || r.Used < 0:
		return errorf(args.CodeDamaged, "serial %s has a negative number of uses", r.Serial)
	case r.Kind != "" && r.Kind != Token:
		return errorf(args.CodeDamaged, "serial %s is of the kind %q", r.Serial, args.Shown(string(r.Kind)))
	case r.First != "" && !isSerial(r.First):
		return errorf(args.CodeDamaged, "serial %s was %q at first", r.Serial, args.Shown(r.First))
	case r.Into != "" && !isSerial(r.Into):
		return errorf(args.CodeDamaged, "serial %s became %q", r.Serial, args.Shown(r.Into))
	}
	return nil
}
