package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// startJobs puts the functions on the bus that keep posted calls, and begins to run
// what is there.
func (n *Node) startJobs() error {
	own, err := n.connectItself(Peer{Caller: "node"}, forItself)
	if err != nil {
		return err
	}
	for _, o := range []struct {
		name, description, arguments string
		serve                        func(ctx context.Context, p *Peer, inv *bus.Invocation) bus.Result
	}{
		{"fbus.post", "keep a call that nobody waits for", "a name, options in JSON, arguments", n.servePost},
		{"fbus.jobs", "posted calls, one JSON object a line", "none, or a JSON object", n.serveJobs},
		{"fbus.result", "what a posted call has written, and how it ended", "its id, options in JSON", n.serveResult},
		{"fbus.retry", "run posted calls again that are dead", "a JSON object", n.serveRetry},
		{"fbus.purge", "delete posted calls and their results", "a JSON object", n.servePurge},
	} {
		handler := func(ctx context.Context, inv *bus.Invocation) bus.Result {
			if n.cfg.Jobs == nil {
				return bus.Result{Source: args.FromBus, Status: 75, Code: codeStoreFailed, Message: "nothing can be posted to this node: " + n.cfg.NoJobs.Error()}
			}
			return o.serve(ctx, n.asker(inv), inv)
		}
		offer := bus.Offer{Name: o.name, Slots: longSlots, Description: o.description, Arguments: o.arguments}
		if o.name == "fbus.post" && n.cfg.Jobs != nil {
			// Posts of one connection, made one after the other, have ids in that order,
			// however long each takes.
			offer.Arrive = func() any { return n.cfg.Jobs.Arrives() }
		}
		if _, err := own.Offer(context.Background(), offer, handler); err != nil {
			return err
		}
	}
	if n.cfg.Jobs == nil {
		return nil
	}
	runner, err := n.connectItself(Peer{Caller: "node"}, forJobs)
	if err != nil {
		return err
	}
	return n.cfg.Jobs.Start(jobs.Host{Call: runner.Call, Recall: n.recall, May: n.posterMay, Offered: n.offered})
}

// connectItself makes a connection of the node to itself.
func (n *Node) connectItself(p Peer, as role) (*bus.Client, error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, err
	}
	go n.serve(far, p, as) // ends when the client is closed, or the node
	c, err := bus.NewClient(context.Background(), near, &bus.DialOptions{Name: n.cfg.Name})
	if err == nil {
		n.forJobs = append(n.forJobs, c)
	}
	return c, err
}

func socketPair() (near, far net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, e := net.FileConn(f)
		f.Close()
		ends[i], err = c, errors.Join(err, e)
	}
	return ends[0], ends[1], err
}

// offered reports whether somebody offers a function, to whom the glob fits.
func (n *Node) offered(name, on string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	fn := n.functions[name]
	return fn != nil && fn.serves(on)
}

// serves reports whether somebody offers the function, to whom the glob fits.
func (fn *function) serves(on string) bool {
	for _, o := range fn.offers {
		if on == "" || wire.MatchWorker(on, o.session.name, string(o.session.prefix)) {
			return true
		}
	}
	return false
}

// poster is who posts, for as long as the job lives.
func (n *Node) poster(p *Peer) jobs.Poster {
	who := jobs.Poster{Caller: p.Caller, Serial: p.Serial, Groups: p.groups}
	if _, ours := n.cfg.Gate.(*trust.Authority); p.Serial != "" && !ours {
		who.Rights, who.Until = p.Rights.Words(), p.Expires.Unix()
	}
	return who
}

// posterMay says whether a poster may call that function now.
func (n *Node) posterMay(who *jobs.Poster, function string) error {
	rights, err := n.rightsOf(who)
	p := Peer{Caller: who.Caller, Rights: rights}
	switch {
	case err != nil:
		return fmt.Errorf("%s may not call %s: %w", who.Caller, function, err)
	case !p.mayCall(function) || reserved(function):
		return fmt.Errorf("%s may not call %s", who.Caller, function)
	}
	return nil
}

// rightsOf are a poster's rights now; nil: all.
func (n *Node) rightsOf(who *jobs.Poster) (*trust.Rights, error) {
	if uid, ok := strings.CutPrefix(who.Caller, "uid:"); ok {
		id, err := strconv.Atoi(uid)
		switch {
		case err != nil:
			return nil, err
		case id == os.Getuid() || id == 0:
			return nil, nil
		case n.cfg.Local != nil:
			if rights, ok := n.cfg.Local(id, who.Groups); ok {
				return &rights, nil
			}
		}
		return nil, errors.New("it may not use this node any more")
	}
	if a, ok := n.cfg.Gate.(*trust.Authority); ok {
		rights, err := a.Standing(who.Serial)
		return &rights, err
	}
	if len(who.Rights) == 0 || time.Now().Unix() > who.Until {
		return nil, errors.New("its certificate has expired")
	}
	rights, err := trust.ParseRights(who.Rights...)
	return &rights, err
}

