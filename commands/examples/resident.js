#!/usr/bin/env node
// One process for many calls, a line in, a line out:
//     fbus offer hello --resident lines -- node hello.js
//     fbus call hello Bob
let rest = '';
process.stdin.setEncoding('utf8').on('data', (text) => {
  const lines = (rest + text).split('\n'); // readline would split at \r as well
  rest = lines.pop();
  for (const line of lines) process.stdout.write(`hello ${line}\n`);
});
