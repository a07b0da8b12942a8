package exec

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fbus/bus/args"
)

// rpcChild does as the first of its params says, with the second. Each request
// is served by itself, so answers come in any order.
func rpcChild() int {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	var mu sync.Mutex // guards stdout, cancelled
	cancelled := make(map[float64]chan struct{})
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format, args...)
	}
	for in.Scan() {
		var m struct {
			ID     float64
			Method string
			Params json.RawMessage
		}
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		if m.Method == "" { // an answer
			if !bytes.Contains(in.Bytes(), []byte(`"code":-32601`)) {
				return 2
			}
			continue
		}
		var params []string
		if m.Method == "$/cancelRequest" {
			var p struct{ ID float64 }
			json.Unmarshal(m.Params, &p)
			mu.Lock()
			if c := cancelled[p.ID]; c != nil {
				close(c)
				delete(cancelled, p.ID)
			}
			mu.Unlock()
			continue
		}
		if json.Unmarshal(m.Params, &params) != nil || len(params) == 0 {
			say(`{"jsonrpc":"2.0","id":%v,"result":%s}`+"\n", m.ID, m.Params)
			continue
		}
		params = append(params, "")
		done := make(chan struct{})
		mu.Lock()
		cancelled[m.ID] = done
		mu.Unlock()
		go func() { rpcObey(say, m.ID, params[0], params[1], done) }()
	}
	return 0
}

func rpcObey(say func(string, ...any), id float64, what, with string, cancelled <-chan struct{}) {
	answer := func(result string) { say(`{"jsonrpc":"2.0","id":%v,"result":%s}`+"\n", id, result) }
	quoted, _ := json.Marshal(with)
	switch what {
	case "echo":
		answer(string(quoted))
	case "raw":
		say("%s\n", strings.ReplaceAll(with, "ID", fmt.Sprint(id)))
	case "pid":
		answer(fmt.Sprint(os.Getpid()))
	case "crash":
		os.Exit(3)
	case "half":
		say("%s", with)
		os.Exit(3)
	case "twice":
		answer(string(quoted))
		answer(string(quoted))
	case "err":
		fmt.Fprintln(os.Stderr, with)
		answer("null")
	case "polite":
		<-cancelled
		say(`{"jsonrpc":"2.0","id":%v,"error":{"code":-32800,"message":"cancelled"}}`+"\n", id)
	case "slow":
		time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
		answer(string(quoted))
	case "hang":
		select {}
	}
}

func offerRPC(t testing.TB, more ...func(*Spec)) *Function {
	spec := Spec{Resident: JSONRPC, Slots: 1, Argv: []string{"/proc/self/exe", "child", "rpc"}, Grace: 200 * time.Millisecond,
		Env: []string{"GORACE=atexit_sleep_ms=0"}}
	for _, m := range more {
		m(&spec)
	}
	return offer(t, spec)
}

func pipelined(n int) func(*Spec) { return func(s *Spec) { s.Slots, s.Pipeline = n, n } }

func do(t *testing.T, f *Function, words ...any) reply {
	t.Helper()
	return runCall(t.Context(), f, list(t, words...))
}

func TestRPCParams(t *testing.T) {
	f := offerRPC(t)
	for _, tt := range []struct {
		c    *Call
		want string
	}{
		{list(t, doc("[1]"), doc("2.50")), "[[1],2.50]"},
		{fields(t, "a", "b", "c", doc("{\n\"x\": null }")), `{"a":"b","c":{"x":null}}`},
		{document(`{ "a" : 1e400 }`), `{"a":1e400}`},
		{document("[\n]"), "[]"},
		{document("17"), "[17]"},
	} {
		check(t, runCall(t.Context(), f, tt.c), programExit(0), tt.want+"\n")
	}
	check(t, runCall(t.Context(), f, &Call{}), programExit(0), "[]\n")
	check(t, runCall(t.Context(), f, &Call{Rest: strings.NewReader("")}), programExit(0), "[]\n")
	check(t, runCall(t.Context(), f, &Call{Input: []byte("echo")}), programExit(0), "\"\"\n")
	got := runCall(t.Context(), f, &Call{Input: []byte("\xff")})
	check(t, got, fbusEnd(args.CodeBadInput, "the input is not UTF-8, which JSON needs"), "")
	f.Close()
	one := offer(t, Spec{Name: "say.it", Resident: JSONRPC, Argv: []string{"perl", "-e",
		`$| = 1; while (<STDIN>) { chomp; s/"/\\"/g; s/\\n/\\\\n/g; print qq({"id":1,"result":"$_"}\n) }`}})
	check(t, runCall(t.Context(), one, &Call{Input: []byte("a\n")}), programExit(0),
		`"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"say.it\",\"params\":[\"a\\n\"]}"`+"\n")
}

