// A client of a library in JavaScript: lists the tools, calls some, with progress, and cancels one.
// node client.mjs MODULES 1|2 URL|COMMAND
const [modules, library, where] = process.argv.slice(2)
const http = where.startsWith('http')
const at = `${modules}/@modelcontextprotocol/`
const load = path => import(at + path)

let client, transport
if (library === '1') {
  const { Client } = await load('sdk/dist/esm/client/index.js')
  client = new Client({ name: 'judge 1', version: '1' })
  transport = http
    ? new (await load('sdk/dist/esm/client/streamableHttp.js')).StreamableHTTPClientTransport(new URL(where))
    : new (await load('sdk/dist/esm/client/stdio.js')).StdioClientTransport({ command: where, env: process.env })
} else {
  const m = await load('client/dist/index.mjs')
  client = new m.Client({ name: 'judge 2', version: '1' }, { versionNegotiation: { mode: { pin: '2026-07-28' } } })
  transport = http ? new m.StreamableHTTPClientTransport(new URL(where)) : new (await load('client/dist/stdio.mjs')).StdioClientTransport({ command: where, env: process.env })
}
const call = (params, options) => library === '1' ? client.callTool(params, undefined, options) : client.callTool(params, options)
const check = (ok, what) => { if (!ok) { console.log('failed:', what); process.exit(1) } }

await client.connect(transport)
const { tools } = await client.listTools()
check(tools.some(t => t.name === 'greet' && t.inputSchema.required[0] === 'name'), 'list: ' + JSON.stringify(tools))
const hello = await call({ name: 'greet', arguments: { name: 'World' } })
check(hello.content[0].text === 'Hello, World!', 'call: ' + JSON.stringify(hello))
const wrong = await call({ name: 'test_error_handling', arguments: {} })
check(wrong.isError, 'error: ' + JSON.stringify(wrong))
const seen = []
const done = await call({ name: 'test_tool_with_progress', arguments: {} }, { onprogress: p => seen.push(p.progress) })
check(!done.isError && seen.length > 0 && seen.every((p, i) => i === 0 || p > seen[i - 1]), 'progress: ' + seen)
const abort = new AbortController()
const held = call({ name: 'hold', arguments: {} }, { signal: abort.signal }).then(() => 'an answer', () => 'cancelled')
setTimeout(() => abort.abort(), Number(process.env.CANCEL_AFTER ?? 700))
check(await held === 'cancelled', 'cancel')
const again = await call({ name: 'greet', arguments: { name: 'again' } })
check(again.content[0].text === 'Hello, again!', 'after cancel: ' + JSON.stringify(again))
await client.close()
console.log('ok')
process.exit(0)
