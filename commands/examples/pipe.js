#!/usr/bin/env node
// hello.js NAME…: call the function hello for all NAMEs at once, over one fbus
// pipe. To try it:
//     fbus run --offer hello='xargs echo hello' -- node hello.js Bob Eve
const { spawn } = require('child_process');

class Bus {
  constructor(...flags) {
    this.calls = new Map();
    this.last = 0;
    this.pipe = spawn('fbus', ['pipe', ...flags], { stdio: ['pipe', 'pipe', 'inherit'] });
    let rest = '';
    this.pipe.stdout.setEncoding('utf8').on('data', (text) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop();
      for (const line of lines) this.answered(JSON.parse(line));
    });
    this.pipe.stdin.on('error', () => {}); // what follows says it
    for (const event of ['error', 'close']) {
      this.pipe.on(event, () => this.calls.forEach((call) => call.reject(new Error('fbus pipe has ended'))));
    }
  }

  // A promise of the result. options: input, a string that is sent instead of
  // params; signal, of an AbortController, cancels the call.
  call(method, params, { input, signal } = {}) {
    const id = ++this.last;
    signal?.addEventListener('abort', () => this.send({ method: '$/cancelRequest', params: { id } }));
    this.send({ id, method, params, input });
    return new Promise((resolve, reject) => this.calls.set(id, { resolve, reject }));
  }

  // Once nothing is in flight fbus ends, and so can we.
  end() {
    this.pipe.stdin.end();
  }

  send(message) {
    this.pipe.stdin.write(JSON.stringify({ jsonrpc: '2.0', ...message }) + '\n');
  }

  answered({ id, result, error }) {
    const call = this.calls.get(id);
    this.calls.delete(id);
    if (error) call.reject(Object.assign(new Error(error.message), error)); // code: the exit status; data
    else call.resolve(result);
  }
}

async function main(names) {
  const bus = new Bus('--text');
  try {
    const said = await Promise.all(names.map((name) => bus.call('hello', undefined, { input: name })));
    said.forEach((text) => process.stdout.write(text));
  } catch (err) {
    console.error(err.message);
    process.exitCode = err.code > 0 ? err.code : 1;
  }
  bus.end();
}

main(process.argv.slice(2));
