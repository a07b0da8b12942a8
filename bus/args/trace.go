package args

import "strings"

// maxTrace bounds a traceparent and a tracestate, each.
const maxTrace = 512

// Trace returns the trace of a call as the wire has it: the traceparent and, on a second
// line, the tracestate (W3C Trace Context, sections 3.2 and 3.3). It is empty if the
// traceparent is not valid, and without a tracestate that is not.
func Trace(parent, state string) string {
	switch {
	case !validParent(parent):
		return ""
	case state == "" || len(state) > maxTrace || strings.ContainsFunc(state, notPrinted):
		return parent
	}
	return parent + "\n" + state
}

// SplitTrace is the reverse of Trace. A trace that is not valid counts as none.
func SplitTrace(trace string) (parent, state string) {
	parent, state, _ = strings.Cut(trace, "\n")
	parent, state, _ = strings.Cut(Trace(parent, state), "\n")
	return parent, state
}

// validParent reports whether text is a traceparent of version 00, or could be one of a later
// version, which may have more after a dash.
func validParent(text string) bool {
	const least = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if len(text) < least || len(text) > maxTrace || text[:2] == "ff" || strings.ContainsFunc(text, notPrinted) {
		return false
	}
	for i := range least {
		c := text[i]
		if dash := i == 2 || i == 35 || i == 52; dash != (c == '-') || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	if len(text) > least && (text[:2] == "00" || text[least] != '-') {
		return false
	}
	return strings.Trim(text[3:35], "0") != "" && strings.Trim(text[36:52], "0") != ""
}

func notPrinted(r rune) bool { return (r < ' ' || r > '~') && r != '\t' }
