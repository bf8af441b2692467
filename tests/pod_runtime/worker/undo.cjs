// Two people and the disk, and one of the people undoes: yjs and y-websocket as they come from npm.
// node undo.cjs PACKAGE_JSON BASE DOCUMENT FILE HEADER TOKEN
'use strict'
const { createRequire } = require('module')
const fs = require('fs')
const assert = require('assert')
const [packages, base, name, file, header, token] = process.argv.slice(2)
const from = createRequire(packages)
const Y = from('yjs')
const { WebsocketProvider } = from('y-websocket')

class Socket extends WebSocket {
  constructor (url) { super(url, { headers: { [header]: token } }) }
}

const until = async (what, condition) => {
  const end = Date.now() + 20000
  while (!condition()) {
    if (Date.now() > end) throw new Error('waited for ' + what)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

const person = () => {
  const doc = new Y.Doc()
  const provider = new WebsocketProvider(base, name, doc, { disableBc: true, WebSocketPolyfill: Socket })
  const text = doc.getText('source')
  // by default it tracks what has no origin: what is typed, not what a provider brings
  const undo = new Y.UndoManager(text, { captureTimeout: 0 })
  return { provider, text, undo, type: (before, what) => text.insert(text.toString().indexOf(before), what) }
}

const main = async () => {
  const [ann, ben] = [person(), person()]
  await until('sync', () => ann.provider.synced && ben.provider.synced)
  const everywhere = text => until(JSON.stringify(text), () =>
    [ann.text.toString(), ben.text.toString(), fs.readFileSync(file, 'utf8')].every(t => t === text))
  ann.type('two', 'ann was here\n')
  await everywhere('one\nann was here\ntwo\nthree\n')
  ben.type('three', 'ben ')
  await everywhere('one\nann was here\ntwo\nben three\n')
  // within what ann has typed, and elsewhere
  fs.writeFileSync(file, 'one\nann IS here\ntwo\nben three\ndisk\n')
  await everywhere('one\nann IS here\ntwo\nben three\ndisk\n')
  ann.type('one', 'zero\n')
  await everywhere('zero\none\nann IS here\ntwo\nben three\ndisk\n')
  ann.undo.undo()
  await everywhere('one\nann IS here\ntwo\nben three\ndisk\n')
  ann.undo.undo()
  await everywhere('one\nIStwo\nben three\ndisk\n')
  assert.strictEqual(ann.undo.undo(), null)
  ben.undo.undo()
  await everywhere('one\nIStwo\nthree\ndisk\n')
  assert.strictEqual(ben.undo.undo(), null)
  ben.undo.redo()
  await everywhere('one\nIStwo\nben three\ndisk\n')
  process.stdout.write(ann.text.toString())
}

main().then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
