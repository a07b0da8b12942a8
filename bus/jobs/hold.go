package jobs

import (
	"encoding/json"
	"fmt"
	"slices"

	"fbus/bus/args"
	"fbus/bus/jobs/store"
)

// Holds lists the functions and workers that an administrator has held.
type Holds struct {
	Functions []string `json:"functions,omitempty"` // whose jobs wait
	On        []string `json:"on,omitempty"`        // globs of workers that get nothing new
}

// Bounds of Holds.
const (
	maxHeldFunctions = 1000
	maxHeldWorkers   = 100
)

var heldKey = []byte("held")

// Holds returns what is held.
func (m *Manager) Holds() *Holds { return m.holds.Load() }

// Function reports whether jobs of a function wait.
func (h *Holds) Function(name string) bool {
	_, found := slices.BinarySearch(h.Functions, name)
	return found
}

// Hold adds to what is held. When it returns nil, that is on disk.
func (m *Manager) Hold(more Holds) error {
	return m.changeHolds(func(h *Holds) error {
		h.Functions, h.On = append(h.Functions, more.Functions...), append(h.On, more.On...)
		for _, list := range []*[]string{&h.Functions, &h.On} {
			slices.Sort(*list)
			*list = slices.Compact(*list)
		}
		if len(h.Functions) > maxHeldFunctions || len(h.On) > maxHeldWorkers {
			return args.Errorf(args.CodeBadInput, "too much is held (limit %d functions, %d globs of workers)", maxHeldFunctions, maxHeldWorkers)
		}
		return nil
	})
}

// Release ends what Hold began. It refuses what is not held.
func (m *Manager) Release(less Holds) error {
	err := m.changeHolds(func(h *Holds) error {
		for _, l := range []struct {
			list *[]string
			less []string
		}{{&h.Functions, less.Functions}, {&h.On, less.On}} {
			for _, word := range slices.Compact(slices.Sorted(slices.Values(l.less))) {
				i := slices.Index(*l.list, word)
				if i < 0 {
					return args.Errorf(args.CodeBadInput, "%s: not held", args.Shown(word)).WithHint("fbus hold lists what is held")
				}
				*l.list = slices.Delete(*l.list, i, i+1)
			}
		}
		return nil
	})
	if err == nil {
		for _, name := range less.Functions {
			m.wake(name)
		}
	}
	return err
}

// changeHolds writes a change of what is held, and has it take effect.
func (m *Manager) changeHolds(change func(h *Holds) error) error {
	m.holding.Lock()
	defer m.holding.Unlock()
	was := m.Holds()
	h := &Holds{slices.Clone(was.Functions), slices.Clone(was.On)}
	if err := change(h); err != nil {
		return err
	}
	text, err := json.Marshal(h)
	if err == nil {
		err = m.store.Apply(store.Op{Frees: true, Run: func(t *store.Tx) error { return store.Wrap(t.Put(store.BucketMeta, heldKey, text)) }})
	}
	if err == nil {
		m.holds.Store(h)
		m.host.HoldWorkers(h.On)
	}
	return err
}

// readHolds reads what is held.
func (m *Manager) readHolds() error {
	h := &Holds{}
	err := m.store.View(func(t *store.Tx) error {
		text, err := t.Get(store.BucketMeta, heldKey)
		if err == nil && text != nil {
			err = json.Unmarshal(text, h)
		}
		if err != nil {
			err = fmt.Errorf("what is held: %w", err)
		}
		return err
	})
	if err == nil {
		m.holds.Store(h)
		m.host.HoldWorkers(h.On)
	}
	return err
}
