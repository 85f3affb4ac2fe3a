"""Plivo."""

import base64
import hmac
from urllib.parse import parse_qsl

from flask import Request
from werkzeug.datastructures import MultiDict

from service.errors import InvalidSignature
from service.logs import event
from service.sms import forms
from service.sms.gateways import urls
from service.sms.gateways.gateway import Gateway, Options
from service.sms.incoming import Sms, read


def parse(request: Request, options: Options) -> Sms | list[Sms]:
    """A form, signed if there is a secret (the account's auth token).

    https://www.plivo.com/docs/messaging/api/message/handling-incoming: Plivo joins long messages;
    an MMS has `Body` instead of `Text`. A delivery report of an outbound SMS, which has neither, is
    answered with success, so that Plivo does not repeat it, and nothing is stored.
    """
    form = forms.form(request)
    if options.secret:
        _check(request, form, options.secret)
    text = form.get("Text", form.get("Body"))
    if text is None and "Status" in form:
        event("delivery_report_ignored", format="plivo")
        return []
    return read(
        {
            "phone_number": form.get("To"),
            "sms_text": text,
            "message_id": form.get("MessageUUID"),
            "sender": form.get("From"),
        }
    )


def _check(request: Request, form: MultiDict[str, str], secret: str) -> None:
    """Raise InvalidSignature unless Plivo signed the request: base64 HMAC-SHA256.

    Version 3 covers the URL and the form (https://www.plivo.com/docs/voice/xml/request/validation),
    and inbound SMS carry it, usually in the header of the main account (-Ma-). Plivo's pages on
    messaging (https://www.plivo.com/docs/messaging/concepts/signature-validation) know only version
    2, which covers the URL without its query. It counts where version 3 was not sent at all: a
    version 3 that is wrong stays wrong.
    """
    for version in ("V3", "V2"):
        given = _signatures(request, version)
        if given:
            break
    nonce = request.headers.get(f"X-Plivo-Signature-{version}-Nonce", "")
    signed = f"{_query_and_fields(request, form)}.{nonce}" if version == "V3" else nonce
    expected = [
        base64.b64encode(hmac.digest(secret.encode(), f"{url}{signed}".encode(), "sha256"))
        for url in urls.candidates(request)
    ]
    if not any(hmac.compare_digest(one, other) for one in given for other in expected):
        raise InvalidSignature


def _signatures(request: Request, version: str) -> list[bytes]:
    """The signatures of that version: the account's, and its main account's; commas separate
    several, while an auth token is being replaced."""
    names = (f"X-Plivo-Signature-{version}", f"X-Plivo-Signature-Ma-{version}")
    headers = ",".join(request.headers.get(name, "") for name in names)
    return [part.strip().encode() for part in headers.split(",") if part.strip()]


def _query_and_fields(request: Request, form: MultiDict[str, str]) -> str:
    """What version 3 signs after the path, all of it decoded and sorted."""
    pairs = sorted(parse_qsl(urls.query(request), keep_blank_values=True))
    query = "&".join(f"{name}={value}" for name, value in pairs)
    fields = "".join(name + value for name, value in sorted(form.items(multi=True)))
    return f"?{query}.{fields}" if query else f"?{fields}"


def check_secret(secret: str) -> None:
    """Raise ValueError, a sentence, unless it may be an auth token."""
    if not secret or not secret.isascii() or any(c.isspace() for c in secret):
        raise ValueError("must be the auth token of the Plivo account")


GATEWAY = Gateway(
    parse,
    # Anything within <Response> would be sent as an SMS
    answer=("<Response/>", "text/xml"),
    heeds=frozenset({"secret"}),
    check_secret=check_secret,
    # https://support.plivo.com/hc/en-us/articles/360041344652; three repeats within 7 minutes
    patience=8,
    setup="""\
In the console, Messaging > Applications > Add New Application: this address for messages, method
POST. Then Phone Numbers > the number > that application (--secret is the account's auth token):

  URL""",
)
