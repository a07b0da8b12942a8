package store

import "testing"

// TestSameSent: what was sent to two jobs is compared by digest, or by the checksums of the
// parts if one was posted to a node that noted no digest.
func TestSameSent(t *testing.T) {
	part := func(size int64, sum uint32) Payload { return Payload{Size: size, Sum: sum, File: "any"} }
	j := &Job{Digest: "a", Kind: 1, Args: part(1, 2), Input: part(3, 4)}
	for want, list := range map[bool][]*Job{
		true: {
			{Digest: "a", Kind: 1}, // done: its parts are gone
			{Kind: 1, Args: Payload{Size: 1, Sum: 2}, Input: Payload{Size: 3, Sum: 4}},
		},
		false: {
			{Digest: "b", Kind: 1, Args: part(1, 2), Input: part(3, 4)},
			{Kind: 2, Args: part(1, 2), Input: part(3, 4)},
			{Kind: 1, Args: part(1, 3), Input: part(3, 4)},
			{Kind: 1, Args: part(1, 2), Input: part(4, 4)},
			{Kind: 1, HasInput: true, Args: part(1, 2), Input: part(3, 4)},
		},
	} {
		for _, other := range list {
			if got := j.SameSent(other); got != want {
				t.Errorf("%+v: %v", other, got)
			}
		}
	}
}