func TestRPCErrors(t *testing.T) {
	log := newLines()
	f := offerRPC(t, logged(log))
	pid := do(t, f, "pid").out
	got := do(t, f, "raw", `{"id":ID,"error":{"code":-32001,"message":"no such\nthing","data":{"a": 1}}}`)
	check(t, got, Result{End: args.End{Source: args.FromProgram, Status: 1, Code: "-32001", Message: "no such\nthing"}}, "")
	if got.err != "no such\nthing {\"a\":1}\n" {
		t.Errorf("%q", got.err)
	}
	check(t, do(t, f, "raw", `{"id":ID.0,"result":{ "a" : "b c" },"error":null}`), programExit(0), "{\"a\":\"b c\"}\n")
	check(t, do(t, f, "raw", `{"id":ID,"result":null}`), programExit(0), "null\n")
	for _, bad := range []string{`{"id":ID}`, `{"id":ID,"result":1,"error":{"code":1,"message":""}}`,
		`{"id":ID,"error":"text"}`, `{"id":ID,"error":{"code":1.5,"message":""}}`} {
		if got := do(t, f, "raw", bad); got.Code != args.CodeInternal || got.Source != args.FromBus || !strings.Contains(got.Message, `{\"id\":`) {
			t.Errorf("%+v", got)
		}
	}
	check(t, do(t, f, "raw", `{"id":ID,"result":1,"method":null,"ID":99,"Error":{}}`), programExit(0), "1\n") // names are what they are
	check(t, do(t, f, "raw", "{\"method\":\"progress\",\"params\":[1]}\n\n{\"id\":7,\"method\":\"ask\"}\n{\"id\":ID,\"result\":1}"), programExit(0), "1\n")
	for _, want := range []string{`f: notification: {"method":"progress","params":[1]}`, `f: request, refused: {"id":7,"method":"ask"}`} {
		if line := log.next(t); line != want {
			t.Errorf("%q", line)
		}
	}
	for range 50 {
		if got := do(t, f, "err", "to the caller"); got.out != "null\n" || got.err != "to the caller\n" {
			t.Errorf("%+v", got)
		}
	}
	check(t, do(t, f, "pid"), programExit(0), pid)
}

// A message that is nobody's costs the call that is held, and the process.
func TestRPCMalformed(t *testing.T) {
	t.Parallel()
	f := offerRPC(t)
	for _, bad := range []string{"noise", "[]", `{"id":"x","result":1}`, `{"id":99999,"result":1}`, `{"id":null,"error":{"code":-32700,"message":""}}`, `{"result":1}`,
		`{"id":1,"result":1,"id":2}`, `{"id":1,"method":"ask","result":1}`, `{"id":1,"result":1} {}`, `{"Id":1,"result":1}`} {
		pid := do(t, f, "pid").out
		got := do(t, f, "raw", bad)
		if got.Code != args.CodeInternal || !strings.Contains(got.Message, quote([]byte(bad))) {
			t.Errorf("%s: %+v", bad, got)
		}
		if got := do(t, f, "pid"); got.Status != 0 || got.out == pid {
			t.Errorf("%s: %+v after %s", bad, got, pid)
		}
	}
	check(t, do(t, f, "crash"), lostAs("the program exited with status 3 before it answered"), "")
	check(t, do(t, f, "echo", "x"), programExit(0), "\"x\"\n")
	check(t, do(t, f, "half", `{"id":`), lostAs(`the program exited with status 3 before it answered; it left half a line: "{\"id\":"`), "")
	for i := range 5 {
		check(t, do(t, f, "twice", fmt.Sprint(i)), programExit(0), fmt.Sprintf("\"%d\"\n", i))
	}
}

func TestRPCTooLong(t *testing.T) {
	t.Parallel()
	f := offerRPC(t, func(s *Spec) { s.MaxOutput = 10 })
	over := fbusEnd(args.CodeOutputLimit, "output exceeds 10 bytes")
	check(t, do(t, f, "echo", "1234567"), programExit(0), "\"1234567\"\n")
	check(t, do(t, f, "echo", "12345678"), over, "")
	check(t, do(t, f, "echo", strings.Repeat("x", 1<<20)), over, "")
	long := strings.Repeat("x", 3<<20)
	check(t, do(t, offerRPC(t), "echo", long), programExit(0), `"`+long+"\"\n")
}

