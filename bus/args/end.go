package args

import "fmt"

// End describes how a call ended. The zero End is a program's success.
type End struct {
	Source  Source
	Status  int    // exit status: the program's, 128+N for a signal, or that of Code
	Code    string // "exit" or empty, a signal's name, or one of the Code constants
	Message string // for a person, from fbus or a worker; may be empty. [OneLine] makes it safe to show
	Hint    string // the next step, or ""
}

// OK reports whether a program exited with status 0.
func (e End) OK() bool { return e.Source == FromProgram && e.Status == 0 }

// Err returns nil if a program exited with status 0, an [ExitError] if it ended
// otherwise, and an [Error] if fbus ended the call.
func (e End) Err() error {
	switch {
	case e.OK():
		return nil
	case e.Source == FromBus:
		return &Error{Code: e.Code, Message: e.Message, Hint: e.Hint, status: e.Status}
	}
	return &ExitError{End: e}
}

// ExitError is a program that did not exit with status 0.
type ExitError struct{ End }

// Error describes how the program ended.
func (e *ExitError) Error() string {
	if e.Source == FromSignal {
		return fmt.Sprintf("program was ended by %s", e.Code)
	}
	return fmt.Sprintf("program exited with status %d", e.Status)
}

// End returns the end of a call that failed with e.
func (e *Error) End() End {
	return End{Source: FromBus, Status: e.Status(), Code: e.Code, Message: e.Error(), Hint: e.Hint}
}

// Source is the party that decided how a call ended.
type Source uint8

// Sources of an end status.
const (
	FromProgram Source = 0 // the program exited by itself
	FromSignal  Source = 1 // a signal ended it: status is 128+N
	FromBus     Source = 2 // fbus ended the call: the code is the reason
)

// String names the source as the JSON outputs do.
func (s Source) String() string {
	switch s {
	case FromProgram:
		return "program"
	case FromSignal:
		return "signal"
	}
	return "fbus"
}

// ParseSource returns the source of a name that String returns.
func ParseSource(name string) Source {
	for _, s := range []Source{FromProgram, FromSignal} {
		if s.String() == name {
			return s
		}
	}
	return FromBus
}
