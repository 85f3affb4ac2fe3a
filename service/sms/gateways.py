"""The SMS gateways: how each one's request is read, and what it accepts as success."""

import base64
import hmac
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from flask import Request

from service.errors import BadRequest, InvalidSignature
from service.sms import charsets
from service.sms.incoming import Sms, read
from service.webhooks.signing import verify


class Gateway(NamedTuple):
    """One format: `parse(request, secret, number)` returns the Sms or raises BadRequest or
    InvalidSignature; `answer` is what the gateway accepts as success (None: our own JSON);
    `setup` tells the operator how to configure it, with URL for the ingest URL.
    """

    parse: Callable[[Request, str | None, str | None], Sms]
    setup: str
    answer: tuple[str, str] | None = None  # body, content type
    get: bool = False  # whether GET is also accepted
    signs: bool = False


def main_server(request: Request, secret: str | None, number: str | None) -> Sms:
    """What the main server POSTs: section "The webhook" of our own documentation.

    The signature is required if there is a secret. `data.received_at` is optional.
    """
    if secret and not verify(secret, request.headers, request.get_data()):
        raise InvalidSignature
    body = _json(request)
    if body.get("event") != "otp_received" or not isinstance(body.get("data"), dict):
        raise BadRequest("event must be otp_received, with data")
    return read(body["data"] | {"message_id": request.headers.get("webhook-id")})


GENERIC_NAMES = {
    "phone_number": ("phone_number", "to"),
    "sms_text": ("sms_text", "text", "message", "body"),
    "message_id": ("id", "message_id"),
    "otp_code": ("otp_code",),
    "received_at": ("received_at",),
}


def generic(request: Request, secret: str | None, number: str | None) -> Sms:
    """JSON, a form or the query string, with the field names of GENERIC_NAMES."""
    given = _json(request) if request.is_json else request.values
    fields: dict[str, Any] = {}
    for field, names in GENERIC_NAMES.items():
        for name in names:
            if given.get(name) is not None:
                fields.setdefault(field, given[name])
    # A form sends unset fields as empty strings; the text of an SMS may be empty
    return read({k: v for k, v in fields.items() if v != "" or k == "sms_text"})


def kannel(request: Request, secret: str | None, number: str | None) -> Sms:
    """A POST of the text itself, in the charset that Content-Type declares; or a GET with `text`.

    Kannel user guide, "SMS-service group", post-url and get-url. `id` is %I, which stays the same
    over Kannel's retries.
    """
    query = request.args
    data: bytes | None
    if request.method == "POST":
        data, charset = request.get_data(), request.mimetype_params.get("charset", "utf-8")
    else:
        # Percent-encoded bytes in the charset given by `charset` (%C)
        raw = request.query_string.decode("latin-1")
        texts = parse_qs(raw, encoding="latin-1", keep_blank_values=True).get("text")
        data = texts[0].encode("latin-1") if texts else None
        charset = query.get("charset", "utf-8")
    text = None if data is None else _decode(data, charset)
    return read({"phone_number": query.get("to"), "sms_text": text, "message_id": query.get("id")})


# SMPP v3.4, 5.2.19, data_coding; all others are decoded as the default alphabet
JASMIN_CODINGS = {
    "3": "iso-8859-1",
    "5": "shift_jis",
    "6": "iso-8859-5",
    "7": "iso-8859-8",
    "8": "utf-16-be",
    "10": "iso2022_jp",
    "14": "cp949",
}


def jasmin(request: Request, secret: str | None, number: str | None) -> Sms:
    """A form; the text is read from `binary`, the bytes of the SMS in hex, as `coding` says.

    Jasmin documentation, "Receiving SMS-MO". `content` has the same bytes misread as text. Parts of
    a long message that Jasmin does not join have an id each.
    """
    given = request.values
    text, charset = given.get("content"), JASMIN_CODINGS.get(given.get("coding", ""))
    if given.get("binary"):
        try:
            data = bytes.fromhex(given["binary"])
        except ValueError as e:
            raise BadRequest("Invalid binary", errors={"binary": ["must be hex"]}) from e
        text = _decode(data, charset) if charset else charsets.decode_default(data)
    return read({"phone_number": given.get("to"), "sms_text": text, "message_id": given.get("id")})


