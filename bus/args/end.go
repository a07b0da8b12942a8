package args

// End describes how a call ended.
type End struct {
	Source  Source
	Status  int    // exit status: the program's, 128+N for a signal, or that of Code
	Code    string // "exit", a signal's name, or one of the Code constants
	Message string // for a person, from fbus; may be empty
	Hint    string // the next step, or ""
}

// End returns the end of a call that failed with e.
func (e *Error) End() End {
	return End{Source: FromBus, Status: e.Status(), Code: e.Code, Message: e.Error(), Hint: e.Hint}
}

// Source says who decided how a call ended.
type Source uint8

// Sources of an end status.
const (
	FromProgram Source = 0 // the program exited by itself
	FromSignal  Source = 1 // a signal ended it: status is 128+N
	FromBus     Source = 2 // fbus ended the call: the code says why
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

// ParseSource is the source of that name, as String gives it.
func ParseSource(name string) Source {
	for _, s := range []Source{FromProgram, FromSignal} {
		if s.String() == name {
			return s
		}
	}
	return FromBus
}
