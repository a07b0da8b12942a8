package bus

import (
	"context"
	"errors"
	"fbus/bus/args"
	"testing"
	"testing/synctest"
	"time"
)

// TestBackOff: a worker that has lost its node tries at once, less and less often,
// as long as it lives, and no two of them in step; until it is denied.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tries = 60
		gaps := func() []time.Duration {
			var list []time.Duration
			last := time.Now()
			w := &Worker{Dial: func(context.Context, *Options) (*Client, error) {
				list = append(list, time.Since(last))
				last = time.Now()
				if len(list) == tries {
					return nil, &args.Error{Code: args.CodeRevoked}
				}
				return nil, &args.Error{Code: args.CodeNoNode}
			}}
			if err := w.Run(context.Background()); !errors.Is(err, ErrDenied) {
				t.Errorf("the worker ends with %v", err)
			}
			return list
		}
		one, other := gaps(), gaps()
		same := 0
		for i, delay := 0, firstRetry; i < tries; i, delay = i+1, min(2*delay, lastRetry) {
			if one[i] < delay/2 || one[i] > delay {
				t.Errorf("pause %d is %v, between %v and %v is due", i, one[i], delay/2, delay)
			}
			if one[i] == other[i] {
				same++
			}
		}
		if same > tries/10 {
			t.Errorf("%d of %d pauses of two workers are the same", same, tries)
		}
	})
}
