package trust

import (
	"errors"
	"fmt"
	"strings"
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