// A program is told which call nobody waits for. It stays if it lets go of it.
func TestRPCTimeout(t *testing.T) {
	limit := func(grace time.Duration) func(*Spec) {
		return func(s *Spec) { s.Timeout, s.Grace = 50*time.Millisecond, grace }
	}
	late := fbusEnd(args.CodeDeadline, "ran longer than 50ms")
	f := offerRPC(t, pipelined(2), limit(patience))
	pid := programOf(t, f)
	// On a busy machine the time may be over before the call has reached a process.
	reach := func(what string) reply {
		for {
			if got := do(t, f, what); !strings.HasPrefix(got.Message, "no process was ready") {
				return got
			}
		}
	}
	for range 3 {
		check(t, reach("polite"), late, "")
	}
	if now := programOf(t, f); now != pid {
		t.Errorf("process %d was replaced by %d", pid, now)
	}

	f = offerRPC(t, pipelined(2), limit(50*time.Millisecond))
	pid = programOf(t, f)
	got := reach("hang")
	check(t, got, late, "")
	if got.err != flushHint {
		t.Errorf("%q", got.err)
	}
	checkGone(t, itoa(pid))
}

// Each of several callers is told what a silent program may lack.
func TestRPCHint(t *testing.T) {
	f := offerRPC(t, pipelined(2))
	late, pass := overdue(t)
	said := newLines()
	var done []<-chan Result
	for range 2 {
		c := list(t, "hang")
		c.Stderr, c.Deadline = said, time.Now().Add(100*time.Millisecond)
		done = append(done, background(late, f, c))
	}
	for range done {
		if line := said.next(t); line+"\n" != flushHint {
			t.Errorf("%q", line)
		}
	}
	pass()
	for _, d := range done {
		await(t, d)
	}
}

// A process that does not let go of a call is replaced, once it has answered
// the others.
func TestRPCCancel(t *testing.T) {
	t.Parallel()
	f := offerRPC(t, pipelined(2))
	pid := do(t, f, "pid").out
	late, pass := overdue(t)
	hung := background(late, f, list(t, "hang"))
	eventually(t, "asked", func() bool { return heldCalls(f) == 1 })
	check(t, do(t, f, "pid"), programExit(0), pid)
	pass()
	if res := await(t, hung); res.Code != "deadline" {
		t.Errorf("%+v", res)
	}
	checkGone(t, pid)
	check(t, do(t, f, "echo", "x"), programExit(0), "\"x\"\n")

	ctx, cancel := context.WithCancel(t.Context())
	g := offerRPC(t, pipelined(2))
	pid = do(t, g, "pid").out
	other, cancelOther := context.WithCancel(t.Context())
	first, second := background(ctx, g, list(t, "hang")), background(other, g, list(t, "hang"))
	eventually(t, "asked", func() bool { return heldCalls(g) == 2 })
	cancel()
	// It takes no further call, and keeps the one that nobody has given up.
	eventually(t, "another process answers", func() bool { return do(t, g, "pid").out != pid })
	cancelOther()
	for _, ended := range []<-chan Result{first, second} {
		if res := await(t, ended); res.Code != "cancelled" {
			t.Errorf("%+v", res)
		}
	}
	checkGone(t, pid)

	third := background(t.Context(), g, list(t, "hang"))
	eventually(t, "asked", func() bool { return heldCalls(g) == 1 })
	g.Kill()
	if res := await(t, third); res.Code != "cancelled" {
		t.Errorf("%+v", res)
	}
}

// One process holds as many calls as it is said to, and no more.
func TestRPCPipeline(t *testing.T) {
	t.Parallel()
	f := offerRPC(t, func(s *Spec) { s.Slots, s.Pipeline, s.MaxCalls = 4, 4, 50 })
	timed(400, 6, func() {
		if got := runCall(t.Context(), f, list(t, "slow", "x")); got.out != "\"x\"\n" {
			t.Errorf("%+v", got)
		}
		f.stay.mu.Lock()
		defer f.stay.mu.Unlock()
		for p := range f.stay.all {
			if len(p.calls) > 4 || p.taken > 50 || f.stay.inService() > 1 {
				t.Errorf("%d held, %d taken, %d processes", len(p.calls), p.taken, f.stay.inService())
			}
		}
	})
}

