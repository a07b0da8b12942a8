package hooks

import (
	"sync"
	"time"
)

// maxSeen bounds the keys that are remembered. The oldest go first.
const maxSeen = 100_000

// seen remembers keys for a day, each with a value.
type seen struct {
	mu    sync.Mutex // protects the fields below
	items map[string]*seenItem
	queue []*seenItem // the oldest first; some are forgotten
}

type seenItem struct {
	key, value string
	until      time.Time
}

// add remembers a key with its value, and reports whether that is possible: the key is new or, if value
// is not empty, it has that value.
func (s *seen) add(key, value string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.queue) > 0 && (len(s.queue) >= maxSeen || now.After(s.queue[0].until)) {
		if first := s.queue[0]; s.items[first.key] == first {
			delete(s.items, first.key)
		}
		s.queue = s.queue[1:]
	}
	if old := s.items[key]; old != nil {
		return value != "" && old.value == value
	}
	item := &seenItem{key, value, now.Add(keyTime)}
	if s.items == nil {
		s.items = map[string]*seenItem{}
	}
	s.items[key] = item
	s.queue = append(s.queue, item)
	return true
}

// forget removes a key.
func (s *seen) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.items, key)
}
