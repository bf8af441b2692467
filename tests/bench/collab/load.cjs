// The clients of the benchmark, the same for every server: bare WebSockets that speak y-protocols (or
// Hocuspocus's variant of it). Nothing is applied: what arrives is only taken apart far enough to see which
// edits are in it, so that thirty clients cost less than the server that they measure.
//
//   node load.cjs typing '{"url", "headers", "protocol", "name", "clients", "rate", "seconds", "warmup"}'
//   node load.cjs trace  '{"url", "headers", "protocol", "name", "file", "text"}'
//   node load.cjs prepare '{"trace", "file"}'
//
// Tells its parent on standard output, one JSON value a line; "typing" waits for a line on standard input
// before the measured time begins and after it has ended.
'use strict'
const fs = require('fs')
const zlib = require('zlib')
const readline = require('readline')
const { performance, monitorEventLoopDelay } = require('perf_hooks')
const WebSocket = require('ws')
const Y = require('yjs')
const enc = require('lib0/encoding')
const dec = require('lib0/decoding')

const SYNC = 0, STEP1 = 0, STEP2 = 1, UPDATE = 2, AUTH = 2, SYNC_REPLY = 4
const say = value => process.stdout.write(JSON.stringify(value) + '\n')
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()

class Client {
  constructor (options, onUpdate) {
    this.options = options
    this.onUpdate = onUpdate
    this.doc = new Y.Doc()
    this.text = this.doc.getText('source')
    this.step2 = null
  }

  message (type, step, payload) {
    const e = enc.createEncoder()
    if (this.options.protocol === 'hocuspocus') enc.writeVarString(e, this.options.name)
    enc.writeVarUint(e, type)
    enc.writeVarUint(e, step)
    enc.writeVarUint8Array(e, payload)
    return enc.toUint8Array(e)
  }

  connect () {
    return new Promise((resolve, reject) => {
      const ws = this.ws = new WebSocket(this.options.url, {
        headers: this.options.headers, perMessageDeflate: false, maxPayload: 0
      })
      ws.binaryType = 'nodebuffer'
      ws.on('error', reject)
      ws.on('close', (code, reason) => reject(new Error(`closed with ${code} ${reason}`)))
      ws.on('message', data => this.received(data))
      ws.on('open', () => {
        ws._socket.setNoDelay(true)
        if (this.options.protocol === 'hocuspocus') {
          const e = enc.createEncoder()
          enc.writeVarString(e, this.options.name)
          enc.writeVarUint(e, AUTH)
          enc.writeVarUint(e, 0)
          enc.writeVarString(e, '')
          ws.send(enc.toUint8Array(e))
        }
        resolve()
      })
    })
  }

  // Everything the server has that `vector` has not; resolves when the answer is here.
  ask (vector) {
    return new Promise(resolve => {
      this.step2 = resolve
      this.ws.send(this.message(SYNC, STEP1, vector))
    })
  }

  received (data) {
    const d = dec.createDecoder(data)
    if (this.options.protocol === 'hocuspocus') dec.readVarString(d)
    const type = dec.readVarUint(d)
    if (type !== SYNC && type !== SYNC_REPLY) return
    const step = dec.readVarUint(d)
    const payload = dec.readVarUint8Array(d)
    if (step === UPDATE) this.onUpdate?.(payload)
    else if (step === STEP2 && this.step2) {
      const resolve = this.step2
      this.step2 = null
      resolve(payload)
    } else if (step === STEP1 && this.options.protocol === 'hocuspocus') {
      this.ws.send(this.message(SYNC, STEP2, Y.encodeStateAsUpdate(this.doc, payload)))
    }
  }

  close () {
    this.ws.removeAllListeners('close')
    this.ws.close()
  }
}

const EMPTY = Y.encodeStateVector(new Y.Doc())
const at = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]

