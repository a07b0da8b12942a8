package commands

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

// durationValue is a duration D: 300ms, 90s, 5m, 7d, or several in a row. A number
// without a unit is refused.
type durationValue struct {
	d       time.Duration
	set     bool
	forever bool // the value is "forever"
	allow   bool // "forever" is allowed
	least   time.Duration
}

// keepAliveFlag is --keepalive: how long a peer over TCP may be silent.
func keepAliveFlag(v *durationValue, usage string) cli.Flag {
	v.least = wire.MinKeepAlive
	return &cli.GenericFlag{Name: "keepalive", Usage: usage, Value: v}
}

// clientKeepAlive is the usage of --keepalive of a client.
const clientKeepAlive = "over TCP: treat a silent node as lost after `D`, at least 3s; default 10s"

type durationUnit struct {
	suffix string
	d      time.Duration
}

// units of a duration; an earlier one wins.
var units = []durationUnit{
	{"ms", time.Millisecond}, {"us", time.Microsecond}, {"µs", time.Microsecond}, {"ns", time.Nanosecond},
	{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}, {"w", 7 * 24 * time.Hour},
}

func (v *durationValue) Set(s string) error {
	if s == "forever" && v.allow {
		*v = durationValue{set: true, forever: true, allow: true}
		return nil
	}
	d, err := parseDuration(s)
	if err != nil {
		if v.allow {
			err = fmt.Errorf("%w, or forever", err)
		}
		return err
	}
	if d < v.least {
		return fmt.Errorf("must be at least %s", formatDuration(v.least))
	}
	v.d, v.set, v.forever = d, true, false
	return nil
}

// String implements flag.Value. Help shows it as the default.
func (v *durationValue) String() string {
	if v == nil || v.d == 0 {
		return ""
	}
	return formatDuration(v.d)
}

// parseDuration parses a duration. 0 needs no unit.
func parseDuration(s string) (time.Duration, error) {
	if isNumber(s) {
		if n, err := strconv.ParseFloat(s, 64); err == nil && n == 0 {
			return 0, nil
		}
		if with := units3(s, "s", "ms", "m", func(s string) error { _, err := parseDuration(s); return err }); with != "" {
			return 0, fmt.Errorf("a duration needs a unit: %s", with)
		}
	}
	if s == "" {
		return 0, errors.New("empty duration: use 300ms, 90s, 5m or 7d")
	}
	var total float64
	for rest := s; rest != ""; {
		after := strings.TrimLeft(rest, "0123456789.")
		n, err := strconv.ParseFloat(rest[:len(rest)-len(after)], 64)
		i := slices.IndexFunc(units, func(u durationUnit) bool { return strings.HasPrefix(after, u.suffix) })
		if err != nil || i < 0 {
			return 0, fmt.Errorf("invalid duration %q: use 300ms, 90s, 5m or 7d", s)
		}
		total += n * float64(units[i].d)
		rest = after[len(units[i].suffix):]
	}
	if total >= math.MaxInt64 {
		return 0, fmt.Errorf("duration %q is too long", s)
	}
	return time.Duration(total), nil
}

// unlimited returns the error for a limit of no time. Who asks for 0 often means no limit.
func unlimited(flag string) *args.Error {
	return usage("%s must be positive", flag).WithHint("without %s there is no limit", flag)
}

// formatDuration writes a duration as parseDuration reads it.
func formatDuration(d time.Duration) string {
	if d >= time.Second && d%time.Second == 0 {
		for _, u := range []durationUnit{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}} {
			if d%u.d == 0 {
				return strconv.Itoa(int(d/u.d)) + u.suffix
			}
		}
	}
	return d.String()
}

// setter is the value of a flag that a function sets.
type setter func(s string) error

func (f setter) Set(s string) error { return f(s) }

func (f setter) String() string { return "" }

// setSize sets a SIZE: 64M, 16G. Units are powers of 1024. A number without a unit is
// refused.
func setSize(dest *int64) setter {
	return func(s string) (err error) {
		*dest, err = parseSize(s)
		return err
	}
}

// isNumber reports whether a text has digits and dots only.
func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789.") == "" }

// units3 returns a number with each of three units, or "" if one would be refused.
func units3(s, a, b, c string, check func(s string) error) string {
	if check(s+a) != nil || check(s+b) != nil || check(s+c) != nil {
		return ""
	}
	return fmt.Sprintf("%s%s, %s%s or %s%s", s, a, s, b, s, c)
}

func parseSize(s string) (int64, error) {
	if isNumber(s) {
		if with := units3(s, "K", "M", "G", func(s string) error { _, err := parseSize(s); return err }); with != "" {
			return 0, fmt.Errorf("a size needs a unit: %s", with)
		}
	}
	upper := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I")
	if upper == "" {
		return 0, fmt.Errorf("invalid size %q: use 64M or 16G", s)
	}
	shift := strings.IndexByte("BKMGT", upper[len(upper)-1]) * 10
	if strings.HasSuffix(strings.ToUpper(s), "B") && shift < 0 {
		upper, shift = upper+"B", 0 // plain bytes: 100B
	}
	n, err := strconv.ParseFloat(upper[:len(upper)-1], 64)
	if err != nil || shift < 0 || n <= 0 || n*float64(int64(1)<<shift) >= math.MaxInt64 {
		return 0, fmt.Errorf("invalid size %q: use 64M or 16G", s)
	}
	return int64(n * float64(int64(1)<<shift)), nil
}

// addField adds to the fields of -f and -F, which are in one list in their order.
func addField(list *[]args.Field, json bool) setter {
	return func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return fmt.Errorf("invalid field %q: use NAME=VALUE", s)
		}
		for _, f := range *list {
			if f.Name == name {
				return fmt.Errorf("field %q is given twice", name)
			}
		}
		*list = append(*list, args.Field{Name: name, Value: value, JSON: json})
		return nil
	}
}

// listValue collects a flag that may be repeated.
type listValue struct {
	list  *[]string
	check func(s string) error // nil: anything goes
}

func (v *listValue) Set(s string) error {
	*v.list = append(*v.list, s)
	if v.check == nil {
		return nil
	}
	return v.check(s)
}

func (v *listValue) String() string { return "" }

func onFlag(dest *string) cli.Flag {
	return &cli.GenericFlag{Name: "on", Usage: "only on workers whose name matches `GLOB`", Value: setter(func(s string) error {
		if _, err := path.Match(s, ""); err != nil {
			why := "bad range"
			if strings.LastIndexByte(s, '[') > strings.LastIndexByte(s, ']') {
				why = "missing ]"
			}
			return fmt.Errorf("invalid glob %q: %s", s, why)
		}
		*dest = s
		return nil
	})}
}

func hostname() string {
	name, _ := os.Hostname()
	return cmp.Or(name, "localhost")
}
