package wire

import (
	"context"
	"io"
	"net"
	"sort"
	"testing"
	"time"
)

// echoFrames sends every frame back.
type echoFrames struct{ conn *Conn }

func (e echoFrames) Handle(b *Batch, f Frame) error { return b.Send(e.conn, f) }

// counter says when as many bytes of DATA as were asked for have come.
type counter struct {
	want int
	done chan struct{}
}

func (c *counter) Handle(_ *Batch, f Frame) error {
	if c.want -= len(f.(*DataFrame).Payload); c.want <= 0 {
		c.done <- struct{}{}
	}
	return nil
}

// bouncer is a Conn whose peer sends every frame back.
func bouncer(b *testing.B, kind string) (*Conn, *counter) {
	near, far := bothSockets(b, kind)
	echo := NewConn(far, nil)
	go echo.Serve(echoFrames{echo}, anyFrame) // ends with the connection
	conn := NewConn(near, nil)
	c := &counter{done: make(chan struct{}, 1)}
	go conn.Serve(c, anyFrame)
	b.Cleanup(func() { conn.Close(nil) })
	return conn, c
}

// BenchmarkConnRoundTrip alternates a frame of 64 bytes there and back over TLS and
// over a unix socket: "ratio" is between the medians. TCP by itself is shown too.
func BenchmarkConnRoundTrip(b *testing.B) {
	kinds := []string{"unix", "tls", "tcp"}
	times := make([][]time.Duration, len(kinds))
	conns, counters := make([]*Conn, len(kinds)), make([]*counter, len(kinds))
	for i, kind := range kinds {
		conns[i], counters[i] = bouncer(b, kind)
	}
	f := &DataFrame{ID: 1, Stream: Output, Payload: make([]byte, 64)}
	for b.Loop() {
		for i := range kinds {
			counters[i].want = len(f.Payload)
			t0 := time.Now()
			conns[i].Send(f)
			<-counters[i].done
			times[i] = append(times[i], time.Since(t0))
		}
	}
	unix, tls := medianTime(times[0]), medianTime(times[1])
	b.ReportMetric(float64(unix)/1e3, "unix-µs")
	b.ReportMetric(float64(tls)/1e3, "tls-µs")
	b.ReportMetric(float64(medianTime(times[2]))/1e3, "tcp-µs")
	b.ReportMetric(float64(tls)/float64(unix), "ratio")
}

func medianTime(d []time.Duration) time.Duration {
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	return d[len(d)/2]
}

// BenchmarkConnBulk passes 64 MiB on through two connections, in frames, beside the same
// over crypto/tls with nothing but copying: "ratio" is between the medians of the
// rates, 0.6 is its limit.
func BenchmarkConnBulk(b *testing.B) {
	const total = 64 << 20
	var ours, bare []time.Duration
	ourSend, ourDone := frameRelay(b)
	bareSend, bareDone := bareRelay(b)
	p := make([]byte, ChunkSize)
	run := func(send func(p []byte), done <-chan struct{}) time.Duration {
		t0 := time.Now()
		for range total / len(p) {
			send(p)
		}
		<-done
		return time.Since(t0)
	}
	for b.Loop() {
		ourDone.want = total
		ours = append(ours, run(ourSend, ourDone.done))
		bareDone.want = total
		bare = append(bare, run(bareSend, bareDone.done))
	}
	o, r := medianTime(ours), medianTime(bare)
	b.ReportMetric(total/1e6/o.Seconds(), "MB/s")
	b.ReportMetric(total/1e6/r.Seconds(), "bare-MB/s")
	b.ReportMetric(float64(r)/float64(o), "ratio")
}

// passOn sends what comes to another connection, and waits as senders do.
type passOn struct{ to *Conn }

func (h passOn) Handle(b *Batch, f Frame) error {
	if err := b.Send(h.to, f); err != nil {
		return err
	}
	b.Flush()
	return h.to.WaitSpace(context.Background())
}

func frameRelay(b *testing.B) (send func(p []byte), done *counter) {
	a1, a2 := bothSockets(b, "tls")
	b1, b2 := bothSockets(b, "tls")
	first, in, out, last := NewConn(a1, nil), NewConn(a2, nil), NewConn(b1, nil), NewConn(b2, nil)
	done = &counter{done: make(chan struct{}, 1)}
	go in.Serve(passOn{out}, anyFrame)
	go last.Serve(done, anyFrame)
	b.Cleanup(func() { first.Close(nil); out.Close(nil) })
	return func(p []byte) {
		first.WaitSpace(context.Background())
		first.Send(&DataFrame{ID: 1, Stream: Output, Payload: p})
	}, done
}

func bareRelay(b *testing.B) (send func(p []byte), done *counter) {
	a1, a2 := handshakePair(b)
	b1, b2 := handshakePair(b)
	done = &counter{done: make(chan struct{}, 1)}
	go func() { // ends with the connection
		io.CopyBuffer(struct{ io.Writer }{b1}, struct{ io.Reader }{a2}, make([]byte, 128<<10))
	}()
	go func() {
		buf := make([]byte, 128<<10)
		for {
			n, err := b2.Read(buf)
			if err != nil {
				return
			}
			if done.want -= n; done.want <= 0 {
				done.done <- struct{}{}
			}
		}
	}()
	b.Cleanup(func() { a1.Close(); b1.Close() })
	return func(p []byte) { a1.Write(p) }, done
}

func handshakePair(b *testing.B) (near, far net.Conn) {
	near, far = pair(b, "tcp")
	return handshake(b, near, far)
}
