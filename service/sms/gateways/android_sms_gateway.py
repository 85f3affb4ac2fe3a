"""The Android app SMS Gateway."""

import hmac
from typing import Any

from flask import Request

from service.errors import BadRequest
from service.sms.gateways.gateway import (
    Gateway,
    Options,
    check_signature,
    json_object,
    signing_time,
)
from service.sms.gateways.recipients import international, own_number
from service.sms.incoming import Sms, read


def parse(request: Request, options: Options) -> Sms:
    """A JSON envelope of the event `sms:received`, which wraps the SMS.

    https://docs.sms-gate.app/features/webhooks: X-Signature is hex HMAC-SHA256 over body and
    X-Timestamp, which is of the moment of sending, for each repeat anew. A phone sends null as its
    own number, or what its SIM stores, often without the country code: unless that is in
    international form, the SMS came to the number that the operator gave for `simNumber`, if any.
    """
    signed_at = None
    if options.secret:
        signed_at = signing_time(request.headers.get("X-Timestamp", ""))
        signed = request.get_data() + request.headers.get("X-Timestamp", "").encode()
        check_signature(
            request, "X-Signature", [hmac.digest(options.secret.encode(), signed, "sha256").hex()]
        )
    body = json_object(request)
    payload = body.get("payload")
    if body.get("event") != "sms:received" or not isinstance(payload, dict):
        raise BadRequest("event must be sms:received, with payload")
    told, sim = payload.get("recipient"), payload.get("simNumber")
    sms = read(
        {
            "sms_text": payload.get("message"),
            "message_id": payload.get("messageId"),
            "received_at": payload.get("receivedAt"),
            # Earlier versions called it phoneNumber
            "sender": payload.get("sender") or payload.get("phoneNumber"),
        },
        international(told) or own_number(options.numbers, told, sim),
    )
    return sms._replace(message_id=_identity(sms, payload), signed_at=signed_at)


def _identity(sms: Sms, payload: dict[str, Any]) -> str | None:
    """What names the SMS. Its messageId is a hash of the content, so that it is unique only with
    the time. The envelope's id is the event's: an SMS may be told in several events."""
    time = sms.received_at.isoformat() if sms.received_at else payload.get("receivedAt")
    return f"{sms.message_id} {time}" if sms.message_id and time else None


GATEWAY = Gateway(
    parse,
    heeds=frozenset({"secret", "numbers", "reply"}),
    # "must respond with a 2xx status within 30 seconds": the page named above
    patience=30,
    setup="""\
Register the webhook with the app's server (--secret is the app's signing key):

  curl -X POST -u USER:PASSWORD https://api.sms-gate.app/3rdparty/v1/webhooks \\
    -H 'Content-Type: application/json' -d '{"event":"sms:received","url":"URL"}'

An SMS whose number is not certain goes to nobody: give the phone's number with --number, and of a
phone with two SIMs both (--number NUMBER --number 2=NUMBER).""",
)
