// Package trust says who may enter a network, and what they may do there: the
// network's authority (a CA and the list of what it has issued), tickets, the
// rights that stand in them, revocation, and the TLS configurations that follow.
// It knows nothing of frames, of sessions or of the command line, and does its
// cryptography with the standard library alone.
//
// # What is checked where
//
// The TLS handshake checks what is cryptographic: TLS 1.3, a certificate that
// this network's CA signed itself, the possession of its key, the time, the use
// (a client's is no server's). It sees no list, because an error there reaches
// the peer as the bare alert "bad certificate", before the peer has proved that
// the certificate is its own.
//
// After the handshake, and before it reads a byte of what the peer sends, the node
// calls [Authority.Admit]: the list of issued serials, revocation, the recorded
// public key, the rights. If that fails, the node tells the peer the error's code
// and message in an ERROR frame and closes; it handles nothing. Once the connection is
// where [Authority.OnRevoke] would find it, [Authority.Check] once more: a
// ticket may be revoked between the two.
//
// # Names in certificates
//
// Rights are URI names (subjectAltName) with the scheme fbus. Names anywhere else,
// the common name or a DNS name, mean nothing.
//
//	fbus:name:NAME    the ticket's name, exactly once: [A-Za-z0-9_][A-Za-z0-9_.-]{0,63}
//	fbus:call:GLOB    may call the functions whose names match
//	fbus:offer:GLOB   may offer them
//	fbus:admin        may call the node's own functions, which begin with fbus.
//	fbus:join         may do nothing but exchange itself for an identity
//
// In NAME and GLOB the characters A-Z a-z 0-9 _ . - * stand for themselves, and
// every other one is percent-encoded with upper-case digits: ? is %3F, [ is %5B,
// ] is %5D, ^ is %5E. A reader decodes whatever is percent-encoded. The scheme is
// reserved: a certificate with another name in it is refused.
//
// The node's certificate has one DNS name, NETWORK.fbus.invalid, which clients
// verify whatever the address they dialled, and is for servers only. Tickets are
// for clients only.
//
// # From an invitation to an identity
//
// A ticket is an invitation, unless it is reusable. The joiner makes a key and
// stores it, connects with the invitation, and sends a PKCS#10 request signed by
// that key. [Authority.Exchange] records the key's hash, burns the invitation and
// signs a certificate with the rights that the list holds for it. The same key may
// ask again until the invitation expires, and gets the same certificate; another
// key is refused. So whoever comes second learns that the ticket was used.
//
// A ticket's expiry is about the exchange. The identity it turns into is good for
// [IdentityLife], and renewed with the same key ([Authority.Renew]) in the last
// third of it, for as long as it is not revoked.
package trust
