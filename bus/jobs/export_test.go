package jobs

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"

	"fbus/bus/jobs/store"
)

// FailCommits makes every commit end with an error until it is called with nil. The
// disk has what a failed sync would have left: nothing of it, or, if torn, all.
func (m *Manager) FailCommits(err error, torn bool) {
	if err == nil {
		m.store.Inject(nil, nil)
		return
	}
	m.store.Inject(func(b *bolt.Tx) error {
		if torn {
			if err := b.Commit(); err != nil {
				return err
			}
		}
		return err
	}, nil)
}

// FullAt makes commits find the disk full that would leave more jobs than that.
func (m *Manager) FullAt(jobs int) {
	m.store.Inject(func(b *bolt.Tx) error {
		n := 0
		b.Bucket([]byte(store.BucketJobs)).ForEach(func(_, _ []byte) error { n++; return nil })
		if n > jobs {
			return syscall.ENOSPC
		}
		return b.Commit()
	}, nil)
}

// FailLinks makes the files of postbacks fail to be made until it is called with nil.
func (m *Manager) FailLinks(err error) {
	if err == nil {
		m.store.Inject(nil, nil)
		return
	}
	m.store.Inject(nil, func(old, new string) error { return &os.LinkError{Op: "link", Old: old, New: new, Err: err} })
}

// Failing reports whether the store is known not to be writable.
func (m *Manager) Failing() bool { return m.store.Unwritable() != nil }

// Totals are how many jobs there are, and bytes of their payloads.
func (m *Manager) Totals() (jobs, bytes int64) {
	held := m.store.Shares.Total()
	return held.Jobs, held.Bytes
}

// Files are the names of what is in the spool of a store.
func Files(dir string) (names []string) {
	list, _ := os.ReadDir(filepath.Join(dir, "spool"))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// DBPath is the file of a store.
func DBPath(dir string) string { return filepath.Join(dir, "jobs.db") }

// Entry is one key of a bucket, as the file has it.
type Entry struct {
	Bucket     string
	Key, Value []byte
}

// Entries are all of a store that nobody has open.
func Entries(dir string) (list []Entry, err error) {
	db, err := bolt.Open(DBPath(dir), 0o600, nil)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	err = db.View(func(t *bolt.Tx) error {
		return t.ForEach(func(bucket []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				list = append(list, Entry{string(bucket), append([]byte(nil), k...), append([]byte(nil), v...)})
				return nil
			})
		})
	})
	return list, err
}

// Replace changes an entry behind the store's back: bbolt itself finds nothing wrong
// with it.
func Replace(dir string, old, e Entry) error {
	db, err := bolt.Open(DBPath(dir), 0o600, nil)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Update(func(t *bolt.Tx) error {
		b := t.Bucket([]byte(e.Bucket))
		if err := b.Delete(old.Key); err != nil {
			return err
		}
		return b.Put(e.Key, e.Value)
	})
}

// AwaitKept waits until so many attempts have ended whose ends are not on disk.
func (m *Manager) AwaitKept(n int) {
	for kept := 0; kept < n; time.Sleep(time.Millisecond) {
		kept = 0
		m.mu.Lock()
		for _, a := range m.active {
			if a.kept {
				kept++
			}
		}
		m.mu.Unlock()
	}
}

// Awaited reports whether somebody waits for the end of a job.
func (m *Manager) Awaited(job string) bool {
	id, _ := ParseID(job)
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiters[id]) > 0
}

// Followed counts those who follow a job.
func (m *Manager) Followed(job string) int {
	id, _ := ParseID(job)
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.lookouts[id])
}

// AwaitIdle waits until the writer has written all that it was given.
func (m *Manager) AwaitIdle() { m.store.Apply(store.Op{Run: func(*store.Tx) error { return nil }}) }

// Lines are the lines that are known.
func (m *Manager) Lines() (keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, q := range m.functions {
		for _, l := range q.lines {
			keys = append(keys, l.key)
		}
	}
	return keys
}

// Window is how many jobs the lines hold in memory.
func (m *Manager) Window() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, q := range m.functions {
		for _, l := range q.lines {
			n += len(l.window)
		}
	}
	return n
}

// Held counts the jobs of a poster and their bytes in the store.
func (m *Manager) Held(who string) store.Held { return m.store.Shares.Of(who) }

// Compared is with how many lines of a function a worker is compared when it looks for a
// job.
func (m *Manager) Compared(function, worker string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.functions[function]
	return len(q.globs) + len(q.of(worker, ""))
}

// CountCommits counts commits from now on.
func (m *Manager) CountCommits() *atomic.Int64 {
	n := new(atomic.Int64)
	m.store.Inject(func(b *bolt.Tx) error { n.Add(1); return b.Commit() }, nil)
	return n
}

// Arriving is how many posts are under way.
func (m *Manager) Arriving() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.arriving)
}
