package jobs

import (
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

// FailCommits makes every commit end with an error until it is called with nil. The
// disk has what a failed sync would have left: nothing of it, or, if torn, all.
func (m *Manager) FailCommits(err error, torn bool) {
	s := m.store
	s.using.Lock() // the writer has no transaction open
	defer s.using.Unlock()
	s.commit = func(b *bolt.Tx) error {
		if err == nil {
			return b.Commit()
		}
		if torn {
			if err := b.Commit(); err != nil {
				return err
			}
		}
		return err
	}
}

// FailLinks makes the files of postbacks fail to be made until it is called with nil.
func (m *Manager) FailLinks(err error) {
	s := m.store
	s.using.Lock() // the writer has no transaction open
	defer s.using.Unlock()
	s.spool.link = func(old, new string) error {
		if err != nil {
			return &os.LinkError{Op: "link", Old: old, New: new, Err: err}
		}
		return os.Link(old, new)
	}
}

// Failing reports whether the store is known not to be writable.
func (m *Manager) Failing() bool { return m.store.unwritable() != nil }

// Counts are how many jobs there are, and bytes of their payloads.
func (m *Manager) Counts() (jobs, bytes int64) { return m.store.jobs.Load(), m.store.spool.used.Load() }

// Files are the names of what is in the spool of a store.
func Files(dir string) (names []string) {
	list, _ := os.ReadDir(filepath.Join(dir, spoolName))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// DBPath is the file of a store.
func DBPath(dir string) string { return filepath.Join(dir, dbName) }

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
		for _, bucket := range buckets {
			t.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
				list = append(list, Entry{bucket, append([]byte(nil), k...), append([]byte(nil), v...)})
				return nil
			})
		}
		return nil
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

// Handed reports whether a job of a function stands at the node for its turn.
func (m *Manager) Handed(function string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lines[function+"\x00"]
	return l != nil && l.first != nil
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

// AwaitIdle waits until the writer has written all that it was given.
func (m *Manager) AwaitIdle() { m.store.apply(false, func(*tx) error { return nil }) }

// Lines are the lines that are known.
func (m *Manager) Lines() (keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.lines {
		keys = append(keys, key)
	}
	return keys
}

// Window is how many jobs the lines hold in memory.
func (m *Manager) Window() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lines {
		n += len(l.window)
	}
	return n
}

// Aside is how many lines were set aside.
func (m *Manager) Aside() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, sets := range []lineSets{m.absent, m.crowded} {
		for _, set := range sets {
			n += len(set)
		}
	}
	return n
}

// Standing is how many attempts wait at the node.
func (m *Manager) Standing() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.standing.n
}
