package mcp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fbus/bus/args"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// Access is what a request over HTTP may do.
type Access struct {
	// Key tells callers apart: requests with the same key share a server and its sessions.
	Key string
	// Valid ends with the caller's credential, and so do then its sessions and calls; nil: it does not.
	Valid context.Context
	// Ended returns an error if the credential has ended, perhaps before Valid; nil: it does not.
	Ended func() error
	// Recheck asks whether the credential still holds, and returns an error if it has ended. Then Ended does, too;
	// nil: it always holds.
	Recheck func(context.Context) error
	Config
}

func (a *Access) ended() error {
	if a.Ended == nil {
		return nil
	}
	return a.Ended()
}

// Handler speaks the protocol over streamable HTTP.
type Handler struct {
	catalog *Catalog
	access  func(*http.Request) (Access, error)
	old     *sdk.StreamableHTTPHandler // with sessions: cancel comes as a notification
	modern  *sdk.StreamableHTTPHandler // from 2026-07-28: cancel is the end of the request

	streams    context.Context // of events
	endStreams context.CancelFunc
	closing    sync.WaitGroup // servers

	mu       sync.Mutex // protects the fields below
	servers  map[string]*shared
	serving  int // requests that are no streams of events
	draining bool
	closed   bool
}

// shared is the server of a caller.
type shared struct {
	*Server
	used time.Time
}

const (
	// idleTime is how long a session or a server without requests is kept.
	idleTime = 30 * time.Minute
	// mostServers is how many callers have servers at once. The one that was not used for the longest
	// time makes room.
	mostServers = 1000
	// mostSessions is how many sessions a caller has at once.
	mostSessions = 100
	// mostBody bounds a request. The arguments of a call cannot be larger than 1 MiB.
	mostBody = 4 << 20
)

// NewHandler makes a handler for functions of the catalog. access says whom a request is from, which has
// been authenticated before: its error is a 403. hostChecked says that Host was compared with the names of
// this server before; otherwise on loopback addresses only localhost is served. Close releases the handler.
func NewHandler(catalog *Catalog, access func(*http.Request) (Access, error), hostChecked bool) *Handler {
	h := &Handler{catalog: catalog, access: access, servers: map[string]*shared{}}
	h.streams, h.endStreams = context.WithCancel(context.Background())
	h.old = sdk.NewStreamableHTTPHandler(h.server, &sdk.StreamableHTTPOptions{SessionTimeout: idleTime, MaxRequestBodyBytes: mostBody, DisableLocalhostProtection: hostChecked})
	h.modern = sdk.NewStreamableHTTPHandler(h.server, &sdk.StreamableHTTPOptions{Stateless: true, PropagateRequestCancellation: true, MaxRequestBodyBytes: mostBody, DisableLocalhostProtection: hostChecked})
	return h
}

// accessKey is where the context of a request has its [Access].
type accessKey struct{}

// prefix begins the ids of the sessions of a caller, so that nobody can use another one's.
func prefix(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:8]) + "-"
}

