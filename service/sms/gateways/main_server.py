"""The main server's own webhooks."""

import math

from flask import Request

from service.errors import BadRequest, InvalidSignature
from service.sms.gateways.gateway import Gateway, Options, json_object, signing_time
from service.sms.incoming import Sms, read
from service.webhooks.signing import key_of, verify


def parse(request: Request, options: Options) -> Sms:
    """What the main server POSTs: section "The webhook" of our own documentation.

    The signature is required if there is a secret. `data.received_at` is optional.
    """
    signed_at = None
    if options.secret:
        if not verify(options.secret, request.headers, request.get_data(), math.inf):
            raise InvalidSignature
        signed_at = signing_time(request.headers["webhook-timestamp"])
    body = json_object(request)
    if body.get("event") != "otp_received" or not isinstance(body.get("data"), dict):
        raise BadRequest("event must be otp_received, with data")
    sms = read(body["data"] | {"message_id": request.headers.get("webhook-id")})
    return sms._replace(signed_at=signed_at)


def check_secret(secret: str) -> None:
    """Raise ValueError, a sentence, unless it is a `whsec_…` secret."""
    key_of(secret)


GATEWAY = Gateway(
    parse,
    setup="Have the main server POST its otp_received webhooks to\n  URL",
    heeds=frozenset({"secret", "reply"}),
    check_secret=check_secret,
)
