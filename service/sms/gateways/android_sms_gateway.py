"""The Android app SMS Gateway."""

import hmac

from flask import Request

from service.errors import BadRequest
from service.sms.gateways.gateway import Gateway, Options, check_signature, json_object
from service.sms.incoming import Sms, read


def parse(request: Request, options: Options) -> Sms:
    """A JSON envelope of the event `sms:received`; its `id` stays the same over retries.

    https://docs.sms-gate.app/features/webhooks: X-Signature is hex HMAC-SHA256 over body and
    X-Timestamp. The age does not matter: a replay is a duplicate. A phone sends null as its own
    number, or what its SIM stores, often without the country code: `number` replaces both.
    """
    if options.secret:
        signed = request.get_data() + request.headers.get("X-Timestamp", "").encode()
        check_signature(
            request, "X-Signature", [hmac.digest(options.secret.encode(), signed, "sha256").hex()]
        )
    body = json_object(request)
    payload = body.get("payload")
    if body.get("event") != "sms:received" or not isinstance(payload, dict):
        raise BadRequest("event must be sms:received, with payload")
    recipient = payload.get("recipient")
    if options.numbers and not str(recipient).startswith("+"):
        recipient = options.numbers[""]
    if not recipient:
        raise BadRequest("payload.recipient is null: add the provider with --number")
    return read(
        {
            "phone_number": recipient,
            "sms_text": payload.get("message"),
            "message_id": body.get("id"),
            "received_at": payload.get("receivedAt"),
        }
    )


GATEWAY = Gateway(
    parse,
    heeds=frozenset({"secret", "numbers"}),
    # "must respond with a 2xx status within 30 seconds": the page named above
    patience=30,
    setup="""\
Register the webhook with the app's server (--secret is the app's signing key):

  curl -X POST -u USER:PASSWORD https://api.sms-gate.app/3rdparty/v1/webhooks \\
    -H 'Content-Type: application/json' -d '{"event":"sms:received","url":"URL"}'""",
)