// firstModern is the first version without sessions.
const firstModern = "2026-07-28"

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, err := h.access(r)
	if err != nil {
		http.Error(w, "forbidden", http.StatusForbidden)
		return
	}
	a.sessionPrefix = prefix(a.Key)
	if session := r.Header.Get("Mcp-Session-Id"); session != "" && !strings.HasPrefix(session, a.sessionPrefix) {
		noSession(w) // it is another caller's
		return
	}
	ctx := context.WithValue(r.Context(), accessKey{}, a)
	if r.Method == http.MethodGet || r.Header.Get("Mcp-Method") == "subscriptions/listen" {
		stream, end := context.WithCancel(ctx)
		defer end()
		defer context.AfterFunc(h.streams, end)()
		ctx = stream
	} else {
		h.count(1)
		defer h.count(-1)
	}
	r = r.WithContext(ctx)
	var body []byte
	if r.Method == http.MethodPost {
		var ok bool
		if body, ok = readBody(w, r); !ok {
			return
		}
		if err := checkBody(body, r.Header.Get("Mcp-Protocol-Version")); err != nil {
			refuse(w, nil, err.Code, err.Message)
			return
		}
		if id, err := checkParams(body); err != nil {
			refuse(w, id, err.Code, err.Message)
			return
		}
	}
	sw, session := &sessionWriter{ResponseWriter: w, access: &a}, r.Header.Get("Mcp-Session-Id")
	switch {
	case r.Header.Get("Mcp-Protocol-Version") >= firstModern:
		if taskMethods[r.Header.Get("Mcp-Method")] && !checkTask(w, r, body) || !checkNumbers(w, body) {
			return
		}
		h.modern.ServeHTTP(sw, r)
	case r.Method == http.MethodPost && session == "":
		if !checkFirst(w, body) {
			return
		}
		h.old.ServeHTTP(sw, r)
		if s := h.serverOf(a.Key); s != nil {
			s.boundSessions(mostSessions)
		}
	case r.Method == http.MethodPost:
		sw.inSession = true
		h.old.ServeHTTP(sw, r)
	default:
		if s := h.serverOf(a.Key); r.Method == http.MethodDelete && s != nil {
			defer s.endSession(session)()
		}
		h.old.ServeHTTP(sw, r)
	}
	switch err := a.ended(); {
	case err != nil && !sw.begun:
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, err.Error(), http.StatusUnauthorized)
	case err != nil:
		sw.fail(body, jsonrpc.CodeInternalError, err.Error())
	// A request that its client has cancelled is not answered: it gets an empty stream.
	case !sw.inSession || h.hasSession(a.Key, session):
	case !sw.begun:
		noSession(w)
	default:
		sw.fail(body, codeNoSession, errNoSession)
	}
}

// sessionWriter passes on what the library answers to a request, and remembers it. When the credential has ended
// nothing more is passed on. If the session has ended, the library says so in plain text, or begins no response at
// all: begun is then false. The library does not write after its ServeHTTP has returned.
type sessionWriter struct {
	http.ResponseWriter
	access         *Access
	inSession      bool
	begun, dropped bool
	answered       map[any]bool // ids of requests that have their responses in the stream
}

func (w *sessionWriter) isStream() bool { return w.Header().Get("Content-Type") == "text/event-stream" }

// drops reports whether the next part of the response is dropped, and so all others.
func (w *sessionWriter) drops() bool {
	w.dropped = w.dropped || (!w.begun || w.isStream()) && w.access.ended() != nil
	return w.dropped
}

func (w *sessionWriter) WriteHeader(status int) {
	if w.inSession && status == http.StatusNotFound && !w.begun && w.Header().Get("Content-Type") != "application/json" {
		w.dropped = true
	}
	if w.drops() {
		return
	}
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *sessionWriter) Write(p []byte) (int, error) {
	if w.drops() {
		return len(p), nil
	}
	w.begun = true
	if w.isStream() { // the library writes each event at once
		var message struct {
			ID     any    `json:"id"`
			Method string `json:"method"`
		}
		_, data, _ := bytes.Cut(p, []byte("data: "))
		if json.Unmarshal(data, &message) == nil && message.ID != nil && message.Method == "" {
			if w.answered == nil {
				w.answered = map[any]bool{}
			}
			w.answered[message.ID] = true
		}
	}
	return w.ResponseWriter.Write(p)
}

