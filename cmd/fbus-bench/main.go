// Command fbus-bench measures what the bus costs on this machine. It is run as
// fbus bench.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/cmd/companion"

	"github.com/spf13/pflag"
)

func main() { companion.Main(run) }

// options are the flags.
type options struct {
	rows    []row
	time    time.Duration
	json    bool
	verbose bool
}

const help = `fbus bench: measure what the bus costs on this machine

Usage: fbus bench [flags] [ROW…]

Each row is measured in turns with its limit, the same work without the bus, on a
private bus. Figures are medians; the ratio is ours to the limit's, and more is
better. Rows: %s.

  fbus bench
  fbus bench --time 5s once resident
  fbus bench --json | jq -r '[.name, .ratio] | @tsv'

JSON fields: name, what, value, unit, limit (0 if there is none), limit_what,
ratio (0 if there is none), skipped (why it could not be measured).

Flags:
%s`

func run(ctx context.Context, words []string, stdout, stderr io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.DurationVar(&o.time, "time", time.Second, "measure each side of a row for about `D`")
	flags.BoolVar(&o.json, "json", false, "one JSON object a line for each row")
	quiet := flags.BoolP("quiet", "q", false, "only errors, without hints")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "name what is being measured")
	wantHelp := flags.BoolP("help", "h", false, "show this help")
	if err := flags.Parse(words); err != nil {
		e := args.Errorf(args.CodeUsage, "%v", err)
		if !*quiet {
			e.Hint = "fbus bench --help"
		}
		return e
	}
	if *wantHelp {
		_, err := fmt.Fprintf(stdout, help, strings.Join(rowNames(), ", "), flags.FlagUsages())
		return err
	}
	if o.time < 10*time.Millisecond {
		return args.Errorf(args.CodeUsage, "--time must be at least 10ms")
	}
	o.rows = rows
	if flags.NArg() > 0 {
		o.rows = nil
	}
	for _, name := range flags.Args() {
		i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
		if i < 0 {
			return args.Errorf(args.CodeUsage, "unknown row %s: the rows are %s", name, strings.Join(rowNames(), ", "))
		}
		o.rows = append(o.rows, rows[i])
	}
	return bench(ctx, &o, stdout, stderr)
}

// row is one figure. Both sides run for about the given time and return a rate;
// limit may be nil.
type row struct {
	name, what, unit string
	limitWhat        string
	prepare          func(b *bencher) (ours, limit perSecond, err error)
}

// perSecond measures something for about the given time.
type perSecond = func(d time.Duration) (float64, error)

func rowNames() []string {
	var names []string
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

// result is a line of --json.
type result struct {
	Name      string  `json:"name"`
	What      string  `json:"what"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Limit     float64 `json:"limit"` // the same work without the bus, in the same unit
	LimitWhat string  `json:"limit_what"`
	Ratio     float64 `json:"ratio"`             // value to limit
	Skipped   string  `json:"skipped,omitempty"` // why there is no value
}

func bench(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	debug.SetGCPercent(400) // as nodes and workers have it
	b, err := newBencher(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	if !o.json {
		fmt.Fprintf(stdout, "%-13s %12s %12s %6s  %s\n", "ROW", "FBUS", "LIMIT", "RATIO", "WHAT")
	}
	for _, row := range o.rows {
		if o.verbose {
			fmt.Fprintf(stderr, "fbus: %s: %s\n", row.name, row.what)
		}
		res, err := b.measure(row, o.time)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			res.Skipped = strings.Join(strings.Fields(err.Error()), " ")
		}
		if err := o.write(res, stdout); err != nil {
			return err
		}
	}
	return nil
}

func (o *options) write(r result, stdout io.Writer) error {
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(r)
	}
	what := r.What
	if r.LimitWhat != "" {
		what += "; limit: " + r.LimitWhat
	}
	value, limit, ratio := rate(r.Value, r.Unit), "", ""
	if r.Limit > 0 {
		limit, ratio = rate(r.Limit, r.Unit), fmt.Sprintf("%.2f", r.Ratio)
	}
	if r.Skipped != "" {
		value, what = "-", what+" (not measured: "+r.Skipped+")"
	}
	_, err := fmt.Fprintf(stdout, "%-13s %12s %12s %6s  %s\n", r.Name, value, limit, ratio, what)
	return err
}

// rate formats a figure with its unit.
func rate(v float64, unit string) string {
	switch {
	case unit == "bytes/s":
		return fmt.Sprintf("%.0f MB/s", v/1e6)
	case v < 100:
		return fmt.Sprintf("%.1f/s", v)
	}
	return fmt.Sprintf("%.0f/s", v)
}

// rounds is how often a row and its limit are measured in turns.
const rounds = 5

// measure measures a row and its limit in turns.
func (b *bencher) measure(row row, d time.Duration) (result, error) {
	res := result{Name: row.name, What: row.what, Unit: row.unit, LimitWhat: row.limitWhat}
	ours, limit, err := row.prepare(b)
	if err != nil {
		return res, err
	}
	var values, limits, ratios []float64
	turn := max(d/rounds, 10*time.Millisecond)
	for range rounds {
		if b.ctx.Err() != nil {
			return res, b.ctx.Err()
		}
		v, err := ours(turn)
		if err != nil {
			return res, err
		}
		values = append(values, v)
		if limit == nil {
			continue
		}
		l, err := limit(turn)
		if err != nil {
			return res, err
		}
		limits, ratios = append(limits, l), append(ratios, v/l)
	}
	res.Value, res.Limit, res.Ratio = median(values), median(limits), median(ratios)
	return res, nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}
