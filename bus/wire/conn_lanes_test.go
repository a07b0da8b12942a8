package wire

import (
	"bytes"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// arrivals notes frames in the order in which they come.
type arrivals struct {
	frames [][]byte
	seen   func(f Frame)
}

func (a *arrivals) Handle(_ *Batch, f Frame) error {
	a.frames = append(a.frames, Append(nil, f))
	if a.seen != nil {
		a.seen(f)
	}
	return nil
}

// slow takes what comes in pieces of odd sizes, and lets others run in between.
type slow struct{ net.Conn }

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Microsecond)
	return s.Conn.Read(p[:min(len(p), 1+rand.IntN(40<<10))])
}

// TestOrderWithinCalls: however slowly the peer reads, each call's frames arrive
// in their order, and CALLs in theirs.
func TestOrderWithinCalls(t *testing.T) {
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) {
			defer noneLeft(t)()
			near, far := pair(t, kind)
			budget := &Budget{Max: 1 << 30}
			conn := NewConn(far, budget)
			conn.patience = time.Minute // its peer is slow
			got := &arrivals{}
			var serving sync.WaitGroup
			serving.Go(func() { NewConn(slow{near}, nil).Serve(got, anyFrame) })
			sent := sendRandom(t, conn)
			conn.Finish(&EOFFrame{ID: 1 << 40})
			serving.Wait()
			want, have := byCall(t, sent), byCall(t, got.frames[:max(len(got.frames)-1, 0)])
			for key, frames := range want {
				if !bytes.Equal(bytes.Join(frames, nil), bytes.Join(have[key], nil)) {
					t.Errorf("%+v: other frames, or another order: %d of %d", key, len(have[key]), len(frames))
				}
			}
			if used := budget.Used(); used != 0 {
				t.Errorf("%d bytes of the budget are left", used)
			}
			if len(conn.lanes) > 0 || conn.laned != 0 || len(conn.turns) > 0 {
				t.Errorf("%d lanes with %d bytes are left", len(conn.lanes), conn.laned)
			}
		})
	}
}

// sendRandom sends frames of many calls, of both sides, until much has been.
func sendRandom(t *testing.T, conn *Conn) (sent [][]byte) {
	lanes := 0
	next, open := uint64(1), []uint64{}
	for total := 0; total < 5<<20; {
		for conn.Backlog() > 2<<20 {
			time.Sleep(time.Millisecond) // it is being read
		}
		f := randomFrame(&next, &open)
		raw := Append(nil, f)
		sent = append(sent, raw)
		total += len(raw)
		if err := conn.Send(f); err != nil {
			t.Fatal(err)
		}
		conn.mu.Lock()
		lanes = max(lanes, len(conn.lanes))
		conn.mu.Unlock()
	}
	if lanes < 5 {
		t.Errorf("at most %d lanes were in use: nothing was tested", lanes)
	}
	return sent
}

func randomFrame(next *uint64, open *[]uint64) Frame {
	if len(*open) < 20 {
		*open = append(*open, *next)
		*next++
		return &CallFrame{ID: *next - 1, Name: []byte("f"), Input: make([]byte, rand.IntN(2000))}
	}
	at := rand.IntN(len(*open))
	id := (*open)[at]
	payload := make([]byte, rand.IntN(1<<rand.IntN(18)))
	for i := range min(len(payload), 8) {
		payload[i] = byte(rand.Uint32())
	}
	switch rand.IntN(40) {
	case 0:
		*open = append((*open)[:at], (*open)[at+1:]...)
		return &EndFrame{ID: id, Code: []byte("exit"), Output: payload}
	case 1:
		return &EOFFrame{ID: id}
	case 2:
		return &GrantFrame{ID: id, Stream: Output, Bytes: 1}
	}
	return &DataFrame{ID: id, Stream: Stream(rand.IntN(3)), Payload: payload}
}

// byCall sorts frames by what must keep its order. A CALL is there twice: CALLs
// rise, and what its opener sends of the call follows it.
func byCall(t *testing.T, frames [][]byte) map[laneKey][][]byte {
	calls := map[laneKey][][]byte{}
	for _, raw := range frames {
		f, err := new(Decoder).Decode(raw[4:])
		if err != nil {
			t.Fatal(err)
		}
		keys := []laneKey{}
		if call, ok := f.(*CallFrame); ok {
			keys = append(keys, laneKey{}, laneKey{call.ID, true})
		} else if key, _, ok := keyOf(f); ok {
			keys = append(keys, key)
		} else {
			keys = append(keys, laneKey{id: 1 << 50}) // GRANTs, among each other
		}
		for _, key := range keys {
			calls[key] = append(calls[key], raw)
		}
	}
	return calls
}

// TestSmallOvertakesLarge: an answer that is sent behind megabytes of another call's
// arrives before most of them, with the data of its own call before it.
func TestSmallOvertakesLarge(t *testing.T) {
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) {
			near, far := pair(t, kind)
			conn := NewConn(far, nil)
			clog(conn)
			const late = 100
			for range late {
				conn.Send(&DataFrame{ID: 4, Stream: Output, Payload: make([]byte, ChunkSize)})
			}
			conn.Send(&DataFrame{ID: 2, Stream: Output, Payload: []byte("small")})
			conn.Send(&EndFrame{ID: 2, Code: []byte("exit"), Output: make([]byte, 2*laneEnd)})
			conn.Send(&EndFrame{ID: 3, Code: []byte("exit")})
			conn.Send(&EndFrame{ID: 4, Code: []byte("exit")})
			var ends []uint64
			frames := map[uint64]int{}
			got := &arrivals{seen: func(f Frame) {
				switch f := f.(type) {
				case *DataFrame:
					frames[f.ID]++
				case *EndFrame:
					ends = append(ends, f.ID)
					// Some begin to line up before there are lanes, and each turn takes one.
					if f.ID < 4 && frames[4] > 8 {
						t.Errorf("%d frames of the large call came before the end of call %d", frames[4], f.ID)
					}
					if f.ID == 4 {
						near.Close()
					}
				}
			}}
			NewConn(near, nil).Serve(got, anyFrame)
			if len(ends) != 3 || ends[2] != 4 || frames[4] != late || frames[2] != 1 {
				t.Errorf("the calls ended in the order %v, after %v frames of data", ends, frames)
			}
			conn.Close(nil)
		})
	}
}
