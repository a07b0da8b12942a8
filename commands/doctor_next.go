package commands

import (
	"fbus/bus/args"
)

// nextStep is the hint for a failure that has none of its own: by its code, which
// says more, else by the step that it was found in. No failure goes without.
func nextStep(step, code string) string {
	if hint := nextOf(code); hint != "" {
		return hint
	}
	switch step {
	case "address":
		return "which node is meant is said by --node ADDR, FBUS_NODE=ADDR, FBUS_TICKET=FILE or fbus join TICKET, in that order"
	case "socket", "connection":
		return "fbus status shows which node is talked to, and why; --node names another"
	case "dns", "tcp", "tls":
		return "is it the right address? the ready line of fbus serve says where it listens"
	case "certificate":
		return "ask for a new ticket; fbus log at the node says why it refuses somebody"
	case "clock":
		return "check the clock at both ends: date -u"
	}
	return "fbus log at the node shows what it refuses, and fbus --version at both ends whether they are alike"
}

// nextOf is the next step that follows from a code alone, or is empty.
func nextOf(code string) string {
	switch code {
	case args.CodeBusy:
		return "fbus call -w 1m waits for room; a ticket of its own for each user shares it out, fbus serve --max-per-ticket and --max-connections give more"
	case args.CodeDraining:
		return "fbus call -w 1m waits for the node that comes after it"
	case args.CodeVersion:
		return "fbus --version at both ends: the older of the two is to be replaced"
	case args.CodeNetwork:
		return "ask for a ticket of the node's network"
	case args.CodeProtocol:
		return "whoever listens there is no fbus node: is it the right address?"
	case args.CodeNoNode:
		return "is the node running, and not stopped? its machine shows it: fbus status there"
	case args.CodeDenied:
		return "ask who runs the node: fbus serve --socket-group lets others of the machine in, fbus invite those of other machines"
	case args.CodeListLost:
		return "nobody is let in before the list of tickets is there again: fbus serve says on its stderr what is wrong with it"
	case args.CodeBadTicket:
		return "a file holds one ticket, whole and as fbus invite has made it: ask for a new one"
	case args.CodeStorage, args.CodeUnsafe:
		return "is it the right file or directory, and is it yours? FBUS_HOME says where fbus keeps its own"
	case args.CodeBadCertificate, args.CodeWrongUse, args.CodeNoCertificate:
		return "ask for a new ticket; of a PKI of your own, for a certificate with the URI names of one: fbus:name:NAME, fbus:call:GLOB, …"
	}
	return ""
}
