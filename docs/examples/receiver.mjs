// Receives the codes, and accepts only what the service has signed. Node 18 or newer:
//
//     WEBHOOK_SECRET=whsec_... node receiver.mjs
//
// It listens on 127.0.0.1:8080 (or PORT): a web server in front of it has to speak HTTPS.
// The signature is that of https://www.standardwebhooks.com; its libraries verify it too.

import { createHmac, timingSafeEqual } from 'node:crypto'
import { createServer } from 'node:http'

const key = Buffer.from((process.env.WEBHOOK_SECRET ?? '').slice('whsec_'.length), 'base64')
if (key.length < 24) { // with an empty key, anybody could sign
  console.error('WEBHOOK_SECRET must be your webhook secret, whsec_...')
  process.exit(1)
}
const TOLERANCE = 300 // seconds: what is older may be a copy that somebody sends again
const MAX_BYTES = 1_000_000

// Whether `body`, the very bytes that came, was signed with our secret just now
function isGenuine(headers, body) {
  const id = headers['webhook-id'] ?? ''
  const timestamp = headers['webhook-timestamp'] ?? ''
  if (!/^[0-9]{1,12}$/.test(timestamp)) return false
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE) return false
  const expected = createHmac('sha256', key).update(`${id}.${timestamp}.`).update(body).digest()
  // While a secret is being rotated, there are two signatures
  return (headers['webhook-signature'] ?? '').split(' ').some((signature) => {
    const given = Buffer.from(signature.slice('v1,'.length), 'base64')
    return signature.startsWith('v1,') && given.length === expected.length &&
      timingSafeEqual(given, expected)
  })
}

async function read(request) {
  const chunks = []
  let bytes = 0
  for await (const chunk of request) {
    bytes += chunk.length
    if (bytes > MAX_BYTES) throw new Error('too large')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

async function receive(request) {
  const body = await read(request)
  if (!isGenuine(request.headers, body)) {
    console.error('refused: no good signature')
    return 401
  }
  const webhook = JSON.parse(body)
  if (webhook.event === 'otp_received') {
    // A webhook may come twice, with the same webhook-id. What takes long is for later:
    // after 5 seconds without an answer, the webhook counts as not delivered
    console.log(webhook.data.phone_number, webhook.data.otp_code)
  } else {
    console.log('event:', webhook.event)
  }
  return 204
}

createServer((request, response) => {
  receive(request).catch(() => 400).then((status) => response.writeHead(status).end())
}).listen(Number(process.env.PORT ?? 8080), '127.0.0.1')
