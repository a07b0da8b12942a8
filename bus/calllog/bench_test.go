package calllog_test

import (
	"encoding/json"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/calllog"
)

// BenchmarkAppend measures the caller's cost. The writer runs on another CPU and drops
// the excess.
func BenchmarkAppend(b *testing.B) {
	l, _ := open(b, calllog.Options{Dir: b.TempDir()})
	e := call("resize")
	e.Time = time.Now()
	b.ReportAllocs()
	for b.Loop() {
		l.Append(e)
	}
}

// BenchmarkAppendPaced appends no faster than the writer writes, so that it includes the
// cost of waking the writer.
func BenchmarkAppendPaced(b *testing.B) {
	l, _ := open(b, calllog.Options{Dir: b.TempDir()})
	e := call("resize")
	b.ReportAllocs()
	var spent time.Duration
	for b.Loop() {
		start := time.Now()
		l.Append(e)
		d := time.Since(start)
		spent += d
		for time.Since(start) < 10*time.Microsecond {
		}
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "append-ns/op")
}

// plainEntry is an entry without its own JSON encoder.
type plainEntry bus.LogEntry

func BenchmarkEncode(b *testing.B) {
	e := call("resize")
	e.Seq, e.Time = 123456, time.Now()
	b.Run("ours", func(b *testing.B) {
		l, _ := open(b, calllog.Options{Dir: b.TempDir()})
		encode := l.Encoder()
		b.ReportAllocs()
		for b.Loop() {
			encode(e)
		}
	})
	b.Run("encoding-json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			json.Marshal((*plainEntry)(e))
		}
	})
}

// BenchmarkReadLast100 looks for the last 100 calls of a rare function in 40 MiB.
func BenchmarkReadLast100(b *testing.B) {
	l, _ := open(b, calllog.Options{Dir: b.TempDir()})
	const n = 160000
	for i := range n {
		e := call("resize")
		if i%1600 == 0 {
			e.Function = "rare"
		}
		l.Append(e)
		if i%5000 == 0 {
			read(b, l, calllog.Query{Last: 1}) // so that none is dropped
		}
	}
	for b.Loop() {
		if list, _ := read(b, l, calllog.Query{Function: "rare", Last: 95}); len(list) != 95 {
			b.Fatalf("%d entries", len(list))
		}
	}
}
