package trust

import (
	"crypto/tls"
	"errors"

	"fbus/bus/args"
)

// errorf returns an error with a code of args. If the last value is an error, it becomes
// the cause, and its hint becomes the new error's hint.
func errorf(code, format string, values ...any) *args.Error {
	e := args.Errorf(code, format, values...)
	if n := len(values); n > 0 {
		e.Err, _ = values[n-1].(error)
	}
	if below, ok := errors.AsType[*args.Error](e.Err); ok {
		e.Hint = below.Hint
	}
	return e
}

// caused returns an error whose message explains err in our words.
func caused(err error, code, format string, values ...any) *args.Error {
	e := errorf(code, format, values...)
	e.Err = err
	return e
}

// orHint adds a hint to an error without one.
func orHint(e *args.Error, format string, values ...any) *args.Error {
	if e.Hint == "" {
		e.WithHint(format, values...)
	}
	return e
}

// refusal is an error of VerifyConnection: this side refuses the peer, and no frame of the
// peer reported it.
type refusal struct{ err *args.Error }

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

// refuse marks an error of VerifyConnection.
func refuse(err error) error {
	if e, ok := errors.AsType[*args.Error](err); ok {
		return refusal{e}
	}
	return err
}

// Refused reports whether this side failed a handshake because it refuses the peer's
// certificate.
func Refused(err error) bool {
	return errors.As(err, new(refusal)) || errors.As(err, new(*tls.CertificateVerificationError))
}
