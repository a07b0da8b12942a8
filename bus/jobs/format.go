package jobs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// formatName is a file beside the store's: it says that there has been one, so that
// one which is gone, or empty, is not taken for a new one.
const formatName = "format"

// marked reports whether the store has been made. One of a later format is an error.
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
		s.warn("%s is damaged: it is made anew", filepath.Join(s.dir, formatName))
	}
	return true, nil
}

func errFormat(path, version string) error {
	return &StoreError{Err: fmt.Errorf("%s: format %s is not known to this version of fbus, which writes %s", path, version, formatVersion)}
}

// What the mark says.
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

// mark says that the store has been made.
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
