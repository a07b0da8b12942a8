package node_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"

	bolt "go.etcd.io/bbolt"
)

// startWithJobs runs a node that keeps posted calls, in a directory of the test's.
func startWithJobs(t testing.TB, cfg node.Config, c jobs.Config) (*jobs.Manager, string) {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.Warn == nil {
		c.Warn = t.Logf
	}
	m, err := jobs.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	cfg.Jobs = m
	_, path := start(t, cfg)
	return m, path
}

// tryPost posts a call and returns the job's id.
func tryPost(c *bus.Client, name, options, input string) (string, error) {
	var out bytes.Buffer
	_, err := c.Call(context.Background(), &bus.Request{Function: "fbus.post", Args: args.List(name, options), Input: strings.NewReader(input), Stdout: &out})
	return strings.TrimSpace(out.String()), err
}

func resultOf(c *bus.Client, id, options string) (stdout string, res bus.Result, err error) {
	var out bytes.Buffer
	res, err = c.Call(context.Background(), &bus.Request{Function: "fbus.result", Args: args.List(id, options), Stdout: &out})
	return out.String(), res, err
}

// commits is the limit of posting: as many records of the same size, through one
// writer that commits what has come meanwhile, and nothing else.
type commits struct {
	db  *bolt.DB
	ops chan chan error
	seq uint64
}

func newCommits(b *testing.B) *commits {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "limit.db"), 0o600, nil)
	if err == nil {
		err = db.Update(func(t *bolt.Tx) error {
			_, err := t.CreateBucket([]byte("b"))
			return err
		})
	}
	if err != nil {
		b.Fatal(err)
	}
	c := &commits{db: db, ops: make(chan chan error, 4096)}
	done := make(chan struct{})
	go func() { // ends with ops
		defer close(done)
		for first := range c.ops {
			c.commit(first)
		}
	}()
	b.Cleanup(func() {
		close(c.ops)
		<-done
		db.Close()
	})
	return c
}

func (c *commits) commit(first chan error) {
	list := []chan error{first}
	for more := true; more; {
		select {
		case o, ok := <-c.ops:
			if more = ok; ok {
				list = append(list, o)
			}
		default:
			more = false
		}
	}
	value := make([]byte, 256)
	err := c.db.Update(func(t *bolt.Tx) error {
		for range list {
			c.seq++
			if err := t.Bucket([]byte("b")).Put(binary.BigEndian.AppendUint64(nil, c.seq), value); err != nil {
				return err
			}
		}
		return nil
	})
	for _, o := range list {
		o <- err
	}
}

func (c *commits) one() error {
	done := make(chan error, 1)
	c.ops <- done
	return <-done
}

// atOnce runs n calls of f by that many goroutines and returns how many a second.
func atOnce(b *testing.B, workers, n int, f func(worker int) error) float64 {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var all sync.WaitGroup
	began := time.Now()
	for w := range workers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(w); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return float64(n) / time.Since(began).Seconds()
}

// BenchmarkPost: jobs of 256 bytes a second that were acknowledged, beside the same
// records through batched bbolt alone. Each connection is a poster.
func BenchmarkPost(b *testing.B) {
	for _, posters := range []int{1, 64} {
		b.Run(fmt.Sprintf("posters=%d", posters), func(b *testing.B) {
			_, path := startWithJobs(b, node.Config{}, jobs.Config{})
			var clients []*bus.Client
			for range posters {
				clients = append(clients, dial(b, path))
			}
			input := strings.Repeat("x", 256)
			limit := newCommits(b)
			b.ResetTimer()
			var got, most []float64
			for n, part := b.N, max(1, b.N/5); n > 0; n -= part { // in turns: the machine's speed drifts
				k := min(n, part)
				got = append(got, atOnce(b, posters, k, func(w int) error {
					_, err := tryPost(clients[w], "nobody", "", input)
					return err
				}))
				most = append(most, atOnce(b, posters, k, func(int) error { return limit.one() }))
			}
			b.ReportMetric(median(got), "posts/s")
			b.ReportMetric(median(most), "limit/s")
			b.ReportMetric(median(got)/median(most), "ratio")
		})
	}
}

// BenchmarkPostToResult: jobs a second from the post to their result, through a
// worker that stays.
func BenchmarkPostToResult(b *testing.B) {
	for _, posters := range []int{1, 64} {
		b.Run(fmt.Sprintf("posters=%d", posters), func(b *testing.B) {
			_, path := startWithJobs(b, node.Config{}, jobs.Config{})
			offerFunc(b, dial(b, path), "echo", 8, echo)
			var clients []*bus.Client
			for range posters {
				clients = append(clients, dial(b, path))
			}
			input := strings.Repeat("x", 256)
			b.ReportAllocs()
			b.ResetTimer()
			rate := atOnce(b, posters, b.N, func(w int) error {
				id, err := tryPost(clients[w], "echo", "", input)
				if err != nil {
					return err
				}
				out, _, err := resultOf(clients[w], id, "")
				if err == nil && out != input {
					err = fmt.Errorf("%q came back", out)
				}
				return err
			})
			b.ReportMetric(rate, "jobs/s")
		})
	}
}
