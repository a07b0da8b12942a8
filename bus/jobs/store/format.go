package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// formatName is a file that marks a store, so that one without jobs.db is recognized as
// damaged, not as new.
const formatName = "format"

// marked reports whether the store was made before. A later format is an error.
func (s *Store) marked() (bool, error) {
	text, err := s.readMark()
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	var version int
	switch n, _ := fmt.Sscanf(text, markText, &version); {
	case err != nil:
		return false, &StoreError{Err: err}
	case n == 1 && !knownFormat(fmt.Sprint(version)):
		return false, errFormat(s.dir, fmt.Sprint(version))
	case text != fmt.Sprintf(markText, version):
		s.warn("%s is damaged: it is written again", filepath.Join(s.dir, formatName))
	}
	return true, nil
}

// readMark reads the mark, but not through a link or from a FIFO: the directory may come
// from somebody's archive.
func (s *Store) readMark() (string, error) {
	f, err := openNoFollow(filepath.Join(s.dir, formatName), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	return string(text), err
}

// knownFormat reports whether a store of that format can be opened.
func knownFormat(version string) bool {
	v, err := strconv.Atoi(version)
	return err == nil && v >= 1 && v <= formatVersion
}

func errFormat(path, version string) error {
	return &StoreError{Err: fmt.Errorf("%s: format %s is unknown to this version of fbus, which writes %d", path, version, formatVersion)}
}

// markText is the text of the mark.
const markText = "fbus-jobs %d\n"

// mark writes the mark.
func (s *Store) mark() error {
	want := fmt.Sprintf(markText, formatVersion)
	if text, err := s.readMark(); err == nil && text == want {
		return nil
	}
	f, err := openNoFollow(filepath.Join(s.dir, formatName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(want)
	return errors.Join(err, f.Sync(), f.Close(), syncDir(s.dir))
}
