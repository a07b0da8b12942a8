package testscripts

import (
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkPipe is calls a second from one bash: to a coproc that runs fbus pipe,
// one after the other and with 100 outstanding, beside fbus call in the same loop.
// The function is a resident loop of Perl, so that it is the callers that are
// measured.
func BenchmarkPipe(b *testing.B) {
	for _, tool := range []string{"bash", "perl"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("%s is not installed", tool)
		}
	}
	s := newBus(b, []string{"f", "--slots", "2", "--resident", "lines", "--", "perl", "-e", "$| = 1; print while <STDIN>"})
	const few, many = 50, 2000
	run := func(n int, script string) float64 {
		cmd := exec.Command("bash", "-c", script, "bash", s.fbus, strconv.Itoa(n))
		cmd.Env = s.command().Env
		began := time.Now()
		out, err := cmd.CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != strconv.Itoa(n) {
			b.Fatalf("%v: %.400s", err, out)
		}
		return float64(n) / time.Since(began).Seconds()
	}
	rates := map[string][]float64{}
	for b.Loop() {
		rates["call"] = append(rates["call"], run(few, callLoop))
		rates["pipe"] = append(rates["pipe"], run(many, pipeLoop))
		rates["ahead"] = append(rates["ahead"], run(many, pipeAhead))
	}
	median := func(name string) float64 {
		slices.Sort(rates[name])
		return rates[name][len(rates[name])/2]
	}
	b.ReportMetric(median("call"), "call/s")
	b.ReportMetric(median("pipe"), "pipe/s")
	b.ReportMetric(median("ahead"), "outstanding/s")
	b.ReportMetric(median("pipe")/median("call"), "ratio")
	b.ReportMetric(median("ahead")/median("call"), "ratio-outstanding")
}

// Each prints how many answers were right.
const (
	callLoop = `for ((i = 0; i < $2; i++)); do
	[[ $("$1" call f "$i") == "$i" ]] && ((ok++))
done
echo $ok`

	pipeLoop = `coproc BUS { exec "$1" pipe; }
for ((i = 0; i < $2; i++)); do
	printf '{"jsonrpc":"2.0","id":%d,"method":"f","params":["%d"]}\n' $i $i >&${BUS[1]}
	read -r line <&${BUS[0]}
	[[ $line == '{"jsonrpc":"2.0","id":'$i',"result":'$i'}' ]] && ((ok++))
done
echo $ok`

	pipeAhead = `coproc BUS { exec "$1" pipe; }
for ((i = 0; i < $2; i++)); do
	printf '{"jsonrpc":"2.0","id":%d,"method":"f","params":["%d"]}\n' $i $i >&${BUS[1]}
	((i < 100)) && continue
	read -r line <&${BUS[0]}
	[[ $line =~ '"id":'([0-9]+)',"result":'([0-9]+)'}' && ${BASH_REMATCH[1]} == ${BASH_REMATCH[2]} ]] && ((ok++))
done
for ((i = 0; i < 100; i++)); do
	read -r line <&${BUS[0]}
	[[ $line =~ '"id":'([0-9]+)',"result":'([0-9]+)'}' && ${BASH_REMATCH[1]} == ${BASH_REMATCH[2]} ]] && ((ok++))
done
echo $ok`
)
