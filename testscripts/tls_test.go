package testscripts

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// scripts are named, or by the beginning of their names up to a _.
type scripts struct{ names, why string }

// overTLSToo are the scripts that run over TLS as well: what they promise depends on the
// way to the node.
var overTLSToo = []scripts{
	{"call_streams call_stdin_never_waited call_streaming call_closed_pipe call_all_input", "bytes in both directions"},
	{"call_interrupted call_killed call_stopped call_timeout cancel", "the caller ends the call"},
	{"call_worker_killed call_node_killed offer_node_restart result_restart", "a peer is lost"},
	{"serve_drain serve_second_signal offer_drain", "a peer drains"},
	{"ps map_items pipe_queue post", "many calls on one connection, and its caller's name"},
}

// notOverTLS are the scripts that cannot run over TLS. FBUS_SOAK=1 runs all others.
var notOverTLS = []scripts{
	{"up_ up", "make a node of their own, or name one by its socket"},
	{"serve_socket_taken serve_stale_socket serve_network_ serve_ready status socket_ doctor_", "are about sockets, and which node is found"},
	{"offer_no_node", "begins without a node, so without a ticket of it"},
	{"import hints_are_commands offer_refused", "are about words, or name the node by its socket"},
	{"example_", "connect themselves, or know where"},
}

var (
	startsNode = regexp.MustCompile(`(?m)^node\b`)
	usesTCP    = regexp.MustCompile(`--listen|FBUS_TICKET`) // by itself
)

// TestScriptsTLS runs scripts again, over TLS.
func TestScriptsTLS(t *testing.T) {
	long(t)
	t.Parallel()
	files, err := filepath.Glob("*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	p := params(t)
	setup := p.Setup
	p.Setup = func(env *testscript.Env) error {
		if err := setup(env); err != nil {
			return err
		}
		env.Setenv("CALLER", `ticket:suite-\d`)
		env.Setenv("AT", `127\.\d+\.\d+\.\d+:\d+`)
		env.Values[runnerKey{}].(*runner).tls = newOverTLS()
		return nil
	}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if startsNode.Match(src) && !usesTCP.Match(src) && !has(notOverTLS, file) && (soak() || has(overTLSToo, file)) {
			p.Files = append(p.Files, file)
		}
	}
	testscript.Run(t, p)
}

// has reports whether a list has the script in that file.
func has(list []scripts, file string) bool {
	script := strings.TrimSuffix(file, ".txtar")
	return slices.ContainsFunc(list, func(s scripts) bool {
		return slices.ContainsFunc(strings.Fields(s.names), func(name string) bool {
			return name == script || strings.HasSuffix(name, "_") && strings.HasPrefix(script, name)
		})
	})
}

// overTLS has one script's commands use TCP: its nodes listen at one address, and
// from the first of them on FBUS_TICKET takes the place of FBUS_NODE.
type overTLS struct {
	address string
	socket  string // of the nodes, for those who may invite
	tickets int
}

// newOverTLS chooses a loopback address of the script's own: its port stays free
// while a node restarts, since nobody else listens there, and no connection
// starts there.
func newOverTLS() *overTLS {
	return &overTLS{address: fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(254), rand.N(255), 1+rand.N(254))}
}

var listensAt = regexp.MustCompile(`and at (\S+), ticket holders only`)

// node starts a node and gets a ticket of it, under which the rest of the script
// may do everything.
func (o *overTLS) node(ts *testscript.TestScript, name string, args []string) {
	if o.socket == "" {
		o.socket = ts.Getenv("FBUS_NODE")
	}
	startReady(ts, name, append([]string{"fbus", "serve", "--socket", o.socket, "--listen", o.address}, args...), `is ready at`)
	at := listensAt.FindStringSubmatch(ts.ReadFile(name + ".err"))
	if at == nil {
		ts.Fatalf("%s listens nowhere: %s", name, ts.ReadFile(name+".err"))
	}
	o.address = at[1]
	o.tickets++
	ticket := fmt.Sprintf("%s.%d", filepath.Join(ts.Getenv("TMPDIR"), "suite"), o.tickets)
	ts.Check(ts.Exec("fbus", "invite", "-q", "--node", o.socket, "--call", "*", "--offer", "*", "--admin", "--reusable",
		"--name", fmt.Sprintf("suite-%d", o.tickets), "-o", ticket))
	ts.Setenv("FBUS_TICKET", ticket)
	ts.Setenv("FBUS_NODE", "")
}
