package pages

import "math/bits"

// set is a set of page numbers below a bound: a bit for each, so that what a store
// of any size costs in memory is little.
type set []uint64

func newSet(bound uint64) set { return make(set, (bound+63)/64) }

func (s set) has(id uint64) bool {
	return id/64 < uint64(len(s)) && s[id/64]&(1<<(id%64)) != 0
}

// add says whether id was not in the set before.
func (s set) add(id uint64) bool {
	word, bit := &s[id/64], uint64(1)<<(id%64)
	fresh := *word&bit == 0
	*word |= bit
	return fresh
}

func (s set) len() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}
