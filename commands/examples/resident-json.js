#!/usr/bin/env node
// One process for many calls, JSON-RPC 2.0, one message a line. It can hold
// several calls at once:
//     fbus offer hello --resident json --pipeline 16 -- node hello.js
//     fbus call hello Bob; fbus call -f name=Bob hello
async function hello(params) {
  const name = Array.isArray(params) ? params[0] : params.name;
  if (typeof name !== 'string') throw Object.assign(new Error('one name is due'), { code: -32602 });
  return { hello: name };
}

let rest = '';
process.stdin.setEncoding('utf8').on('data', (text) => {
  const lines = (rest + text).split('\n');
  rest = lines.pop();
  lines.map((line) => JSON.parse(line)).forEach(answer);
});

function answer({ id, params }) {
  if (id === undefined) return; // $/cancelRequest: call params.id was cancelled
  const say = (message) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', id, ...message }) + '\n');
  hello(params).then(
    (result) => say({ result }),
    ({ code = 1, message }) => say({ error: { code, message } }), // exit status 1 for the caller
  );
}
