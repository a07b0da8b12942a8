package journal

import (
	"os"
	"time"
)

func init() { flushTime = time.Minute } // on a busy machine the writer takes long

// FailWrites makes every write fail as fail says; nil ends that. It is for a
// journal that nothing has been appended to yet, or under fail's own lock.
func (j *Journal) FailWrites(fail func() error) {
	j.store.write = func(f *os.File, p []byte, at int64) (int, error) {
		if err := fail(); err != nil {
			n, _ := f.WriteAt(p[:len(p)/2], at) // as a full disk takes a part
			return n, err
		}
		return f.WriteAt(p, at)
	}
}

// The bounds that tests go past.
const (
	MaxQueue = maxQueue
	MaxText  = maxText
	MaxLine  = maxLine
)

// Encoder is what the writer does with an entry.
func (j *Journal) Encoder() func(*Entry) {
	var enc encoder
	var buf []byte
	return func(e *Entry) { buf = enc.line(buf[:0], e) }
}
