"""Receives the codes, and accepts only what the service has signed. Python 3:

    WEBHOOK_SECRET=whsec_... python3 receiver.py

It listens on 127.0.0.1:8080 (or PORT): a web server in front of it has to speak HTTPS.
The signature is that of https://www.standardwebhooks.com; its libraries verify it too.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ.get("WEBHOOK_SECRET", "")[len("whsec_") :])
if len(KEY) < 24:  # with an empty key, anybody could sign
    sys.exit("WEBHOOK_SECRET must be your webhook secret, whsec_...")
TOLERANCE = 300  # seconds: what is older may be a copy that somebody sends again
MAX_BYTES = 1_000_000


def is_genuine(headers, body):
    """Whether `body`, the very bytes that came, was signed with our secret just now."""
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not re.fullmatch("[0-9]{1,12}", timestamp):
        return False
    if abs(time.time() - int(timestamp)) > TOLERANCE:
        return False
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest())
    # While a secret is being rotated, there are two signatures
    given = headers.get("webhook-signature", "").encode().split()
    return any(hmac.compare_digest(expected, signature) for signature in given)


class Receiver(BaseHTTPRequestHandler):
    timeout = 10  # seconds, for a client that stops talking

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BYTES:
            return self.answer(413)
        body = self.rfile.read(int(length))
        if not is_genuine(self.headers, body):
            print("refused: no good signature", file=sys.stderr)
            return self.answer(401)
        webhook = json.loads(body)
        if webhook["event"] == "otp_received":
            # A webhook may come twice, with the same webhook-id. What takes long is for later:
            # after 5 seconds without an answer, the webhook counts as not delivered
            print(webhook["data"]["phone_number"], webhook["data"]["otp_code"], flush=True)
        else:
            print("event:", webhook["event"], flush=True)
        return self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    address = ("127.0.0.1", int(os.environ.get("PORT", "8080")))
    ThreadingHTTPServer(address, Receiver).serve_forever()
