package vectors

import (
	"encoding/hex"
	"fmt"
	"slices"
)

// NotJudged is why a check says nothing about the other side.
type NotJudged string

func (n NotJudged) Error() string { return "not judged: " + string(n) }

// player is a client in a transcript. What the page leaves to the node may differ from the file: the
// ids of its calls, the times and windows of a CALL, the parts in which a stream and its credit come.
type player struct {
	*Conn
	caps []any               // that it has named
	ids  map[float64]float64 // of the node's calls, by those in the file
	due  map[stream]float64  // what the file has granted so far
}

// PlayNode plays a transcript with a node. command has the node do something: "drain" or "stop".
func (t *Transcript) PlayNode(connect Connect, command func(string) error) error {
	players := map[string]*player{}
	player := func(name string) (*player, error) {
		if players[name] == nil {
			c, err := connect()
			if err != nil {
				return nil, err
			}
			players[name] = &player{Conn: c, ids: map[float64]float64{}, due: map[stream]float64{}}
		}
		return players[name], nil
	}
	for _, l := range t.Lines {
		if l.Node != "" {
			if err := command(l.Node); err != nil {
				return err
			}
			continue
		}
		name, node := l.From, l.From == "node"
		if node {
			name = l.To
		}
		p, err := player(name)
		switch {
		case err != nil:
		case node && l.Close:
			var code string
			if code, err = p.Ended(); code != "" {
				err = fmt.Errorf("closed with the code %q", code)
			}
		case node:
			err = p.expect(l.Frame.([]any))
		case l.Close:
			p.Close()
		default:
			err = p.send(l.Frame)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// real returns a frame of the file with the id that the node has given its call. byNode: the side
// that has opened the call sends it.
func (p *player) real(f []any, byNode bool) []any {
	opener := false
	switch f[0] {
	case 6.:
		opener = f[2] == 0.
	case 8.:
		opener = f[2] != 0.
	case 7., 9.:
		opener = true
	case 10., 11.:
	default:
		return f
	}
	id, ok := p.ids[number(f, 1, 0)]
	if !ok || opener != byNode {
		return f
	}
	f = slices.Clone(f)
	f[1] = id
	return f
}

// send sends a frame of the file, as far as there is credit for it.
func (p *player) send(frame any) error {
	f, ok := frame.([]any)
	if !ok {
		p.Send(frame)
		return nil
	}
	if f[0] == 1. && len(f) > 6 {
		p.caps, _ = f[6].([]any)
	}
	f = p.real(f, false)
	id := number(f, 1, 0)
	switch {
	case f[0] == 6. && binSize(f, 3) > 0:
		s := stream{id, number(f, 2, 0)}
		for data := Bin(f[3]); len(data) > 0; {
			if err := p.await(s, 1); err != nil {
				return err
			}
			n := min(len(data), int(p.watch.theirs[s]))
			p.Send([]any{6., id, s.number, NewBin(data[:n])})
			data = data[n:]
		}
		return nil
	case f[0] == 10.:
		if err := p.await(stream{id, 1}, binSize(f, 6)); err != nil {
			return err
		}
	}
	p.Send(f)
	return nil
}

// await waits until there is so much credit for a stream.
func (p *player) await(s stream, n float64) error {
	for n > 0 && p.watch.theirs[s] < n {
		if _, err := p.Expect(F(typeGrant, s.id, s.number)); err != nil {
			return err
		}
	}
	return nil
}

// expect reads what the file expects of the node.
func (p *player) expect(f []any) error {
	f = p.real(slices.Clone(f), true)
	id := number(f, 1, 0)
	s := stream{id, number(f, 2, 0)}
	switch f[0] {
	case 1.:
		got, err := p.Expect(f[:min(len(f), 6)])
		for _, name := range p.caps {
			var theirs []any
			if len(got) > 6 {
				theirs, _ = got[6].([]any)
			}
			if err == nil && !slices.Contains(theirs, name) {
				err = NotJudged(fmt.Sprintf("the node has not named the capability %v", name))
			}
		}
		return err
	case 5.:
		for _, i := range []int{1, 7, 8, 9, 10, 12, 13} {
			if i < len(f) {
				f[i] = nil
			}
		}
		got, err := p.Expect(f)
		if err == nil {
			p.ids[id] = number(got, 1, 0)
		}
		return err
	case 6.:
		want, got := Bin(f[3]), []byte{}
		for {
			part, err := p.Expect(f[:3])
			if err != nil {
				return err
			}
			if got = append(got, Bin(part[3])...); len(got) >= len(want) {
				if string(got) != string(want) {
					return fmt.Errorf("the bytes are %s, not %s", hex.EncodeToString(got), hex.EncodeToString(want))
				}
				return nil
			}
		}
	case 8.:
		for p.due[s] += number(f, 3, 0); p.watch.granted[s] < p.due[s]; {
			if _, err := p.Expect(f[:3]); err != nil {
				return err
			}
		}
		return nil
	}
	_, err := p.Expect(f)
	return err
}
