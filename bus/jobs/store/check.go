package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
)

// contents counts the records of a store's file.
type contents struct {
	Jobs  int64 `json:"jobs"`
	Bytes int64 `json:"bytes"` // of payloads in the file
	Last  ID    `json:"last"`  // the greatest id
	Free  int64 `json:"free"`  // pages
	Pages int64 `json:"pages"`
	// Of the file as it was closed: one that has changed since is read again.
	Size    int64 `json:"size"`
	Changed int64 `json:"changed"` // nanoseconds of the date
}

// cleanName is a file that is written when a node ends in an orderly way.
// While it describes jobs.db that need not be read as a whole: for a million jobs that
// takes seconds.
const cleanName = "clean"

// inspect checks a file before bbolt opens it to write. An error that is no StoreError
// means that the file is damaged.
func (s *Store) inspect(path string) (*contents, error) {
	if c := s.readClean(path); c != nil {
		if _, err := checkLinks(path, false); err == nil {
			return c, nil
		}
	}
	_, err := checkLinks(path, true)
	var c *contents
	if err == nil {
		err = openGuarded(path, true, func(_ *bolt.DB, t *bolt.Tx) (err error) {
			c, err = readAll(t)
			return err
		})
	}
	if err != nil {
		if err := s.distrust(path); err != nil { // what cannot be read may work again
			return nil, storeError(err)
		}
	}
	return c, err
}

// readAll reads every entry, and has bbolt check the whole file. The links between its
// pages must be sound.
func readAll(t *bolt.Tx) (*contents, error) {
	c, listed := &contents{}, int64(0)
	for _, name := range buckets {
		b := t.Bucket([]byte(name))
		if b == nil {
			return nil, fmt.Errorf("the bucket %s is missing", name)
		}
		var last []byte
		cur := b.Cursor()
		for k, v := cur.First(); k != nil; k, v = cur.Next() {
			if !sealed(name, k, v) {
				return nil, fmt.Errorf("an entry of the bucket %s does not match its checksum", name)
			}
			if last != nil && bytes.Compare(last, k) >= 0 {
				return nil, fmt.Errorf("the bucket %s is out of order", name)
			}
			last = k
			switch name {
			case BucketJobs:
				c.Jobs++
				c.Last = KeyID(k)
			case BucketData:
				c.Bytes += int64(len(v)) - 4
			case BucketReady, BucketDue, BucketEnd, BucketDead:
				listed++
			}
		}
	}
	if listed != c.Jobs { // a page may have lost entries without a trace
		return nil, fmt.Errorf("it has %d jobs, and lists %d", c.Jobs, listed)
	}
	c.Pages, c.Free = t.Size()/int64(t.DB().Info().PageSize), int64(t.DB().Stats().FreePageN)
	var err error
	for e := range t.Check() {
		err = e // all are read: the goroutine that sends them ends
	}
	return c, err
}

// openGuarded runs f on a file that is only read. Damage that makes bbolt panic or
// fault is an error.
func openGuarded(path string, freelist bool, f func(*bolt.DB, *bolt.Tx) error) (err error) {
	defer catch(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: freelist, Timeout: time.Second, OpenFile: openNoFollow})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(t *bolt.Tx) error { return f(db, t) })
}

// readClean returns what a file holds that was closed in an orderly way, and not
// changed since; nil: it is not known.
func (s *Store) readClean(path string) *contents {
	text, err := os.ReadFile(filepath.Join(s.dir, cleanName))
	st, err2 := os.Lstat(path)
	data, ok := unseal(BucketMeta, []byte(cleanName), text)
	c := &contents{}
	if err != nil || err2 != nil || !ok || json.Unmarshal(data, c) != nil || c.Size != st.Size() || c.Changed != st.ModTime().UnixNano() {
		return nil
	}
	return c
}

// closeFile closes the file, and notes what it holds if that is known.
func (s *Store) closeFile() {
	path, stats := s.db.Path(), s.db.Stats()
	c := &contents{Jobs: s.Jobs.Load(), Bytes: s.Spool.used.Load() - s.Spool.size(), Last: s.lastID, Free: int64(stats.FreePageN + stats.PendingPageN)}
	err := cmp.Or(s.Unwritable(), s.View(func(t *Tx) error {
		c.Pages = t.Size() / int64(s.db.Info().PageSize)
		return nil
	}), s.db.Close())
	st, err2 := os.Lstat(path)
	if err != nil || err2 != nil {
		return
	}
	c.Size, c.Changed = st.Size(), st.ModTime().UnixNano()
	data, err := json.Marshal(c)
	if err != nil {
		return
	}
	// Neither is an error worth mention: without it the next start takes longer.
	name := filepath.Join(s.dir, cleanName)
	if os.WriteFile(name+".new", seal(BucketMeta, []byte(cleanName), data), 0o600) == nil {
		os.Rename(name+".new", name)
	}
}

// mend checks the file, and replaces one that is damaged.
func (s *Store) mend(path string) (*contents, error) {
	known, err := s.marked()
	if err != nil {
		return nil, err
	}
	st, err := os.Lstat(path)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, &StoreError{Err: err}
	case !known && (err != nil || st.Size() == 0): // a new one
		return &contents{}, nil
	case err != nil:
		s.warn("%s is gone: the jobs in it are lost", path)
		s.mended = true
		return &contents{}, nil
	}
	for range 2 {
		c, err := s.inspect(path)
		if err == nil && !s.opened && s.compact(path, c) {
			c, err = s.inspect(path)
		}
		if err == nil || isFailure(err) {
			return c, err
		}
		if err := s.salvageFile(path, err); err != nil {
			return nil, err
		}
	}
	return nil, &StoreError{Err: errors.New(path + " is damaged again after it was replaced")}
}
