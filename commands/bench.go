package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// benchOptions are the flags of fbus bench.
type benchOptions struct {
	only    []string
	time    durationValue
	json    bool
	quiet   bool
	verbose bool
}

func benchCommand() *cli.Command {
	o := &benchOptions{time: durationValue{d: time.Second}}
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure what the bus costs on this machine",
		UsageText: "bench [flags] [ROW…]",
		Description: `Each row is measured in turns with its limit, the same work without the bus, on a
private bus; figures are medians, the ratio is ours to the limit's, and more is
better. Rows: ` + strings.Join(benchNames(), ", ") + `.

  fbus bench
  fbus bench --time 5s once resident
  fbus bench --json | jq -r '[.name, .ratio] | @tsv'

JSON fields: name, what, value, unit, limit (0 if there is none), limit_what,
ratio (0 if there is none), skipped (why it could not be measured).`,
		Flags: []cli.Flag{
			&cli.GenericFlag{Name: "time", Usage: "measure each side of a row for about `D`", Value: &o.time},
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line for each row", Destination: &o.json, DisableDefaultText: true},
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "say what is being measured"),
		},
		Action: func(ctx *cli.Context) error {
			o.only = ctx.Args().Slice()
			return bench(o, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// benchRounds is how often a row and its limit are measured in turns.
const benchRounds = 5

// benchRow is one figure. Both sides run for about the time given and return a
// rate; limit may be nil.
type benchRow struct {
	name, what, unit string
	limitWhat        string
	prepare          func(b *bencher) (ours, limit func(d time.Duration) (float64, error), err error)
}

func benchNames() []string {
	var names []string
	for _, r := range benchRows {
		names = append(names, r.name)
	}
	return names
}

// benchResult is a line of --json.
type benchResult struct {
	Name      string  `json:"name"`
	What      string  `json:"what"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Limit     float64 `json:"limit"` // the same work without the bus, in the same unit
	LimitWhat string  `json:"limit_what"`
	Ratio     float64 `json:"ratio"`             // value to limit
	Skipped   string  `json:"skipped,omitempty"` // why there is no value
}

func (o *benchOptions) rows() ([]benchRow, error) {
	if len(o.only) == 0 {
		return benchRows, nil
	}
	var rows []benchRow
	for _, name := range o.only {
		i := slices.IndexFunc(benchRows, func(r benchRow) bool { return r.name == name })
		if i < 0 {
			return nil, usage("there is no row %s: %s are", name, strings.Join(benchNames(), ", "))
		}
		rows = append(rows, benchRows[i])
	}
	return rows, nil
}

func bench(o *benchOptions, stdout, stderr io.Writer) error {
	rows, err := o.rows()
	if err != nil {
		return err
	}
	if o.time.d < 10*time.Millisecond {
		return usage("--time %s: at least 10ms is due", formatDuration(o.time.d))
	}
	ctx, stop := endedBySignal()
	defer stop()
	debug.SetGCPercent(400) // as nodes and workers have it
	b, err := newBencher(ctx)
	if ctx.Err() != nil {
		if b != nil {
			b.close()
		}
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	defer b.close()
	if !o.json {
		fmt.Fprintf(stdout, "%-13s %12s %12s %6s  %s\n", "ROW", "FBUS", "LIMIT", "RATIO", "WHAT")
	}
	for _, row := range rows {
		if o.verbose {
			say(stderr, fmt.Sprintf("%s: %s", row.name, row.what))
		}
		res, err := b.measure(row, o.time.d)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			res.Skipped = oneLine(err.Error())
		}
		if err := writeBench(o, res, stdout); err != nil {
			return err
		}
	}
	return nil
}

func writeBench(o *benchOptions, r benchResult, stdout io.Writer) error {
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

// rate is a figure with its unit.
func rate(v float64, unit string) string {
	switch {
	case unit == "bytes/s":
		return fmt.Sprintf("%.0f MB/s", v/1e6)
	case v < 100:
		return fmt.Sprintf("%.1f/s", v)
	}
	return fmt.Sprintf("%.0f/s", v)
}

// measure takes a row and its limit in turns.
func (b *bencher) measure(row benchRow, d time.Duration) (benchResult, error) {
	res := benchResult{Name: row.name, What: row.what, Unit: row.unit, LimitWhat: row.limitWhat}
	ours, limit, err := row.prepare(b)
	if err != nil {
		return res, err
	}
	var values, limits, ratios []float64
	turn := max(d/benchRounds, 10*time.Millisecond)
	for range benchRounds {
		if b.ctx.Err() != nil {
			return res, context.Cause(b.ctx)
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

// self is this binary.
func self() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fail(exitInternal, "%v", err)
	}
	return path, nil
}
