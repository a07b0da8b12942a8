package mcp

import (
	"context"
	"encoding/json"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// anySchema is the first version of the protocol in which schemas and structured content may be of any type.
const anySchema = "2026-07-28"

// forOlder is the middleware that lets clients of older versions read tools and results. They expect
// objects, and many of them drop all tools if one has another schema.
func forOlder(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
		res, err := next(ctx, method, req)
		if v, ok := req.(interface{ ProtocolVersion() string }); err != nil || !ok || v.ProtocolVersion() >= anySchema {
			return res, err
		}
		switch res := res.(type) {
		case *sdk.ListToolsResult:
			for i, tool := range res.Tools {
				older := *tool // the original is the server's
				if older.InputSchema = olderSchema(tool.InputSchema); older.InputSchema == nil {
					older.InputSchema = json.RawMessage(`{"type":"object"}`)
				}
				older.OutputSchema = olderSchema(tool.OutputSchema)
				res.Tools[i] = &older
			}
		case *sdk.CallToolResult:
			return olderResult(res), nil
		case *taskResult:
			if inner, ok := res.Result.(*sdk.CallToolResult); ok {
				res.Result = olderResult(inner)
			}
		}
		return res, err
	}
}

// olderResult returns the result of a tool without structured content that is no object.
func olderResult(res *sdk.CallToolResult) *sdk.CallToolResult {
	if res.StructuredContent == nil {
		return res
	}
	if text, err := json.Marshal(res.StructuredContent); err == nil && text[0] == '{' {
		return res
	}
	older := *res
	older.StructuredContent = nil
	return &older
}

// olderSchema returns the schema as clients of older versions accept it, nil if it is not one of an
// object. A property must not be true or false.
func olderSchema(schema any) any {
	text, err := json.Marshal(schema)
	var fields map[string]json.RawMessage
	if err != nil || json.Unmarshal(text, &fields) != nil || string(fields["type"]) != `"object"` {
		return nil
	}
	var properties map[string]json.RawMessage
	json.Unmarshal(fields["properties"], &properties)
	changed := false
	for name, property := range properties {
		switch string(property) {
		case "true":
			properties[name], changed = json.RawMessage(`{}`), true
		case "false":
			properties[name], changed = json.RawMessage(`{"not":{}}`), true
		}
	}
	if !changed {
		return schema
	}
	if fields["properties"], err = json.Marshal(properties); err != nil {
		return nil
	}
	return fields
}
