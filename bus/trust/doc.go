// Package trust decides which peers may enter a network and what they may do there. It
// holds the network's authority (a CA and the list of the certificates it issued),
// tickets, their rights, revocation, and the TLS configurations. It knows nothing of
// frames, of sessions or of the command line. Its cryptography is the standard library's
// alone.
//
// # Where each check happens
//
// The TLS handshake checks the cryptography: TLS 1.3, a certificate signed directly by
// this network's CA, possession of its key, the validity period, and the key usage (a
// client certificate is not valid for a server). The handshake does not use the list. An
// error there reaches the peer as the bare alert "bad certificate", before the peer has
// proved that the certificate is its own.
//
// After the handshake, and before it reads any byte from the peer, the node calls
// [Authority.Admit]. It checks the list of issued serials, revocation, the recorded
// public key, and the rights. On failure the node sends the error's code and message in
// an ERROR frame, closes the connection, and handles nothing else. Once the connection
// is registered where [Authority.OnRevoke] finds it, the node calls [Authority.Check]
// again, because a ticket may be revoked between the two calls.
//
// # Names in certificates
//
// Rights are URI names (subjectAltName) with the scheme fbus. Names anywhere else, such
// as the common name or a DNS name, mean nothing.
//
//	fbus:name:NAME    the ticket's name, exactly once: [A-Za-z0-9_][A-Za-z0-9_.-]{0,63}
//	fbus:call:GLOB    may call the functions whose names match
//	fbus:offer:GLOB   may offer them
//	fbus:admin        may call the node's own functions, which begin with fbus.
//	fbus:monitor      may see what others do; fbus:admin contains it
//	fbus:relay        may make calls for others, under their names
//	fbus:join         may do nothing but exchange itself for an identity
//
// In NAME and GLOB the characters A-Z a-z 0-9 _ . - * are literal. All others are
// percent-encoded with upper-case digits: ? is %3F, [ is %5B, ] is %5D, ^ is %5E. A
// reader decodes every percent-encoded character. The scheme is reserved: a certificate
// with any other fbus name is refused.
//
// The node's certificate has one DNS name, NETWORK.fbus.invalid. Clients verify that
// name whatever address they dialled. The certificate is for servers only. Tickets are
// for clients only.
//
// # From an invitation to an identity
//
// A ticket is an invitation, unless it is reusable. The joiner makes a key and stores
// it, connects with the invitation, and sends a PKCS#10 request signed by that key.
// [Authority.Exchange] records the key's hash, burns the invitation, and signs a
// certificate with the rights recorded in the list. The same key may ask again until the
// invitation expires, and gets the same certificate. Any other key is refused, so a
// second joiner learns that the ticket was used.
//
// An invitation with Uses is burnt with its last use. Each key gets an identity with a
// name of its own, NAME-1, NAME-2 and so on, whose record names the invitation (Via).
// Revoking the invitation revokes them all. An Ephemeral identity is removed from the list
// when it was disconnected for [EphemeralTime] ([Authority.DropAbsent]).
//
// A ticket's expiry limits only the exchange. The resulting identity is valid for
// [IdentityLife]. It is renewed with the same key ([Authority.Renew]) in the last third
// of that period, until it is revoked.
//
// # Second nodes
//
// A node that is not the network's first ([Second]) has joined with an invitation for a node.
// The answer contains, for the same key, a client's certificate and a node's. It has neither
// the CA's key nor the list. It admits what the CA has signed, unless a numbered list of what
// was revoked contains it: a CRL that [Authority.RevocationList] signs, with the CA's key.
//
// # The CA's end
//
// The CA's certificate is valid for ten years. In its last fifth the authority replaces it
// by one with the same key, name and start. What the CA has signed is valid under both.
// Clients that know only the old one accept the node until that one ends. By then each
// identity was renewed at least once, and the answer contained the new one. No ticket is
// valid longer than the CA's certificate in it.
package trust
