package trust

import (
	"errors"
	"fmt"
	"strings"
)

// Codes of errors: words for a program, stable as frames are.
const (
	// About entry. The peer is told them, so far as it can be.
	CodeNoCertificate  = "no_certificate"  // the peer sent none
	CodeOtherNetwork   = "other_network"   // signed by somebody else's CA
	CodeExpired        = "expired"         // its time is over, by the clock that looked
	CodeNotYetValid    = "not_yet_valid"   // its time has not come, by the clock that looked
	CodeClock          = "clock"           // the two ends disagree about the time
	CodeRevoked        = "revoked"         // taken back
	CodeUnlisted       = "unlisted"        // the list of issued serials does not hold it
	CodeUsed           = "used"            // an invitation that another key has taken
	CodeWrongUse       = "wrong_use"       // a server's as client, a client's as server, a leaf as CA
	CodeBadCertificate = "bad_certificate" // names, rights or key are not what they must be
	CodeListLost       = "list_lost"       // the list can not be read, or is damaged: nobody is admitted

	// About the connection.
	CodeTLSVersion = "tls_version" // only TLS 1.3 is spoken
	CodePlainText  = "plain_text"  // no TLS at all
	CodeHTTP       = "http"        // HTTP without TLS
	CodeNotFbus    = "not_fbus"    // TLS, but of another protocol
	CodeReset      = "reset"       // closed by the peer, or on the way
	CodeTimeout    = "timeout"     // the peer was silent
	CodeTLS        = "tls"         // whatever else ends a handshake

	// About files and requests.
	CodeBadTicket = "bad_ticket" // the text is no ticket
	CodeBadRight  = "bad_right"  // a right, a name or a time that can not be given
	CodeNameTaken = "name_taken" // a live ticket has that name
	CodeNoTicket  = "no_ticket"  // no ticket of that name or serial
	CodeUnsafe    = "unsafe"     // a file or directory that others can read or change
	CodeDamaged   = "damaged"    // the authority's files are not what it wrote
	CodeStorage   = "storage"    // reading or writing failed
)

// Error is why somebody does not get in, or what is wrong with a file. Two of
// them are equal for [errors.Is] if their codes are.
type Error struct {
	Code    string // one of the Code constants
	Message string // what failed: on what: why
	Hint    string // the next step, or ""
	Err     error  // what lies below, if that is known
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an Error with the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// errorf makes an Error; the last argument is its cause if it is an error, and
// the cause's hint is its own until it is given another.
func errorf(code, format string, args ...any) *Error {
	e := &Error{Code: code, Message: fmt.Sprintf(format, args...)}
	if n := len(args); n > 0 {
		e.Err, _ = args[n-1].(error)
	}
	var below *Error
	if errors.As(e.Err, &below) {
		e.Hint = below.Hint
	}
	return e
}

// withHint adds the next step.
func (e *Error) withHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// orHint adds the next step if the cause had none.
func (e *Error) orHint(format string, args ...any) *Error {
	if e.Hint == "" {
		e.Hint = fmt.Sprintf(format, args...)
	}
	return e
}

// short makes somebody's text fit for a message: short and printable.
func short(s string) string {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
}
