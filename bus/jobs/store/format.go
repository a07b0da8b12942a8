package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	version, ok := strings.CutPrefix(text, markPrefix)
	n, bad := strconv.Atoi(strings.TrimSuffix(version, "\n"))
	switch {
	case err != nil:
		return false, &StoreError{Err: err}
	case ok && bad == nil && fmt.Sprint(n) != formatVersion:
		return false, errFormat(s.dir, fmt.Sprint(n))
	case text != markText:
		s.warn("%s is damaged: it is written again", filepath.Join(s.dir, formatName))
	}
	return true, nil
}

func errFormat(path, version string) error {
	return &StoreError{Err: fmt.Errorf("%s: format %s is unknown to this version of fbus, which writes %s", path, version, formatVersion)}
}

// The text of the mark.
const (
	markPrefix = "fbus-jobs "
	markText   = markPrefix + formatVersion + "\n"
)

func (s *Store) readMark() (string, error) {
	f, err := openNoFollow(filepath.Join(s.dir, formatName), os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 100))
	return string(text), err
}

// mark writes the mark.
func (s *Store) mark() error {
	if text, err := s.readMark(); err == nil && text == markText {
		return nil
	}
	f, err := openNoFollow(filepath.Join(s.dir, formatName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(markText)
	return errors.Join(err, f.Sync(), f.Close(), syncDir(s.dir))
}