// Whatever the program does, no answer reaches another call. Half of the calls
// have all the time they need: how many are answered is no matter of speed.
// FBUS_SOAK=1 makes more of them.
func TestResidentChaos(t *testing.T) {
	calls := 200
	if soak() {
		calls = 4000
	}
	before := takeCensus()
	f := offerRPC(t, func(s *Spec) { s.Slots, s.Pipeline, s.Grace = 8, 4, 20*time.Millisecond })
	var n, good atomic.Int64
	timed(calls, 8, func() {
		word := fmt.Sprintf("word %d", n.Add(1))
		c := list(t, "echo", word)
		late, pass := rand.IntN(2) == 0, func() {}
		switch rand.IntN(60) {
		case 0:
			c = list(t, "crash")
		case 1:
			c = list(t, "raw", "noise")
		case 2:
			c = list(t, "half", "{")
		case 3:
			c, late = list(t, "hang"), true
		case 4, 5:
			c = list(t, "twice", word)
		case 6, 7:
			c, late = list(t, "polite"), true
		default:
			if rand.IntN(4) == 0 {
				c = list(t, "slow", word)
			}
		}
		ctx := t.Context()
		if late {
			ctx, pass = context.WithTimeout(ctx, time.Duration(1+rand.IntN(200))*time.Millisecond)
		}
		defer pass()
		got := runCall(ctx, f, c)
		switch {
		case got.Source == args.FromProgram && got.Status == 0:
			good.Add(1)
			if got.out != fmt.Sprintf("%q\n", word) {
				t.Errorf("%s: %+v", word, got)
			}
		case got.out != "" || got.Source != args.FromBus:
			t.Errorf("%s: %+v", word, got)
		}
	})
	if good.Load() < int64(calls/4) {
		t.Errorf("%d good of %d", good.Load(), calls)
	}
	f.Close()
	eventually(t, "as before", func() bool { return takeCensus().children <= before.children })
}

// The same with lines: an answer is its call's, or there is none. The program
// hangs where it is told to, since a call that has all the time would wait.
func TestLineChaos(t *testing.T) {
	before := takeCensus()
	f := offer(t, Spec{Resident: LineByLine, Slots: 3, Grace: 20 * time.Millisecond, Argv: []string{"perl", "-e", `$| = 1; $SIG{TERM} = "IGNORE" if $$ % 2;
		while (<STDIN>) {
			$n++; $r = rand 40;
			exit 3 if $n % 7 == 0;
			if (/hang/) { sleep 1000 }
			elsif ($r < 2) { chop; print; exit }
			elsif ($r < 3) { print "$_$_"; next }
			elsif ($r < 4) { kill 9, $$ }
			elsif ($r < 5) { select undef, undef, undef, 0.02 }
			print }`}})
	var n, good atomic.Int64
	calls := 150
	if soak() {
		calls = 1200
	}
	timed(calls, 4, func() {
		word := fmt.Sprintf("word %d\n", n.Add(1))
		hang := rand.IntN(40) == 0
		if hang {
			word = "hang " + word
		}
		ctx, pass := t.Context(), func() {}
		if hang || rand.IntN(2) == 0 {
			ctx, pass = context.WithTimeout(ctx, time.Duration(1+rand.IntN(60))*time.Millisecond)
		}
		defer pass()
		got := runCall(ctx, f, &Call{Input: []byte(word)})
		switch {
		case got.Source == args.FromProgram:
			good.Add(1)
			if got.out != word {
				t.Errorf("%q: %+v", word, got)
			}
		case got.out != "":
			t.Errorf("%q: %+v", word, got)
		}
	})
	if good.Load() < int64(calls/4) {
		t.Errorf("%d good of %d", good.Load(), calls)
	}
	f.Close()
	eventually(t, "as before", func() bool { return takeCensus().children <= before.children })
}

func TestRPCKilledIdle(t *testing.T) {
	t.Parallel()
	f := offerRPC(t)
	for range 4 {
		got := do(t, f, "pid")
		check(t, got, programExit(0), got.out)
		killAndWait(t, pidOf(t, got.out))
	}
	pid := pidOf(t, do(t, f, "pid").out)
	f.Close()
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Error(err)
	}
}

// A greeting on stdout ends the calls that meet it, with a hint at --reply-fd for them and for
// the log.
func TestRPCBanner(t *testing.T) {
	t.Parallel()
	log := newLines()
	f := sh(t, `read -r x; echo welcome; cat`, func(s *Spec) { s.Resident, s.Slots = JSONRPC, 1 }, logged(log))
	got := do(t, f, "x")
	if got.Code != args.CodeInternal || got.Hint != replyHint || !strings.Contains(got.Message, "welcome") {
		t.Errorf("%+v", got)
	}
	for line := log.next(t); line != "hint: --reply-fd 3 takes answers from another descriptor than stdout"; {
		line = log.next(t)
	}
}
