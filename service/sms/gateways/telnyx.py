"""Telnyx."""

import base64
from typing import Any

from cryptography import exceptions
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flask import Request

from service.errors import BadRequest, InvalidSignature
from service.logs import event
from service.sms.gateways.gateway import Gateway, Options, json_object, signing_time
from service.sms.incoming import Sms, read


def parse(request: Request, options: Options) -> Sms | list[Sms]:
    """A JSON event, signed if there is a secret (the account's public key).

    https://developers.telnyx.com/docs/messaging/messages/receiving-webhooks. The SMS's identity is
    `payload.id`: `data.id` is the event's. A group message is an SMS to each number of `to`. What
    happens to outbound messages is answered with success, so that Telnyx does not repeat it, and
    nothing is stored.
    """
    signed_at = _check(request, options.secret) if options.secret else None
    kind, payload = _event(json_object(request))
    if kind != "message.received":
        event("gateway_event_ignored", format="telnyx")
        return []
    recipients = payload.get("to")
    if not isinstance(recipients, list) or not recipients:
        recipients = [None]
    found = [
        read(
            {
                "phone_number": _number(recipient),
                "sms_text": payload.get("text"),
                "message_id": payload.get("id"),
                "received_at": payload.get("received_at"),
                "sender": _number(payload.get("from")),
            }
        )._replace(signed_at=signed_at)
        for recipient in recipients
    ]
    return found[0] if len(found) == 1 else found


def _event(body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The event's type and its payload; raises BadRequest."""
    data = body.get("data")
    if isinstance(data, dict):
        kind, payload = data.get("event_type"), data.get("payload")
        if isinstance(kind, str) and isinstance(payload, dict):
            return kind, payload
    raise BadRequest("data must be an event, with event_type and payload")


def _number(party: Any) -> Any:
    return party.get("phone_number") if isinstance(party, dict) else None


def _check(request: Request, key: str) -> float:
    """Raise InvalidSignature unless Telnyx signed the body; returns when, in Unix seconds.

    Ed25519 over `timestamp|body`, as in Telnyx's own libraries, which also take 5 minutes of
    difference at most. Each repeat is signed when it is sent: only a clock that is wrong by minutes
    refuses SMS, and the log says so.
    """
    timestamp = request.headers.get("telnyx-timestamp", "")
    signed = timestamp.encode() + b"|" + request.get_data()
    try:
        given = request.headers.get("telnyx-signature-ed25519", "")
        public_key(key).verify(base64.b64decode(given, validate=True), signed)
    except (ValueError, exceptions.InvalidSignature) as e:
        raise InvalidSignature from e
    return signing_time(timestamp)


def public_key(secret: str) -> Ed25519PublicKey:
    """The key, which Telnyx shows as the base64 of its 32 bytes; raises ValueError, a sentence."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(secret, validate=True))
    except ValueError as e:
        sentence = "must be the public key of the Telnyx account: 32 bytes in base64"
        raise ValueError(sentence) from e


def check_secret(secret: str) -> None:
    """Raise ValueError, a sentence, unless it is a public key."""
    public_key(secret)


GATEWAY = Gateway(
    parse,
    heeds=frozenset({"secret"}),
    check_secret=check_secret,
    # "Return a 2xx status code within 2 seconds": receiving-webhooks, as above
    patience=2,
    setup="""\
In the portal, Messaging > the profile of the number > Inbound: this address for webhooks, API
version 2 (--secret is the public key under Account > Keys & Credentials):

  URL""",
)
