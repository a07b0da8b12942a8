package commands

import (
	"errors"
	"hash/maphash"
	"os"
	"path/filepath"
	"sync"

	"fbus/bus/args"
	"fbus/bus/fanout"

	"github.com/kballard/go-shellquote"
)

// fileOutputs writes results to files named after their items.
type fileOutputs struct {
	template nameTemplate
	seed     maphash.Seed
	again    bool // there are results of an earlier run

	mu    sync.Mutex          // protects taken
	taken map[uint64]struct{} // names, hashed: there may be millions
}

func newFileOutputs(t nameTemplate) *fileOutputs {
	return &fileOutputs{template: t, seed: maphash.MakeSeed(), taken: map[uint64]struct{}{}}
}

// reserve makes a file's name for a task, before it is run: a result never
// replaces another one's of the same run.
func (f *fileOutputs) reserve(t *fanout.Task) (string, error) {
	name, err := f.template.name(label(t.Words), t.Seq)
	if err != nil {
		return "", err
	}
	key := maphash.String(f.seed, name)
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.taken[key]; ok {
		if f.again {
			return "", fail(args.CodeBadInput, "%s is the result of another item, which had this number when it was done", name)
		}
		return "", fail(args.CodeBadInput, "%s is another item's already; {#} in -o makes names differ", name)
	}
	f.taken[key] = struct{}{}
	return name, nil
}

// done reserves the name that an item had in an earlier run, by its command in the job
// log: of items with other numbers now, none may replace its result.
func (f *fileOutputs) done(seq int, command string) {
	words, err := shellquote.Split(command)
	if err != nil || len(words) < 2 {
		return
	}
	if name, err := f.template.name(label(words[1:]), seq); err == nil {
		f.taken[maphash.String(f.seed, name)] = struct{}{}
		f.again = true
	}
}

// write puts a result in its file, if it is one.
func (f *fileOutputs) write(o *fanout.Outcome) {
	if o.Err != nil || o.Skipped {
		return
	}
	if err := writeResult(o.Aux.(*about).file, o.Output); err != nil {
		o.Err = fail(args.CodeInternal, "output: %v", pathReason(err))
	}
}

func writeResult(name string, result *fanout.Output) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		return &os.PathError{Op: "open", Path: name, Err: errors.New("is no regular file")}
	}
	var out outputFile
	if err := out.open(name); err != nil {
		return err
	}
	defer out.discard()
	if _, err := result.WriteTo(&out); err != nil {
		return err
	}
	return out.commit()
}