def twilio(request: Request, secret: str | None, number: str | None) -> Sms:
    """A form, signed in X-Twilio-Signature if there is a secret (the account's auth token).

    https://www.twilio.com/docs/usage/security: base64 HMAC-SHA1 over the URL and the sorted
    parameters. A proxy may have turned Twilio's https into http; and as in Twilio's own libraries,
    the signed URL may or may not include the port.
    """
    if secret:
        path = request.full_path if request.query_string else request.path
        fields = "".join(k + v for k, v in sorted(set(request.form.items(multi=True))))
        name = re.sub(r":\d+\Z", "", request.host)
        signed = [
            f"{scheme}://{host}{path}{fields}"
            for scheme, port in (("https", 443), ("http", 80))
            for host in (request.host, name, f"{name}:{port}")
        ]
        digests = [hmac.digest(secret.encode(), text.encode(), "sha1") for text in signed]
        _check(request, "X-Twilio-Signature", [base64.b64encode(d).decode() for d in digests])
    form = request.form
    to, text, id = form.get("To"), form.get("Body"), form.get("MessageSid")
    return read({"phone_number": to, "sms_text": text, "message_id": id})


def android_sms_gateway(request: Request, secret: str | None, number: str | None) -> Sms:
    """A JSON envelope of the event `sms:received`; its `id` stays the same over retries.

    https://docs.sms-gate.app/features/webhooks: X-Signature is hex HMAC-SHA256 over body and
    X-Timestamp. The age does not matter: a replay is a duplicate. A phone sends null as its own
    number, or what its SIM stores, often without the country code: `number` replaces both.
    """
    if secret:
        signed = request.get_data() + request.headers.get("X-Timestamp", "").encode()
        _check(request, "X-Signature", [hmac.digest(secret.encode(), signed, "sha256").hex()])
    body = _json(request)
    payload = body.get("payload")
    if body.get("event") != "sms:received" or not isinstance(payload, dict):
        raise BadRequest("event must be sms:received, with payload")
    recipient = payload.get("recipient")
    if number and not str(recipient).startswith("+"):
        recipient = number
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


FORMATS = {
    "main-server": Gateway(
        main_server,
        setup="Have the main server POST its otp_received webhooks to\n  URL",
        signs=True,
    ),
    "generic": Gateway(
        generic,
        setup="""\
curl 'URL' -d to=447400849540 -d 'text=Your code is 493817' -d id=42""",
    ),
    "kannel": Gateway(
        kannel,
        get=True,
        # Kannel sends a non-empty answer back to the sender as an SMS
        answer=("", "text/plain"),
        setup="""\
In kannel.conf (and in its `group = smsbox`: mo-recode = true, http-request-retry = 100):

  group = sms-service
  keyword = default
  catch-all = yes
  max-messages = 0
  omit-empty = yes
  post-url = "URL?from=%p&to=%P&id=%I&smsc=%i\"""",
    ),
    "jasmin": Gateway(
        jasmin,
        get=True,
        answer=("ACK/Jasmin", "text/plain"),
        setup="""\
In jcli, then name the connector in an MO route (morouter -a):

  httpccm -a
  cid otp
  url URL
  method POST
  ok
  persist""",
    ),
    "twilio": Gateway(
        twilio,
        answer=("<Response/>", "text/xml"),
        signs=True,
        setup="""\
On the number, "A message comes in": Webhook, HTTP POST, and this URL (--secret is the auth token):

  URL""",
    ),
    "android-sms-gateway": Gateway(
        android_sms_gateway,
        signs=True,
        setup="""\
Register the webhook with the app's server (--secret is the app's signing key):

  curl -X POST -u USER:PASSWORD https://api.sms-gate.app/3rdparty/v1/webhooks \\
    -H 'Content-Type: application/json' -d '{"event":"sms:received","url":"URL"}'""",
    ),
}


def _check(request: Request, header: str, signatures: Iterable[str]) -> None:
    """Raise InvalidSignature unless the header is one of the signatures."""
    given = request.headers.get(header, "").encode()
    if not any(hmac.compare_digest(given, signature.encode()) for signature in signatures):
        raise InvalidSignature


def _decode(data: bytes, charset: str) -> str:
    try:
        return charsets.decode(data, charset)
    except (LookupError, ValueError) as e:
        raise BadRequest("Unknown charset") from e


def _json(request: Request) -> dict[str, Any]:
    try:
        body = request.get_json(silent=True, force=True)
    except RecursionError:
        body = None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object")
    return body
