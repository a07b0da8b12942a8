package node

import (
	"fmt"
	"slices"
	"strings"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
)

// handleOffer adds, replaces or withdraws an offer. n.mu is held.
func (s *session) handleOffer(b *wire.Batch, f *wire.OfferFrame) error {
	s.fresh, f.Schema = false, args.WithoutBOM(f.Schema)
	answer := &wire.OfferedFrame{Seq: f.Seq}
	if code, msg := s.refuseOffer(f); code != "" {
		answer.Code, answer.Message = []byte(code), []byte(msg)
		if code == args.CodeDenied {
			s.node.denied(&s.peer, args.Shown(f.Name), msg)
		}
	} else if !s.gone {
		// The answer goes first: a call may follow at once.
		b.Send(s.conn, answer)
		s.setOffer(b, f)
		return nil
	}
	return b.Send(s.conn, answer)
}

// refuseOffer returns why an offer is refused, if it is.
func (s *session) refuseOffer(f *wire.OfferFrame) (code, msg string) {
	own, schema, attributes := reserved(string(f.Name)), error(nil), args.CheckAttributes(attributesOf(f))
	if len(f.Schema) > 0 {
		schema = args.CheckJSON(f.Schema)
	}
	switch {
	case !args.ValidName(f.Name):
		return args.CodeUsage, fmt.Sprintf("invalid function name %q: it must be at most 128 letters, digits, _ . -, and not begin with . or -", args.Shown(f.Name))
	case own && !s.internal && (string(f.Name) != bus.MeshFunction || !s.relays || !s.peer.admin()):
		return args.CodeDenied, "names that begin with fbus. are the node's own"
	case !own && !withdraws(f) && !s.peer.mayOffer(string(f.Name)):
		return args.CodeDenied, fmt.Sprintf("%s may not offer %s", s.peer.Caller, f.Name)
	case strings.HasPrefix(s.name, "@") && !s.relays && !withdraws(f):
		return args.CodeDenied, s.peer.Caller + " may not offer as " + s.name + ": the name of a worker that begins with @ is that of another node"
	case f.Flags&wire.FlagRelay != 0 && !s.relays:
		return args.CodeDenied, s.peer.Caller + " may not offer for other nodes"
	case s.node.draining && s.offers[string(f.Name)] == nil && !withdraws(f):
		return args.CodeDraining, "the node is shutting down"
	case schema != nil:
		return args.CodeUsage, "the schema: " + schema.Error()
	case attributes != nil:
		return args.CodeUsage, attributes.Error()
	case len(attributesOf(f)) != len(f.Attributes)/2:
		return args.CodeUsage, "an attribute comes twice"
	case withdraws(f):
		return "", ""
	}
	return s.offerTooMuch(f)
}

// withdraws reports whether an OFFER ends its offer.
func withdraws(f *wire.OfferFrame) bool {
	return f.Slots == 0 && f.Flags&(wire.FlagCannotStart|wire.FlagRelay) == 0
}

// whyStopped returns why a worker cannot start the program, nil if it can.
func whyStopped(f *wire.OfferFrame) *args.Error {
	if f.Slots > 0 || f.Flags&wire.FlagCannotStart == 0 {
		return nil
	}
	code, why := args.CodeCannotRun, string(f.Note)
	if f.Flags&wire.FlagNotFound != 0 {
		code = args.CodeNotFound
	}
	if why == "" {
		why = "its worker cannot start it"
	}
	return args.CannotStart(args.Errorf(code, "%s: %s", f.Name, why))
}

// offerTooMuch returns why there is no room for an offer, if there is none. Identities are held to
// these bounds; the connections of the node's own user each by itself.
func (s *session) offerTooMuch(f *wire.OfferFrame) (code, msg string) {
	n, id := s.node, s.identity
	offers, text, of := len(s.offers), s.text, "this connection"
	if id.rank != owner {
		offers, text, of = id.offers, id.text, id.name
	}
	more, size := 1, int64(len(f.Description)+len(f.Arguments)+len(f.Note)+len(f.Schema))
	for _, text := range slices.Concat(f.Attributes, f.Behind, f.Held) {
		size += int64(len(text))
	}
	if o := s.offers[string(f.Name)]; o != nil {
		more, size = 0, size-o.text()
	}
	switch {
	case text+size > maxOfferText:
		return args.CodeBusy, fmt.Sprintf("too much text in the descriptions and schemas of %s (limit %d bytes)", of, maxOfferText)
	case offers+more > maxOffers:
		return args.CodeBusy, fmt.Sprintf("too many offers of %s (limit %d)", of, maxOffers)
	}
	if err := n.allows(id, n.buffers(), int64(more)*offerCost+max(size, 0), (*identity).held); err != nil {
		return args.CodeBusy, err.Error()
	}
	return "", ""
}

