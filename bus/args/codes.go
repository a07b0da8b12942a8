package args

// Codes of errors: words for a program, stable as frames are.
const (
	// About entry. They are sent to the peer, as far as possible.
	CodeNoCertificate  = "no_certificate"  // the peer sent none
	CodeOtherNetwork   = "other_network"   // signed by another CA
	CodeExpired        = "expired"         // its time is over, by the clock that looked
	CodeNotYetValid    = "not_yet_valid"   // its time has not come, by the clock that looked
	CodeClock          = "clock"           // the two ends disagree about the time
	CodeRevoked        = "revoked"         // taken back
	CodeUnlisted       = "unlisted"        // the list of issued serials does not hold it
	CodeUsed           = "used"            // an invitation that another key has taken
	CodeWrongUse       = "wrong_use"       // a server's certificate as client, a client's as server, a leaf as CA
	CodeBadCertificate = "bad_certificate" // names, rights or key are invalid
	CodeListLost       = "list_lost"       // the list cannot be read, or is damaged: nobody is admitted
	CodeShut           = "shut"            // a second node admits nobody for now: its list of revoked tickets is missing or too old, or its own ticket is void

	// About the connection.
	CodeTLSVersion = "tls_version" // only TLS 1.3 is spoken
	CodePlainText  = "plain_text"  // no TLS at all
	CodeHTTP       = "http"        // HTTP without TLS
	CodeNotFbus    = "not_fbus"    // TLS, but of another protocol
	CodeReset      = "reset"       // closed by the peer, or on the way
	CodeTimeout    = "timeout"     // the peer was silent
	CodeTLS        = "tls"         // whatever else ends a handshake

	// About files and requests.
	CodeBadTicket = "bad_ticket" // the text is not a ticket
	CodeBadRight  = "bad_right"  // a right, a name or a time that is not allowed
	CodeNameTaken = "name_taken" // a live ticket has that name
	CodeNoTicket  = "no_ticket"  // no ticket of that name or serial
	CodeUnsafe    = "unsafe"     // a file or directory that others can read or change
	CodeDamaged   = "damaged"    // the authority's files have changed
	CodeStorage   = "storage"    // reading or writing failed
)
