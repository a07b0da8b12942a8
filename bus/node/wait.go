package node

import (
	"fmt"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
)

// patience says how much longer the call may wait as things stand, and what its
// end is then called; negative is without limit.
func (c *call) patience() (code, msg string, left time.Duration) {
	spent := time.Since(c.arrived)
	until := func(limit time.Duration) time.Duration {
		if limit < 0 {
			return -1
		}
		return max(0, limit-spent)
	}
	for _, o := range c.fn.offers {
		if c.allows(o) {
			c.seen = true
			return args.CodeBusy, fmt.Sprintf("%s: no slot is free", c.fn.name), until(c.waitSlot)
		}
	}
	if len(c.refused) > 0 {
		return args.CodeBusy, fmt.Sprintf("%s: every worker said that it is busy", c.fn.name), 0
	}
	msg = fmt.Sprintf("%s: no such function", c.fn.name)
	if c.on != "" && len(c.fn.offers) > 0 {
		msg = fmt.Sprintf("%s: no worker that offers it matches %s", c.fn.name, clean([]byte(c.on)))
	}
	left = until(c.waitFunction)
	if c.seen && left >= 0 && left < goneTime {
		left = goneTime // its workers have just gone: they may be restarting
	}
	if c.node.cfg.Successor && left >= 0 && !reserved(c.fn.name) {
		left = max(left, time.Until(c.node.started.Add(goneTime))) // they may be on their way here
	}
	return args.CodeNoFunction, msg, left
}

// setTimer bounds the wait of a queued call as things stand now.
func (c *call) setTimer() {
	c.stopWaiting()
	_, _, left := c.patience()
	if left < 0 {
		return
	}
	gen := c.waitGen
	c.waitTimer = time.AfterFunc(left, func() { c.waited(gen) })
}

func (c *call) stopWaiting() {
	c.waitGen++
	if c.waitTimer != nil {
		c.waitTimer.Stop()
		c.waitTimer = nil
	}
}

// waited ends a call whose wait is over.
func (c *call) waited(gen int) {
	var b wire.Batch
	c.node.mu.Lock()
	if c.queued && c.waitGen == gen {
		code, msg, _ := c.patience()
		c.endFor(&b, code, msg)
	}
	c.node.mu.Unlock()
	b.Flush()
}

// expire ends a call whose deadline has come.
func (c *call) expire() {
	var b wire.Batch
	c.node.mu.Lock()
	c.endFor(&b, args.CodeDeadline, bus.DeadlineMessage)
	c.node.mu.Unlock()
	b.Flush()
}