// FlushError serves [http.ResponseController]: a flush would begin a response of which nothing was passed on.
func (w *sessionWriter) FlushError() error {
	if w.drops() {
		return nil
	}
	w.begun = true
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// fail answers the requests of a body that have no response in the stream.
func (w *sessionWriter) fail(body []byte, code int64, message string) {
	if !w.isStream() {
		return
	}
	for _, id := range requestIDs(body) {
		var key any
		if json.Unmarshal(id, &key) == nil && !w.answered[key] {
			fmt.Fprintf(w.ResponseWriter, "event: message\ndata: %s\n\n", rpcError(id, code, message))
		}
	}
}

// Unwrap serves [http.ResponseController].
func (w *sessionWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// The error of a request whose session is not there.
const (
	codeNoSession = -32001
	errNoSession  = "session not found"
)

// noSession answers a request whose session is not there, or not any more: the client has to begin another one
// (version 2025-11-25, Transports, Session Management).
func noSession(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, `{"jsonrpc":"2.0","id":null,"error":{"code":%d,"message":"%s"}}`+"\n", codeNoSession, errNoSession)
}

// checkFirst refuses a request without a session that is not one of the first: the library answers it with
// the code 0.
func checkFirst(w http.ResponseWriter, body []byte) bool {
	var req struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
		Params struct {
			Meta map[string]json.RawMessage `json:"_meta"`
		} `json:"params"`
	}
	if json.Unmarshal(body, &req) != nil || req.ID == nil || req.Method == "" || req.Method == "initialize" || req.Method == "ping" || req.Params.Meta[sdk.MetaKeyProtocolVersion] != nil {
		return true
	}
	refuse(w, req.ID, jsonrpc.CodeInvalidRequest, "the header Mcp-Session-Id is missing: a session begins with initialize")
	return false
}

// checkTask refuses a request about a task whose headers say something else than its body: the library
// checks only the methods that it knows.
func checkTask(w http.ResponseWriter, r *http.Request, body []byte) bool {
	var req struct {
		ID     json.RawMessage `json:"id"`
		Params taskParams      `json:"params"`
	}
	if json.Unmarshal(body, &req) != nil || req.Params.ID == r.Header.Get("Mcp-Name") {
		return true
	}
	refuse(w, req.ID, sdk.CodeHeaderMismatch, "the header Mcp-Name must be the taskId")
	return false
}

// largeNumber matches documents that may have a number which is no float64.
var largeNumber = regexp.MustCompile(`[eE]\+?[0-9]{3}|[0-9]{300}`)

// checkNumbers refuses a request with a number that is no float64: the library would say that it finds no name
// in it.
func checkNumbers(w http.ResponseWriter, body []byte) bool {
	var number *json.UnmarshalTypeError
	if !largeNumber.Match(body) || !errors.As(json.Unmarshal(body, new(any)), &number) {
		return true
	}
	var req struct {
		ID json.RawMessage `json:"id"`
	}
	json.Unmarshal(body, &req) // it is a JSON document
	refuse(w, req.ID, jsonrpc.CodeInvalidParams, fmt.Sprintf("invalid params: the %s is out of range: it must be between -1.8e308 and 1.8e308", args.Shorten(number.Value)))
	return false
}

// readBody returns the body of a request, which the library can read again. If it returns false the request
// is answered.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBody))
	if errors.As(err, new(*http.MaxBytesError)) {
		http.Error(w, fmt.Sprintf("the body exceeds the limit of %d bytes", mostBody), http.StatusRequestEntityTooLarge)
		return nil, false
	}
	if err != nil {
		http.Error(w, "the end of the body is missing", http.StatusBadRequest)
		return nil, false
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, true
}

// messages returns the messages of a body, which may be a batch.
func messages(body []byte) (batch []json.RawMessage) {
	if !isBatch(body) {
		return []json.RawMessage{body}
	}
	json.Unmarshal(body, &batch) // checkBody has read it
	return batch
}

func isBatch(body []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(body), []byte("[")) }

// firstWithoutBatches is the first version without batches of messages.
const firstWithoutBatches = "2025-06-18"

