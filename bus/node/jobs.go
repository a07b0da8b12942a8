package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// poster returns the poster as the store keeps it with the job.
func (n *Node) poster(p *Peer) jobs.Poster {
	who := jobs.Poster{Caller: p.Caller, Owner: p.Owner, Serial: p.Serial, Groups: p.lent}
	if _, ours := n.cfg.Gate.(*trust.Authority); p.Serial != "" && !ours {
		who.Rights, who.Until = p.Rights.Words(), p.Expires.Unix()
		if p.identity != nil {
			who.Issuer = p.identity.Issuer
		}
	}
	if n.first != nil && p.token != nil { // it is not asked again whether that has expired
		if end := p.token.Expires.Unix(); who.Until == 0 || end < who.Until {
			who.Until = end
		}
	}
	return who
}

// MayRun returns an error if a poster may not call that function now.
func (n *Node) MayRun(who *jobs.Poster, function string) error {
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

// rightsOf returns a poster's rights now; nil: all.
func (n *Node) rightsOf(who *jobs.Poster) (*trust.Rights, error) {
	if name, serial := tokenOf(who.Owner); serial != "" { // it stands for a relay's caller, with less than the relay's rights
		var err error
		switch {
		case n.cfg.Authority != nil:
			_, err = n.cfg.Authority.Standing(serial)
		case n.first != nil:
			err = n.first.second.CheckToken(&trust.Record{Kind: trust.Token, Name: name, Serial: serial, Expires: time.Unix(who.Until, 0)})
		}
		if err != nil {
			return nil, err
		}
	}
	if uid, ok := strings.CutPrefix(via(who.Caller), "uid:"); ok {
		id, err := strconv.Atoi(uid)
		switch {
		case err != nil:
			return nil, err
		case id == os.Getuid() || id == 0:
			return nil, nil
		case n.cfg.Local != nil:
			groups, err := n.groups(id)
			if err != nil {
				return nil, fmt.Errorf("its groups are unknown: %w", err)
			}
			if rights, ok := n.cfg.Local(id, append(groups, who.Groups...)); ok {
				if strings.Contains(who.Caller, "/") && !rights.Relay {
					return nil, fmt.Errorf("%s may not make calls for others any more", via(who.Caller))
				}
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
	if g, ok := n.cfg.Gate.(interface {
		Standing(issuer, serial string) error
	}); ok && who.Issuer != "" {
		if err := g.Standing(who.Issuer, who.Serial); err != nil {
			return nil, err
		}
	}
	rights, err := trust.ParseRights(who.Rights...)
	return &rights, err
}

// servePost keeps a call. It answers when that is on disk.
func servePost(_ context.Context, q *asked) error {
	n := q.node
	came, ok := q.Arrival.(jobs.ID)
	if ok && q.Rest() != nil { // others do not wait for an input that is still to come
		n.cfg.Jobs.Settled(came)
	}
	post, err := n.readPost(q)
	if err != nil {
		return err
	}
	post.ID = came
	id, err := n.cfg.Jobs.Post(post)
	if err == nil {
		q.out.WriteString(id.String() + "\n")
	}
	return err
}

func (n *Node) readPost(q *asked) (*jobs.Post, error) {
	words, err := q.Words()
	if err != nil || len(words) < 1 || len(words) > 3 {
		return nil, usageError("fbus.post takes a function's name, options as a JSON object, and arguments")
	}
	words = append(words, "", "")
	post := &jobs.Post{Function: words[0], Poster: n.poster(q.peer), Trace: q.Trace}
	var kind string
	if post.Options, kind, post.HasInput, err = jobs.ParseOptions([]byte(words[1])); err != nil {
		return nil, usageError("fbus.post: %v", err)
	}
	given := len(words) == 5 // and the two empty ones
	if given {
		post.Args, post.Kind = []byte(words[2]), args.KindList
	}
	if err := setKind(post, kind, given); err != nil {
		return nil, err
	}
	o := &post.Options
	for _, name := range []string{post.Function, o.Then, o.Else, o.Finally} {
		switch {
		case name == "" && post.Function != "":
		case !args.ValidName(name):
			return nil, usageError("invalid function name %q", args.Shown(name))
		case reserved(name):
			return nil, usageError("%s: the node's own functions cannot be posted", name)
		case !q.peer.mayCall(name):
			return nil, q.deny(name)
		}
	}
	post.Input = q.Input
	return post, n.checkTakes(post)
}

// checkTakes refuses a job that none of the workers takes that are there now: it would be dead at once.
func (n *Node) checkTakes(post *jobs.Post) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	fn := n.functions[post.Function]
	if fn == nil || post.Kind == args.KindRaw {
		return nil
	}
	takes, first := "", true
	for _, list := range fn.all() {
		for _, o := range list[:min(len(list), maxPassed)] {
			if first {
				takes, first = o.takes, false
			}
			if o.takes != takes {
				return nil
			}
		}
	}
	switch {
	case takes == "input":
		return args.BadInput("%s: takes input on stdin, not arguments", post.Function).WithHint("fbus post --each raw sends items as input, and fbus post %s < FILE a file", post.Function)
	case takes == "args" && post.HasInput:
		return args.BadInput("%s: takes arguments, not input on stdin", post.Function)
	}
	return nil
}

// setKind checks and sets the kind of the arguments.
func setKind(post *jobs.Post, kind string, given bool) error {
	kinds := map[string]args.Kind{"raw": args.KindRaw, "list": args.KindList, "map": args.KindMap, "json": args.KindJSON}
	k, ok := kinds[kind]
	switch {
	case kind == "":
	case !ok:
		return usageError("fbus.post: kind must be raw, list, map or json")
	case given == (k == args.KindRaw):
		return usageError("fbus.post: arguments need a kind, and the other way round")
	default:
		post.Kind = k
	}
	if len(post.Args) > wire.MaxArgs {
		return badInput("arguments of %d bytes exceed the limit of %d", len(post.Args), wire.MaxArgs)
	}
	if post.Kind == args.KindJSON {
		post.Args = args.WithoutBOM(post.Args)
		if err := args.CheckJSON(post.Args); err != nil {
			return badInput("the arguments: %v", err)
		}
	}
	return nil
}
