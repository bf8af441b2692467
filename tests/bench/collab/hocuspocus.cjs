// `@hocuspocus/server` as its documentation starts it, silent and without extensions.
'use strict'
const { Server } = require('@hocuspocus/server')
const server = new Server({ port: Number(process.env.PORT), address: '127.0.0.1', quiet: true, stopOnSignals: false })
server.listen()
