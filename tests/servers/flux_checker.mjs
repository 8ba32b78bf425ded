// Reads {"sources": [...]} from standard input; writes whether each is valid Flux, and its syntax tree.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const require = createRequire(process.argv[2] + '/')
const flux = require('@influxdata/flux-lsp-node')
const { sources } = JSON.parse(readFileSync(0, 'utf8'))
const verdicts = sources.map((source) => ({ valid: flux.is_valid_flux(source), tree: flux.parse(source) }))
process.stdout.write(JSON.stringify(verdicts))