async function typing (options) {
  const edits = new Map() // "client:clock" -> { start, left }
  const everybody = []
  const each = []
  let delivered = 0
  let measuring = false
  const clients = []
  for (let n = 0; n < options.clients; n++) {
    const seen = new Map()
    const client = new Client(options, update => {
      const now = performance.now()
      for (const struct of Y.decodeUpdate(update).structs) {
        const author = struct.id.client
        if (author === client.doc.clientID) continue
        const known = seen.get(author) ?? 0
        const end = struct.id.clock + struct.length
        for (let clock = Math.max(known, struct.id.clock); clock < end; clock++) {
          const edit = edits.get(author + ':' + clock)
          if (!edit) continue
          if (measuring) delivered++
          if (edit.measured) each.push(now - edit.start)
          if (--edit.left === 0) {
            if (edit.measured) everybody.push(now - edit.start)
            edits.delete(author + ':' + clock)
          }
        }
        if (end > known) seen.set(author, end)
      }
    })
    await client.connect()
    Y.applyUpdate(client.doc, await client.ask(EMPTY), 'server')
    clients.push(client)
  }
  let timers = []
  let clock = 0
  for (const client of clients) {
    client.doc.on('update', (update, origin) => {
      if (origin !== 'server') client.ws.send(client.message(SYNC, UPDATE, update))
    })
    const interval = 1000 / options.rate
    let next = performance.now() + Math.random() * interval
    let position = 0
    const type = () => {
      const own = Y.getState(client.doc.store, client.doc.clientID)
      edits.set(client.doc.clientID + ':' + own, {
        start: performance.now(), left: options.clients - 1, measured: measuring
      })
      // beside what was there: everybody types at a place of their own
      client.text.insert(position++, String.fromCharCode(97 + clock++ % 26))
      next += interval * (0.8 + Math.random() * 0.4)
      timers[client.timer] = setTimeout(type, Math.max(0, next - performance.now()))
    }
    client.timer = timers.length
    timers.push(setTimeout(type, Math.max(0, next - performance.now())))
  }
  await new Promise(resolve => setTimeout(resolve, options.warmup * 1000))
  say('warm')
  await lines.next()
  const lag = monitorEventLoopDelay({ resolution: 1 })
  lag.enable()
  const cpu = process.cpuUsage()
  measuring = true
  const start = performance.now()
  await new Promise(resolve => setTimeout(resolve, options.seconds * 1000))
  measuring = false
  const took = (performance.now() - start) / 1000
  const used = process.cpuUsage(cpu)
  lag.disable()
  say('typed')
  await lines.next()
  timers.forEach(clearTimeout)
  // what is under way still arrives
  const deadline = performance.now() + 5000
  while (options.clients > 1 && [...edits.values()].some(e => e.measured) && performance.now() < deadline) {
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  const lost = [...edits.values()].filter(e => e.measured).length
  everybody.sort((a, b) => a - b)
  each.sort((a, b) => a - b)
  say({
    p50: at(everybody, 0.5) ?? 0, p99: at(everybody, 0.99) ?? 0, max: everybody[everybody.length - 1] ?? 0,
    each_p50: at(each, 0.5) ?? 0, each_p99: at(each, 0.99) ?? 0,
    edits: options.clients > 1 ? everybody.length : edits.size, lost: options.clients > 1 ? lost : 0, delivered, seconds: took,
    load_cpu: (used.user + used.system) / 1e6 / took, load_lag_p99: lag.percentile(99) / 1e6
  })
  clients.forEach(c => c.close())
}

function * updatesOf (file) {
  const data = fs.readFileSync(file)
  for (let position = 0; position < data.length;) {
    const size = data.readUInt32BE(position)
    yield data.subarray(position + 4, position + 4 + size)
    position += 4 + size
  }
}

async function trace (options) {
  const writer = new Client(options)
  await writer.connect()
  await writer.ask(EMPTY)
  const messages = []
  let vector = EMPTY
  for (const update of updatesOf(options.file)) messages.push(writer.message(SYNC, UPDATE, update))
  {
    // the state after all of it, so that the last answer is short
    const doc = new Y.Doc()
    Y.applyUpdate(doc, fs.readFileSync(options.file + '.state'))
    vector = Y.encodeStateVector(doc)
  }
  say('ready')
  await lines.next()
  let start = performance.now()
  for (const message of messages) {
    writer.ws.send(message)
    if (writer.ws.bufferedAmount > 1 << 20) {
      while (writer.ws.bufferedAmount > 1 << 18) await new Promise(resolve => setImmediate(resolve))
    }
  }
  await writer.ask(vector)
  const taken = (performance.now() - start) / 1000
  say('taken')
  await lines.next()
  const reader = new Client(options)
  start = performance.now()
  await reader.connect()
  const state = await reader.ask(EMPTY)
  const loaded = (performance.now() - start) / 1000
  const doc = new Y.Doc()
  Y.applyUpdate(doc, state)
  const same = doc.getText('source').toString() === fs.readFileSync(options.file + '.text', 'utf8')
  say({ taken, loaded, bytes: state.length, edits: messages.length, same })
  writer.close()
  reader.close()
}

// One client's stream of the trace's edits, as yjs sends it, each update behind its length in four bytes.
function prepare (options) {
  const { txns, endContent } = JSON.parse(zlib.gunzipSync(fs.readFileSync(options.trace)))
  const doc = new Y.Doc()
  const text = doc.getText('source')
  const parts = []
  doc.on('update', update => {
    const head = Buffer.alloc(4)
    head.writeUInt32BE(update.length)
    parts.push(head, Buffer.from(update))
  })
  for (const { patches } of txns) {
    doc.transact(() => {
      for (const [position, removed, added] of patches) {
        if (removed) text.delete(position, removed)
        if (added) text.insert(position, added)
      }
    })
  }
  if (text.toString() !== endContent) throw new Error('the trace does not give its own end')
  fs.writeFileSync(options.file + '.text', endContent)
  fs.writeFileSync(options.file + '.state', Y.encodeStateAsUpdate(doc))
  fs.writeFileSync(options.file, Buffer.concat(parts))
  say({ edits: txns.length })
}

const [mode, argument] = process.argv.slice(2)
Promise.resolve({ typing, trace, prepare }[mode](JSON.parse(argument))).then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