// count adds offers and their text to what the session and its identity hold. The node's own are
// bounded by themselves.
func (s *session) count(offers int, text int64) {
	id := s.identity
	if s.internal {
		return
	}
	id.offers += offers
	id.text += text
	s.text += text
	id.budget.Add(offers*offerCost + int(text))
}

func (s *session) setOffer(b *wire.Batch, f *wire.OfferFrame) {
	n := s.node
	name := string(f.Name)
	o, stopped := s.offers[name], whyStopped(f)
	if withdraws(f) {
		if o != nil {
			o.final = o.relay && len(f.Note) > 0
			s.drop(b, name, o)
		}
		return
	}
	relay := f.Flags&wire.FlagRelay != 0
	if o != nil && o.relay != relay { // into the other tier
		s.drop(b, name, o)
		o = nil
	}
	fresh := o == nil
	if fresh {
		if o = s.withdrawn[name]; o == nil { // calls that it had before still take slots
			fn := n.functions[name]
			if fn == nil {
				fn = newFunction(n, name)
			}
			o = &offer{session: s, fn: fn, at: [2]int{-1, -1}}
		}
		delete(s.withdrawn, name)
		n.tick++
		o.used, o.since = n.tick, n.tick
		s.offers[name] = o
		s.count(1, 0)
	}
	was := o.text()
	changed := fresh || o.slots != int(f.Slots)
	o.slots, o.relay, o.lastOut = int(f.Slots), relay, s.lastOut
	o.elsewhere, o.behind, o.behindHeld = 0, nil, nil
	if relay {
		o.elsewhere = int(f.Elsewhere)
		for _, on := range f.Behind {
			o.behind = append(o.behind, string(on))
		}
		for _, on := range f.Held {
			o.behindHeld = append(o.behindHeld, string(on))
		}
	}
	o.idempotent = f.Flags&wire.FlagIdempotent != 0
	o.description, o.arguments = string(f.Description), string(f.Arguments)
	o.note, o.schema, o.attributes = string(f.Note), string(f.Schema), attributesOf(f)
	switch o.takes = ""; {
	case f.Flags&wire.FlagTakesInput != 0:
		o.takes = "input"
	case f.Flags&wire.FlagTakesArgs != 0:
		o.takes = "args"
	}
	s.count(0, o.text()-was)
	switch {
	case stopped != nil:
		o.fn.stop(b, o, stopped)
	case fresh:
		o.fn.add(o)
	case o.stopped != nil:
		o.fn.start(o)
		o.fn.add(o)
	default:
		o.fn.fix(o)
	}
	n.changes.worker(o)
	if relay && fresh && n.source != nil && n.source.Ready(name) > 0 {
		n.changes.function(name) // its jobs have waited for that, also where relays are not watched
	}
	s.bound(b, int(f.MaxRunning))
	o.fill(b)
	if !s.internal && changed {
		n.cfg.Note("connection %d offers %s with %d slots", s.id, name, o.slots)
	}
}

// attributesOf returns the attributes of an offer; nil: it has none.
func attributesOf(f *wire.OfferFrame) map[string]string {
	var attributes map[string]string
	for i := 1; i < len(f.Attributes); i += 2 {
		if attributes == nil {
			attributes = map[string]string{}
		}
		attributes[string(f.Attributes[i-1])] = string(f.Attributes[i])
	}
	return attributes
}

// drop withdraws an offer. Calls of it still take slots if it is made again.
func (s *session) drop(b *wire.Batch, name string, o *offer) {
	delete(s.offers, name)
	s.node.changes.worker(o)
	s.count(-1, -o.text())
	o.description, o.arguments, o.note, o.schema, o.attributes, o.behind, o.behindHeld = "", "", "", "", nil, nil, nil
	if o.busy+o.taking > 0 {
		if s.withdrawn == nil {
			s.withdrawn = map[string]*offer{}
		}
		s.withdrawn[name] = o
	}
	if o.stopped != nil {
		o.fn.start(o)
		o.fn.tidy()
		return
	}
	o.fn.remove(b, o)
}
