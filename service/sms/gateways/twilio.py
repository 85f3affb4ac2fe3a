"""Twilio."""

import base64
import hmac

from flask import Request
from werkzeug.datastructures import MultiDict

from service.errors import InvalidSignature
from service.sms import forms
from service.sms.gateways import urls
from service.sms.gateways.gateway import Gateway, Options, check_signature
from service.sms.incoming import Sms, read

ALGORITHMS = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}


def parse(request: Request, options: Options) -> Sms:
    """A form, signed in X-Twilio-Signature if there is a secret.

    https://www.twilio.com/docs/messaging/guides/webhook-request. The secret is the account's auth
    token, or a shared key of its webhook settings.
    """
    form = forms.form(request)
    if options.secret:
        _check(request, form, options.secret)
    return read(
        {
            "phone_number": form.get("To"),
            "sms_text": form.get("Body"),
            "message_id": form.get("MessageSid"),
            "sender": form.get("From"),
        }
    )


def _check(request: Request, form: MultiDict[str, str], secret: str) -> None:
    """Raise InvalidSignature unless Twilio signed the URL and the form.

    https://www.twilio.com/docs/usage/webhooks/webhooks-security: base64 HMAC over the URL and the
    sorted parameters, each value of a name once. Shared keys, webhooks/webhook-shared-keys there,
    name the algorithm in a header; it is SHA-1 otherwise.
    """
    settings = request.headers.get("X-Twilio-Webhooks-Signature-Settings", "")
    pairs = [setting.partition("=") for setting in settings.split(",")]
    named = [value.strip() for name, _, value in pairs if name.strip() == "algorithm"]
    algorithm = ALGORITHMS.get(next(filter(None, named), "HMAC_SHA1").upper())
    if algorithm is None:
        raise InvalidSignature
    query = urls.query(request)
    fields = "".join(name + value for name, value in sorted(set(form.items(multi=True))))
    signed = (query and f"?{query}") + fields
    check_signature(
        request,
        "X-Twilio-Signature",
        [
            base64.b64encode(
                hmac.digest(secret.encode(), f"{url}{signed}".encode(), algorithm)
            ).decode()
            for url in urls.candidates(request)
        ],
    )


GATEWAY = Gateway(
    parse,
    answer=("<Response/>", "text/xml"),
    heeds=frozenset({"secret"}),
    # https://www.twilio.com/docs/api/errors/11205, the time to connect included
    patience=15,
    setup="""\
On the number, "A message comes in": Webhook, HTTP POST, and this address (--secret is the auth
token):

  URL""",
)