// servePost keeps a call. It answers when that is on disk.
func (n *Node) servePost(ctx context.Context, p *Peer, inv *bus.Invocation) bus.Result {
	if came, ok := inv.Arrival.(jobs.ID); ok {
		defer n.cfg.Jobs.Settled(came)
		if inv.Rest != nil { // others do not wait for an input that is still to come
			n.cfg.Jobs.Settled(came)
		}
	}
	post, err := n.readPost(p, inv)
	if err != nil {
		return n.jobResult(p, err)
	}
	id, err := n.cfg.Jobs.Post(post)
	if ctx.Err() != nil && err != nil {
		return bus.Result{Source: args.FromBus, Status: 143, Code: args.CodeCancelled}
	}
	if err != nil {
		return n.jobResult(p, err)
	}
	res := exit0
	res.Output = []byte(id.String() + "\n")
	return res
}

func (n *Node) readPost(p *Peer, inv *bus.Invocation) (*jobs.Post, error) {
	words, err := inv.Words()
	if err != nil || len(words) < 1 || len(words) > 3 {
		return nil, usageError("fbus.post takes a function's name, options as a JSON object, and arguments")
	}
	post := &jobs.Post{Function: words[0], Poster: n.poster(p)}
	post.ID, _ = inv.Arrival.(jobs.ID)
	var text, kind string
	if len(words) > 1 {
		text = words[1]
	}
	if post.Options, kind, post.HasInput, err = jobs.ParseOptions([]byte(text)); err != nil {
		return nil, usageError("fbus.post: " + err.Error())
	}
	if len(words) > 2 {
		post.Args, post.Kind = []byte(words[2]), args.KindList
	}
	if err := setKind(post, kind, len(words) > 2); err != nil {
		return nil, err
	}
	o := &post.Options
	for _, name := range []string{post.Function, o.Then, o.Else, o.Finally} {
		switch {
		case name == "" && post.Function != "":
		case !ValidName(name):
			return nil, usageError(fmt.Sprintf("%q is no function name", clean([]byte(name))))
		case reserved(name):
			return nil, usageError(name + ": the node's own functions can not be posted")
		case !p.mayCall(name):
			n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventRefused, Caller: p.Caller, From: p.From, Function: name, Code: args.CodeDenied, Serial: p.Serial})
			return nil, &args.Error{Code: args.CodeDenied, Message: fmt.Sprintf("%s may not call %s", p.Caller, name)}
		}
	}
	if _, err := path.Match(o.On, ""); err != nil {
		return nil, usageError(fmt.Sprintf("%q is no glob", clean([]byte(o.On))))
	}
	if post.Input = io.Reader(bytes.NewReader(inv.Input)); inv.Rest != nil {
		post.Input = io.MultiReader(post.Input, inv.Rest)
	}
	return post, nil
}

// setKind says what the arguments are.
func setKind(post *jobs.Post, kind string, given bool) error {
	kinds := map[string]args.Kind{"raw": args.KindRaw, "list": args.KindList, "map": args.KindMap, "json": args.KindJSON}
	k, ok := kinds[kind]
	switch {
	case kind == "":
	case !ok:
		return usageError("fbus.post: kind is raw, list, map or json")
	case given == (k == args.KindRaw):
		return usageError("fbus.post: arguments and their kind go together")
	default:
		post.Kind = k
	}
	if len(post.Args) > wire.MaxArgs {
		return &args.Error{Code: args.CodeBadInput, Message: fmt.Sprintf("arguments of %d bytes exceed the limit of %d", len(post.Args), wire.MaxArgs)}
	}
	if post.Kind == args.KindJSON && !json.Valid(post.Args) {
		return &args.Error{Code: args.CodeBadInput, Message: "the arguments are no JSON"}
	}
	return nil
}

func usageError(msg string) error { return &args.Error{Code: args.CodeUsage, Message: msg} }

// Codes of refusals that are the store's.
const (
	codeStoreFull   = "store_full"   // 75: there is room again when jobs have ended
	codeStoreFailed = "store_failed" // 75: it is tried again
	codeUnfinished  = "unfinished"   // 75: the job has not ended
	codeDamaged     = "damaged"      // 70: it is not what was written
)

// jobResult is how a call ends that could not do what was asked of jobs.
func (n *Node) jobResult(_ *Peer, err error) bus.Result {
	fail := func(status int, code string) bus.Result {
		return bus.Result{Source: args.FromBus, Status: status, Code: code, Message: err.Error()}
	}
	var be *args.Error
	var full *jobs.FullError
	var store *jobs.StoreError
	var damaged *jobs.DamagedError
	switch {
	case errors.As(err, &be):
		return fail(args.StatusOf(be.Code), be.Code)
	case errors.As(err, &full):
		return fail(75, codeStoreFull)
	case errors.As(err, &store):
		return fail(75, codeStoreFailed)
	case errors.As(err, &damaged):
		return fail(70, codeDamaged)
	case errors.Is(err, jobs.ErrUnfinished):
		return fail(75, codeUnfinished)
	case errors.Is(err, jobs.ErrClosed):
		return fail(75, args.CodeDraining)
	}
	return fail(65, args.CodeBadInput)
}
