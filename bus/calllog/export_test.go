package calllog

import (
	"time"

	"fbus/bus"
)

func init() { flushTime = time.Minute } // on a busy machine the writer takes long

// FailWrites makes every write to the log's files fail as fail returns. Call it before the
// first Append.
func (l *Log) FailWrites(fail func() error) {
	for k := range l.series {
		l.series[k].fail = fail
	}
}

// SetFoldTime sets foldTime until undo is called.
func SetFoldTime(d time.Duration) (undo func()) {
	was := foldTime
	foldTime = d
	return func() { foldTime = was }
}

// The bounds that tests exceed.
const (
	MaxQueue = maxQueue
	MaxText  = maxText
	MaxLine  = maxLine
)

// Encoder returns the writer's encoder.
func (l *Log) Encoder() func(*bus.LogEntry) {
	var buf []byte
	return func(e *bus.LogEntry) { buf = appendEntry(buf[:0], e, false) }
}
