package commands

import (
	"fbus/bus/args"
)

// nextStep returns the hint for a failure without one: by its code, which is more
// specific, or by its step. Every failure gets a hint.
func nextStep(step, code string) string {
	if hint := nextOf(code); hint != "" {
		return hint
	}
	switch step {
	case "address":
		return "choose a node by --node ADDR, FBUS_NODE=ADDR, FBUS_TICKET=FILE or fbus join TICKET, the first of them that is given"
	case "socket", "connection":
		return "fbus status shows which node is used, and why; --node names another"
	case "dns", "tcp", "tls":
		return "is it the right address? fbus serve prints where it listens"
	case "certificate":
		return "ask for a new ticket; fbus log at the node shows why it refused this one"
	case "clock":
		return "check the clock at both ends: date -u"
	}
	return "fbus log at the node shows what it refused; compare fbus --version at both ends"
}

// nextOf returns the next step for a code, "" if there is none.
func nextOf(code string) string {
	switch code {
	case args.CodeBusy:
		return "fbus call -w 1m waits for room; give each user a ticket, or raise fbus serve --max-per-ticket or --max-connections"
	case args.CodeDraining:
		return "fbus call -w 1m waits for the next node"
	case args.CodeVersion:
		return "compare fbus --version at both ends, and replace the older one"
	case args.CodeNetwork:
		return "ask for a ticket of the node's network"
	case args.CodeProtocol:
		return "the program that listens there is not an fbus node: is it the right address?"
	case args.CodeNoNode:
		return "is the node running, and not stopped? fbus status on its machine shows that"
	case args.CodeDenied:
		return "ask the owner of the node: fbus serve --socket-group admits users of the machine, fbus invite those of other machines"
	case args.CodeListLost:
		return "the node admits nobody until its list of tickets is readable again: the stderr of fbus serve has the reason"
	case args.CodeBadTicket:
		return "the file must hold one ticket, complete and unchanged: ask for a new one"
	case args.CodeStorage, args.CodeUnsafe:
		return "is it the right file or directory, and is it yours? FBUS_HOME names the directory of fbus"
	case args.CodeBadCertificate, args.CodeWrongUse, args.CodeNoCertificate:
		return "ask for a new ticket, or, with a PKI of your own, for a certificate with its URI names: fbus:name:NAME, fbus:call:GLOB, …"
	}
	return ""
}
