package wire

// Batch collects the connections that the handling of some frames has written
// to, so that each is flushed once behind them. It belongs to one goroutine.
type Batch struct {
	conns []*Conn
	dec   Decoder
}

// Send appends f to the bytes that c writes when the batch is flushed.
func (b *Batch) Send(c *Conn, f Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := f.(*DataFrame); ok && c.direct(d) {
		return c.err
	}
	if err := c.append(f); err != nil {
		return err
	}
	if !c.dirty && !c.writing {
		c.dirty = true
		b.conns = append(b.conns, c)
	}
	return nil
}

// Flush writes all that was sent through the batch.
func (b *Batch) Flush() {
	for i, c := range b.conns {
		c.mu.Lock()
		c.dirty = false
		c.flush()
		c.mu.Unlock()
		b.conns[i] = nil
	}
	b.conns = b.conns[:0]
}
