// A test that signs up at your application with a phone number, by its API:
//
//     SERVICE=https://... KEY=usr_... APP=https://... node --test sign-up.test.mjs
//
// In Playwright Test, fill `number.full` and `await number.nextCode()` into the page.

import assert from 'node:assert'
import test from 'node:test'

import { takeNumber } from './wait-for-code.mjs'

async function post(path, form) {
  const answer = await fetch(process.env.APP + path, { method: 'POST', body: new URLSearchParams(form) })
  return answer.text()
}

test('sign up', async () => {
  const number = await takeNumber(2)
  await post('/sign-up', { phone: number.full })
  const code = await number.nextCode()
  assert.match(await post('/confirm', { phone: number.full, code }), /Welcome/)
})
