package node

import (
	"bytes"
	"encoding/json"
	"fmt"

	"fbus/bus/args"
	"fbus/bus/wire"
)

// handleOffer adds, replaces or withdraws an offer. n.mu is held.
func (s *session) handleOffer(b *wire.Batch, f *wire.OfferFrame) error {
	s.fresh = false
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
	switch {
	case !args.ValidName(f.Name):
		return args.CodeUsage, fmt.Sprintf("invalid function name %q: it must be at most 128 letters, digits, _ . -, and not begin with . or -", args.Shown(f.Name))
	case bytes.HasPrefix(f.Name, []byte("fbus.")) && !s.internal:
		return args.CodeDenied, "names that begin with fbus. are the node's own"
	case f.Slots > 0 && !s.peer.mayOffer(string(f.Name)):
		return args.CodeDenied, fmt.Sprintf("%s may not offer %s", s.peer.Caller, f.Name)
	case s.node.draining && s.offers[string(f.Name)] == nil && f.Slots > 0:
		return args.CodeDraining, "the node is shutting down"
	case s.textWith(f) > maxOfferText:
		return args.CodeBusy, fmt.Sprintf("too much text in the descriptions and schemas of this connection (limit %d bytes)", maxOfferText)
	case len(f.Schema) > 0 && !json.Valid(f.Schema):
		return args.CodeUsage, "the schema is not valid JSON"
	case s.offers[string(f.Name)] == nil && len(s.offers) >= maxOffers:
		return args.CodeBusy, fmt.Sprintf("too many offers on this connection (limit %d)", maxOffers)
	}
	return "", ""
}

// textWith returns how many bytes of text the session's offers hold with f among them.
func (s *session) textWith(f *wire.OfferFrame) int {
	n := s.text + len(f.Description) + len(f.Arguments) + len(f.Note) + len(f.Schema)
	if o := s.offers[string(f.Name)]; o != nil {
		n -= o.text()
	}
	return n
}

func (s *session) setOffer(b *wire.Batch, f *wire.OfferFrame) {
	n := s.node
	name := string(f.Name)
	o := s.offers[name]
	if f.Slots == 0 {
		if o != nil {
			delete(s.offers, name)
			s.text -= o.text()
			o.fn.remove(o)
			o.fn.settle(b)
		}
		return
	}
	if o == nil {
		fn := n.functions[name]
		if fn == nil {
			fn = newFunction(n, name)
		}
		n.tick++
		o = &offer{session: s, fn: fn, used: n.tick, since: n.tick}
		for _, c := range s.out { // calls of an offer withdrawn before still take slots
			if c.fn == fn {
				c.offer = o // its own is out of the registry
				o.busy++
			}
		}
		s.offers[name] = o
		fn.add(o)
	}
	s.text = s.textWith(f)
	slots := int(f.Slots)
	changed := o.slots != slots
	o.slots = slots
	o.fn.fix(o)
	o.idempotent = f.Flags&wire.FlagIdempotent != 0
	o.description, o.arguments = string(f.Description), string(f.Arguments)
	o.note, o.schema = string(f.Note), string(f.Schema)
	o.fn.settle(b)
	if !s.internal && changed {
		n.cfg.Note("connection %d offers %s with %d slots", s.id, name, o.slots)
	}
}
