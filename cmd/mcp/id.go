package mcp

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"

	"fbus/bus/args"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
)

// mostID is the greatest number that all clients can keep.
const mostID = 1<<53 - 1

// checkID returns an error if a message has an id that an answer cannot repeat: the library changes numbers that it
// has no room for, and text that is not Unicode, and a client would not find its request.
func checkID(fields map[string]json.RawMessage) error {
	switch id := fields["id"]; {
	case id == nil:
		return nil
	case string(id) == "null":
		if fields["method"] != nil {
			return errors.New("the id of a request must be a string or a whole number, not null")
		}
		return nil
	case id[0] == '"':
		if !utf8.Valid(id) || string(wellFormed(id)) != string(id) {
			return errors.New("the id must be Unicode")
		}
		return nil
	default:
		whole, rest, _ := strings.Cut(string(id), ".")
		if n, err := strconv.ParseInt(whole, 10, 64); err != nil || n > mostID || n < -mostID || strings.Trim(rest, "0") != "" {
			return errors.New("the id must be a string or a whole number of at most 2^53-1")
		}
		return nil
	}
}

// DecodeMessage reads a message of JSON-RPC 2.0 whose id an answer can repeat. Its errors are in plain words: those of
// the library have types of Go.
func DecodeMessage(text []byte) (jsonrpc.Message, error) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil || fields == nil {
		return nil, errors.New("a message must be a JSON object")
	}
	if err := checkID(fields); err != nil {
		return nil, err
	}
	switch {
	case string(fields["jsonrpc"]) != `"2.0"`:
		return nil, errors.New(`jsonrpc must be "2.0"`)
	case fields["method"] == nil && fields["result"] == nil && fields["error"] == nil:
		return nil, errors.New("a message must have a method, a result or an error")
	case fields["method"] != nil && fields["method"][0] != '"':
		return nil, errors.New("the method must be a string")
	}
	message, err := jsonrpc.DecodeMessage(text)
	switch {
	case err == nil:
		return message, nil
	case strings.Contains(err.Error(), "maximum nesting depth"):
		return nil, errors.New("a message must have at most 1000 levels")
	}
	return nil, errors.New("the message must be a request or a response of JSON-RPC 2.0")
}

// InvalidParams is the error for params of a wrong type, in plain words: the library shows types of Go, and all params.
func InvalidParams(err *json.UnmarshalTypeError) *jsonrpc.Error {
	problem, _, _ := strings.Cut(args.Plain(err), ", not ")
	return &jsonrpc.Error{Code: jsonrpc.CodeInvalidParams, Message: "invalid params: " + strings.Replace(problem, "the document ", "they ", 1)}
}

// checkParams returns an error if a request has params of a wrong type, and its id.
func checkParams(message []byte) (id json.RawMessage, wrong *jsonrpc.Error) {
	var req struct {
		ID     json.RawMessage `json:"id"`
		Params json.RawMessage `json:"params"`
	}
	var params struct { // of all methods
		Name       string         `json:"name"`
		URI        string         `json:"uri"`
		Cursor     string         `json:"cursor"`
		Level      string         `json:"level"`
		TaskID     string         `json:"taskId"`
		Version    string         `json:"protocolVersion"`
		Meta       map[string]any `json:"_meta"`
		ClientInfo struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"clientInfo"`
	}
	if json.Unmarshal(message, &req) != nil || req.ID == nil || req.Params == nil {
		return nil, nil
	}
	var kind *json.UnmarshalTypeError
	if errors.As(json.Unmarshal(req.Params, &params), &kind) {
		return req.ID, InvalidParams(kind)
	}
	return nil, nil
}
