package commands

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"fbus/bus"
	"fbus/bus/trust"
)

// ticket is a file with a ticket of the private bus, for calls over TLS.
func (b *bencher) ticket() (string, error) {
	path := filepath.Join(b.dir, "ticket")
	if _, err := os.Lstat(path); err == nil {
		return path, nil
	}
	return path, b.run(nil, b.fbus, "invite", "-q", "--call", "*", "--reusable", "--name", "bench", "-o", path)
}

// prepareCallTLS runs fbus call over TLS, with its handshake, and over the socket.
func prepareCallTLS(b *bencher) (perSecond, perSecond, error) {
	if _, err := b.resident(); err != nil {
		return nil, nil, err
	}
	ticket, err := b.ticket()
	words := []string{b.fbus, "call", "resident", "hello"}
	far := func(d time.Duration) (float64, error) {
		return b.repeat(d, 1, func(int) error { return b.runWith([]string{"FBUS_NODE=", "FBUS_TICKET=" + ticket}, nil, words...) })
	}
	return far, b.command(1, words...), err
}

// prepareRoundTripTLS calls a handler in this process through the private bus's
// node, over TLS and over the socket.
func prepareRoundTripTLS(b *bencher) (perSecond, perSecond, error) {
	file, err := b.ticket()
	if err != nil {
		return nil, nil, err
	}
	t, err := trust.ReadTicket(file)
	if err != nil {
		return nil, nil, err
	}
	far, err := bus.Dial(b.ctx, "", &bus.DialOptions{Credentials: bus.TicketCredentials(t)})
	if err != nil {
		return nil, nil, err
	}
	b.ended = append(b.ended, func() { far.Close() })
	echo := func(context.Context, *bus.Invocation) bus.Result { return bus.Result{Code: "exit"} }
	if _, err := b.client.Offer(b.ctx, bus.Offer{Name: "echo", Slots: 1}, echo); err != nil {
		return nil, nil, err
	}
	near, err := bus.Dial(b.ctx, b.socket, nil)
	if err != nil {
		return nil, nil, err
	}
	b.ended = append(b.ended, func() { near.Close() })
	return b.oneByOne(far, "echo"), b.oneByOne(near, "echo"), nil
}
