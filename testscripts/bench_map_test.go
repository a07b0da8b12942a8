package testscripts

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkMap is fbus map over a program that does nothing, started for each
// line, beside xargs and GNU parallel, all with two at once.
func BenchmarkMap(b *testing.B) {
	s := newBus(b, []string{"f", "--slots", "2", "--args", "argv", "--", "true"})
	rate := func(lines int, cmd *exec.Cmd) float64 {
		var in strings.Builder
		for i := range lines {
			fmt.Fprintln(&in, i)
		}
		cmd.Stdin = strings.NewReader(in.String())
		began := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %v: %.400s", cmd.Args, err, out)
		}
		return float64(lines) / time.Since(began).Seconds()
	}
	peers := []struct {
		name    string
		lines   int
		command []string
	}{
		{"xargs", 400, []string{"xargs", "-P2", "-n1", "true"}},
		{"parallel", 100, []string{"parallel", "-j2", "true"}}, // a few hundred lines a second at best
	}
	for _, peer := range peers {
		b.Run(peer.name, func(b *testing.B) {
			if _, err := exec.LookPath(peer.command[0]); err != nil {
				b.Skipf("%s is not installed", peer.name)
			}
			var ours, theirs []float64
			for b.Loop() {
				ours = append(ours, rate(400, s.command("map", "f")))
				theirs = append(theirs, rate(peer.lines, exec.Command(peer.command[0], peer.command[1:]...)))
			}
			slices.Sort(ours)
			slices.Sort(theirs)
			o, p := ours[len(ours)/2], theirs[len(theirs)/2]
			b.ReportMetric(o, "fbus-lines/s")
			b.ReportMetric(p, "peer-lines/s")
			b.ReportMetric(o/p, "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
