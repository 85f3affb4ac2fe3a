// Phone numbers for your tests, and the codes that they receive. Node 18 or newer, in Playwright Test
// as in any other. It reads the environment: SERVICE is the service's address, and KEY your API key.

async function call(name, parameters) {
  const url = `${process.env.SERVICE}/api/${name}?${new URLSearchParams(parameters)}`
  const answer = await fetch(url, { headers: { Authorization: `Bearer ${process.env.KEY}` } })
  const { message, data } = await answer.json()
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${message}`)
  return data
}

// A phone number of your own: what to fill in, as in +447400849540, and the codes that come
export async function takeNumber(countryId) {
  const granted = await call('get-number', { country_id: countryId, number_format: 'full' })
  const phone_number = granted.phone_number
  // You may have had the same number before: its old codes do not count
  const earlier = await call('messages', { phone_number, limit: 1 })
  let after = earlier.messages.at(-1)?.id ?? 0

  // The next code that arrives; throws when none does
  async function nextCode(seconds = 60) {
    const giveUp = Date.now() + 1000 * seconds
    while (Date.now() < giveUp) {
      const wait = Math.min(25, Math.max(0, Math.trunc((giveUp - Date.now()) / 1000)))
      const { messages } = await call('messages', { phone_number, after, limit: 1, wait })
      if (messages.length) {
        after = messages[0].id
        if (messages[0].otp_code) return messages[0].otp_code
      } else {
        // The service may answer at once while many are waiting
        await new Promise((resolve) => setTimeout(resolve, 500))
      }
    }
    throw new Error(`no code came for ${phone_number} within ${seconds} seconds`)
  }

  return { full: phone_number, nextCode }
}
