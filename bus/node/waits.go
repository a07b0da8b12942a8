package node

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/wire"
)

// note adds to a job why it waits, or how far it is. What was posted is shown to its poster and to
// administrators alone.
func (q *asked) note(j *jobs.Job, i *bus.JobInfo, one bool) {
	i.Note = q.whyWaits(j, i, one)
	if !q.peer.admin() && !q.peer.posted(j.ID, &j.Poster) {
		i.Item, i.ItemEncoding, i.Unique = "", "", ""
	}
	if i.State != jobs.Running {
		return
	}
	n := q.node
	id, _ := jobs.ParseID(i.ID)
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.posted[id]; c != nil {
		i.Progress = c.progress.last()
	}
}

// whyWaits returns in words why a job does not run now, "" if it does, or is about to, or has
// ended. fbus jobs, describe and doctor show these words. Rights are looked up only for one job,
// not for each of a list.
func (q *asked) whyWaits(j *jobs.Job, i *bus.JobInfo, one bool) string {
	store := q.node.cfg.Jobs
	switch due := i.Due.Round(time.Second).Format(time.RFC3339); {
	case store.Overdue(j): // what makes it wait is something else
	case i.State == jobs.Delayed && jobs.Lacked(j) != "":
		return jobs.Lacked(j) + "; next try at " + due
	case i.State == jobs.Delayed && j.Last != nil:
		return "next try at " + due
	case i.State == jobs.Delayed:
		return "delayed until " + due
	case i.State != jobs.Queued:
		return ""
	}
	if err := store.Blocked(i.Function); err != nil {
		return q.peer.told(err)
	}
	if store.Holds().Function(i.Function) {
		return bus.HeldNote(i.Function)
	}
	if one {
		if err := q.node.MayRun(&j.Poster, j.Function); err != nil {
			return "denied: " + err.Error()
		}
	}
	key := i.Function + " " + i.On
	why, known := q.unserved[key]
	if !known {
		on, _ := wire.ParseOn(i.On)
		q.node.mu.Lock()
		why = q.node.noSlot(i.Function, on)
		q.node.mu.Unlock()
		if q.unserved == nil || len(q.unserved) > 1000 {
			q.unserved = map[string]string{}
		}
		q.unserved[key] = why
	}
	return why
}

// NoFreeSlot says why a call waits, wherever that is shown.
const NoFreeSlot = "no free slot"

// AllHeld begins the reason of a call that waits since all workers are held. What ends that follows.
const AllHeld = "all its workers are held: "

// noSlot returns in words why a call of a function has no slot now on workers that match, ""
// if it has one. n.mu is held.
func (n *Node) noSlot(name string, on wire.On) string {
	fn := n.functions[name]
	if fn == nil {
		return "no worker offers it"
	}
	matching, held, full, by, most, elsewhere := 0, 0, 0, "", 0, false
	for _, list := range fn.all() {
		for _, o := range list {
			switch s := o.session; {
			case !on.Match(s.name, string(s.prefix)):
				continue
			case o.free() > 0:
				return ""
			case o.heldBy() != "":
				held, by = held+1, cmp.Or(by, o.heldBy()) // those here come first
			case o.relay && o.elsewhere > o.slots:
				elsewhere = true // its node may have a slot, and is asked when a call waits
			case o.slots > o.busy+o.taking && s.full():
				full, most = full+1, s.most
			}
			matching++
		}
	}
	switch e := fn.whyStopped(&on, anywhere); {
	case elsewhere:
		return NoFreeSlot + " here: a free one at another node is used"
	case matching == 0 && e != nil:
		return "no worker can start it: " + strings.TrimPrefix(e.Message, name+": cannot start: ")
	case matching == 0 && len(fn.offers.list)+len(fn.stopped) > 0 && on.String() != "":
		return "no worker that offers it matches " + args.Shown(on.String())
	case matching == 0:
		return "no worker offers it"
	case held == matching:
		return AllHeld + by
	case full > 0 && held+full == matching:
		return fmt.Sprintf("%s: its worker runs as many programs as it may (max-running %d)", NoFreeSlot, most)
	}
	return NoFreeSlot
}
