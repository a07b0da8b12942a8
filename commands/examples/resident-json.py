#!/usr/bin/env python3
# One process for many calls, JSON-RPC 2.0, one message a line (Python 3.10):
#     fbus offer hello --resident json -- python3 hello.py
#     fbus call hello Bob; fbus call -f name=Bob hello
import json, sys

for line in sys.stdin.buffer:
    request = json.loads(line)
    answer = {"jsonrpc": "2.0", "id": request.get("id")}
    match request["params"]:
        case [str(name)] | {"name": str(name)}:
            answer["result"] = {"hello": name}
        case _:  # exit status 1 for the caller, with the message on stderr
            answer["error"] = {"code": -32602, "message": "one name is due"}
    if "id" in request:  # else $/cancelRequest: call params.id was cancelled
        print(json.dumps(answer), flush=True)