// checkBody returns an error if a body is not what the library can read: it would answer with types of Go.
func checkBody(body []byte, version string) *jsonrpc.Error {
	if err := args.CheckJSON(body); err != nil {
		return &jsonrpc.Error{Code: jsonrpc.CodeParseError, Message: args.OneLine(err.Error())}
	}
	list := messages(body)
	if len(list) == 0 {
		return &jsonrpc.Error{Code: jsonrpc.CodeInvalidRequest, Message: "the batch is empty"}
	}
	for _, message := range list {
		if _, err := DecodeMessage(message); err != nil {
			return &jsonrpc.Error{Code: jsonrpc.CodeInvalidRequest, Message: err.Error()}
		}
	}
	if isBatch(body) && version >= firstWithoutBatches {
		return &jsonrpc.Error{Code: jsonrpc.CodeInvalidRequest, Message: "a batch of messages needs a version before " + firstWithoutBatches}
	}
	return nil
}

// requestIDs returns the ids of the requests in a body.
func requestIDs(body []byte) (ids []json.RawMessage) {
	for _, message := range messages(body) {
		var req struct {
			ID     json.RawMessage `json:"id"`
			Method string          `json:"method"`
		}
		if json.Unmarshal(message, &req) == nil && req.ID != nil && req.Method != "" {
			ids = append(ids, req.ID)
		}
	}
	return ids
}

// refuse answers a request with an error.
func refuse(w http.ResponseWriter, id json.RawMessage, code int64, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	fmt.Fprintf(w, "%s\n", rpcError(id, code, message))
}

// rpcError makes the answer that is an error; id nil: that of the request is not known.
func rpcError(id json.RawMessage, code int64, message string) []byte {
	text, _ := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": id, "error": jsonrpc.Error{Code: code, Message: message}})
	return text
}

// server returns the server of the caller of a request; nil, which is a 400, when the handler is closed.
func (h *Handler) server(r *http.Request) *sdk.Server {
	a := r.Context().Value(accessKey{}).(Access)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	s := h.servers[a.Key]
	if s == nil {
		h.makeRoom()
		s = &shared{Server: NewServer(h.catalog, a.Config)}
		h.servers[a.Key] = s
		if a.Valid != nil {
			context.AfterFunc(a.Valid, func() { h.forget(a.Key, s) })
		}
	}
	s.used = time.Now()
	return s.MCP
}

// hasSession reports whether a caller has a session that is not being closed.
func (h *Handler) hasSession(key, id string) bool {
	s := h.serverOf(key)
	return s != nil && s.hasSession(id)
}

// serverOf returns the server of a caller, nil if there is none.
func (h *Handler) serverOf(key string) *shared {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.servers[key]
}

// makeRoom forgets servers that were not used for long. The caller holds mu.
func (h *Handler) makeRoom() {
	oldest := ""
	for key, s := range h.servers {
		if oldest == "" || s.used.Before(h.servers[oldest].used) {
			oldest = key
		}
	}
	if oldest != "" && (len(h.servers) >= mostServers || time.Since(h.servers[oldest].used) > idleTime) {
		h.drop(oldest)
	}
}

// drop ends a server and its sessions. The caller holds mu.
func (h *Handler) drop(key string) {
	s := h.servers[key]
	delete(h.servers, key)
	h.closing.Go(s.Close) // ends when the node was told of its calls
	for session := range s.MCP.Sessions() {
		go session.Close()
	}
}

// forget ends the sessions and calls of a caller.
func (h *Handler) forget(key string, s *shared) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.servers[key] == s {
		h.drop(key)
	}
}

// count counts the requests that are served, and ends the streams after the last one of a drain.
func (h *Handler) count(change int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.serving += change; h.draining && h.serving == 0 {
		h.endStreams()
	}
}

// Drain ends the streams of events, which have no end of their own, when no calls are served any more: a
// client whose stream has ended gives its calls up.
func (h *Handler) Drain() {
	h.mu.Lock()
	h.draining = true
	h.mu.Unlock()
	h.count(0)
}

// Close ends all sessions, and the calls that somebody waits for. It returns when the node was told of them.
func (h *Handler) Close() {
	h.endStreams()
	h.mu.Lock()
	h.closed = true
	for key := range h.servers {
		h.drop(key)
	}
	h.mu.Unlock()
	h.closing.Wait()
}
