package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"
)

// ticketLife is that of a ticket that the network's first node gives its own mesh. It is made
// again in the last third.
const ticketLife = 365 * 24 * time.Hour

// identity returns what this mesh shows other nodes: the ticket that its user has named, the one
// with which this user's node joined the network, or one of its own that the network's first node
// gives it. It is nil if there is none: then only nodes of this user and machine are reached.
func (c *config) identity(ctx context.Context, node *bus.Client, info *bus.NodeInfo) (*find.Identity, error) {
	if c.Identity != nil {
		return c.Identity, nil
	}
	if dir, err := find.JoinedDir(); err == nil {
		if _, err := os.Lstat(dir); err == nil {
			j, err := trust.OpenJoined(dir)
			if err != nil {
				return nil, err
			}
			defer j.Close()
			if t, err := j.Load(info.Network); err == nil && t.Rights.Relay {
				return find.ForTicket(t), nil
			}
		}
	}
	home, err := find.HomeDir()
	if err != nil || len(info.Listens) == 0 {
		return nil, nil
	}
	path := filepath.Join(home, "mesh", info.Network+".ticket")
	if t, err := trust.ReadTicket(path, "ticket of the mesh"); err == nil && time.Until(t.Expires) > ticketLife/3 {
		return find.ForTicket(t), nil
	}
	doc, err := json.Marshal(bus.Invitation{
		Name: "mesh-" + info.Instance[:6], Call: []string{"*"}, Offer: []string{"*"}, Monitor: true, Relay: true,
		Reusable: true, TTL: ticketLife.Seconds(),
	})
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if _, err := node.Call(ctx, &bus.Request{Function: "fbus.invite", Args: args.JSON(doc), Stdout: &text}); err != nil {
		e := args.AsError(err, args.CodeInternal)
		return nil, args.Errorf(e.Code, "the mesh has no ticket for other nodes: %s", e.Message).
			WithHint("FBUS_TICKET=mesh.ticket, with the right relay: see fbus mesh --help")
	}
	t, err := trust.ParseTicket(text.Bytes())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	part := path + ".new"
	if err := os.WriteFile(part, text.Bytes(), 0o600); err != nil {
		return nil, err
	}
	return find.ForTicket(t), os.Rename(part, path)
}
