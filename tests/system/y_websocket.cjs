// Two clients as programs of others are: y-websocket and yjs as they come from npm.
// node y_websocket.cjs PACKAGE_JSON BASE DOCUMENT TOKEN
'use strict'
const { createRequire } = require('module')
const [packages, base, name, token] = process.argv.slice(2)
const from = createRequire(packages)
const Y = from('yjs')
const { WebsocketProvider } = from('y-websocket')

const until = async (what, condition) => {
  const end = Date.now() + 20000
  while (!condition()) {
    if (Date.now() > end) throw new Error('waited for ' + what)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

const client = person => {
  const doc = new Y.Doc()
  const provider = new WebsocketProvider(base, name, doc, { params: { token }, disableBc: true })
  provider.awareness.setLocalStateField('user', { name: person })
  const seen = { doc, provider, text: doc.getText('source'), closes: [] }
  provider.on('connection-close', event => seen.closes.push(event?.code))
  return seen
}

const main = async () => {
  const ana = client('ana')
  const ben = client('ben')
  await until('sync', () => ana.provider.synced && ben.provider.synced)
  await until('presence', () => ana.provider.awareness.getStates().size === 2 && ben.provider.awareness.getStates().size === 2)
  for (let n = 0; n < 200; n++) {
    ana.text.insert(ana.text.length, `a${n} `)
    if (n % 3 === 0) ben.text.insert(0, `b${n} `)
    if (n % 5 === 0) await new Promise(resolve => setTimeout(resolve, 3))
  }
  const whole = c => c.text.toString().split(' ').filter(Boolean).length === 267
  await until('everything at both', () => whole(ana) && whole(ben) && ana.text.toString() === ben.text.toString())
  // away, both write, back
  ben.provider.disconnect()
  await until('absence', () => ana.provider.awareness.getStates().size === 1)
  ben.text.insert(0, 'offline ')
  ana.text.insert(0, 'meanwhile ')
  ben.provider.connect()
  await until('the return', () => ana.text.toString() === ben.text.toString() && ana.text.toString().includes('offline '))
  if (ana.closes.length) throw new Error('closed with ' + ana.closes)
  const text = ana.text.toString()
  const fresh = client('eve')
  await until('a third', () => fresh.provider.synced && fresh.text.toString() === text)
  for (const c of [ana, ben, fresh]) c.provider.destroy()
  process.stdout.write(JSON.stringify(text))
}

main().then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
