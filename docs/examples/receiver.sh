#!/bin/sh
# Receives the codes, and accepts only what the service has signed. It needs openssl, and something
# that starts it for each connection, such as socat:
#
#     export WEBHOOK_SECRET=whsec_...
#     socat -T 10 TCP-LISTEN:8080,bind=127.0.0.1,reuseaddr,fork EXEC:'sh receiver.sh'
#
# A web server in front of it has to speak HTTPS. The signature is that of
# https://www.standardwebhooks.com. The secret is an argument of openssl: other accounts of the
# machine could see it.
set -eu
export LC_ALL=C

answer() {
  printf 'HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1"
  exit
}
refuse() {
  echo 'refused: no good signature' >&2
  answer '401 Unauthorized'
}

id='' timestamp='' signatures='' length='' return=$(printf '\r')
read -r request
while IFS= read -r line && line=${line%"$return"} && [ "$line" ]; do
  value=${line#*: }
  case $(printf %s "${line%%:*}" | tr A-Z a-z) in
    webhook-id) id=$value ;;
    webhook-timestamp) timestamp=$value ;;
    webhook-signature) signatures=$value ;;
    content-length) length=$value ;;
  esac
done

case $length in '' | *[!0-9]* | ???????*) answer '413 Content Too Large' ;; esac
body=$(mktemp)
trap 'rm -f "$body"' EXIT
# Read before anything is answered: closing on what is unread would take the answer back
head -c "$length" >"$body"

key=$(printf %s "${WEBHOOK_SECRET#whsec_}" | base64 -d | od -An -vtx1 | tr -d ' \n')
# With an empty key, anybody could sign
[ ${#key} -ge 48 ] || answer '500 Internal Server Error'

# What is older than 300 seconds may be a copy that somebody sends again
case $timestamp in '' | 0* | *[!0-9]* | ?????????????*) refuse ;; esac
age=$(($(date +%s) - timestamp))
[ $age -le 300 ] && [ $age -ge -300 ] || refuse

# Over the very bytes that came. While a secret is being rotated, there are two signatures
expected=$({ printf '%s.%s.' "$id" "$timestamp" && cat "$body"; } |
  openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64)
case " $signatures " in
  *" v1,$expected "*) ;;
  *) refuse ;;
esac

# A webhook may come twice, with the same webhook-id. What takes long is for later: after 5 seconds
# without an answer, the webhook counts as not delivered
{ cat "$body" && echo; } | sed -n 's/^{"event":"otp_received","data":{"phone_number":"\([^"]*\)","otp_code":"\([^"]*\)".*/\1 \2/p
  t
  s/^{"event":"\([^"]*\)".*/event: \1/p' >&2
answer '204 No Content'
