"""Vonage, formerly Nexmo."""

import hashlib
import hmac
import json
import logging
from typing import Any, NamedTuple

from flask import Request

from service.errors import BadRequest, InvalidSignature
from service.logs import event
from service.sms import charsets, forms
from service.sms.gateways.gateway import Gateway, Options, json_object, signing_time
from service.sms.incoming import Part, Sms, read

# How an account may sign, as Vonage's settings name it; all but the first are an HMAC
METHODS = ("md5hash", "md5", "sha1", "sha256", "sha512")


class Secret(NamedTuple):
    """The account's signature secret, and the one of METHODS that it signs with."""

    method: str
    text: str


def parse(request: Request, options: Options) -> Sms | list[Sms]:
    """The SMS API's JSON, form or query string, signed in `sig` if there is a secret.

    https://developer.vonage.com/messaging/sms/guides/inbound-sms. The text of a binary SMS is hex
    in `data`. A delivery report of an outbound SMS is answered with success, so that Vonage does
    not repeat it for days, and nothing is stored.
    """
    given = _given(request)
    if options.secret:
        _check(given, read_secret(options.secret))
    text = _text_of(given)
    if text is None and {"status", "err-code"} <= given.keys():
        event("delivery_report_ignored", format="vonage")
        return []
    sms = read(
        {
            "phone_number": given.get("to"),
            "sms_text": text,
            "message_id": given.get("messageId"),
            "received_at": given.get("message-timestamp"),
            "sender": given.get("msisdn"),
        }
    )
    signed_at = signing_time(str(given.get("timestamp", ""))) if options.secret else None
    return sms._replace(part=_part_of(given), signed_at=signed_at)


def _given(request: Request) -> dict[str, Any]:
    """The parameters, which are flat, from where the account's HTTP method has Vonage put them."""
    if request.method == "GET":
        return forms.query(request).to_dict()
    if request.get_data().lstrip().startswith(b"{"):
        body = json_object(request)
        return {name: value for name, value in body.items() if not isinstance(value, dict | list)}
    return forms.form(request).to_dict()


def _text_of(given: dict[str, Any]) -> Any:
    if given.get("type") != "binary":
        return given.get("text")
    try:
        return charsets.decode_default(bytes.fromhex(given.get("data", "")))
    except (ValueError, TypeError) as e:
        raise BadRequest("Invalid data", errors={"data": ["must be hex"]}) from e


def _part_of(given: dict[str, Any]) -> Part | None:
    """Which part of a long SMS it is. What cannot be read counts as not given, and is logged."""
    if str(given.get("concat")).lower() != "true":
        return None
    reference, *numbers = (str(given.get(f"concat-{name}")) for name in ("ref", "total", "part"))
    if all(number.isascii() and number.isdecimal() for number in (reference, *numbers)):
        total, number = (int(text[:9]) for text in numbers)
        if len(reference) <= 9 and 1 <= number <= total <= 255:
            return Part(reference, total, number) if total > 1 else None
    event("sms_field_ignored", logging.WARNING, field="concat")
    return None


def _check(given: dict[str, Any], secret: Secret) -> None:
    """Raise InvalidSignature unless `sig` signs all other parameters.

    https://developer.vonage.com/getting-started/concepts/signing-messages: in hex, over the sorted
    parameters as `&name=value`, with & and = in values as _. `timestamp` is among them.
    """
    if any("&" in name or "=" in name for name in given):
        raise InvalidSignature  # several parameters that were signed, disguised as one
    pairs = ((name, given[name]) for name in sorted(given) if name != "sig")
    text = "".join(f"&{name}={_signed_value(value)}" for name, value in pairs)
    if secret.method == "md5hash":
        signed = (text + secret.text).encode("utf-8", "replace")
        expected = hashlib.md5(signed, usedforsecurity=False).hexdigest()
    else:
        signed = text.encode("utf-8", "replace")
        expected = hmac.digest(secret.text.encode(), signed, secret.method).hex()
    sig = str(given.get("sig", "")).lower().encode("utf-8", "replace")
    if not hmac.compare_digest(sig, expected.encode()):
        raise InvalidSignature


def _signed_value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("&", "_").replace("=", "_")


def read_secret(given: str) -> Secret:
    """`METHOD:SECRET`, or a secret alone, which signs by Vonage's default, md5hash; raises
    ValueError, a sentence.

    >>> read_secret("sha256:abc")
    Secret(method='sha256', text='abc')
    """
    method, colon, text = given.partition(":")
    if not colon:
        method, text = METHODS[0], given
    method = method.lower().removesuffix("hmac")
    if method not in METHODS:
        raise ValueError(f"must be METHOD:SECRET, with METHOD one of {', '.join(METHODS)}")
    if not text or any(c.isspace() for c in text):
        raise ValueError("must be the signature secret of the Vonage account")
    return Secret(method, text)


def check_secret(secret: str) -> None:
    """Raise ValueError, a sentence, unless it is a secret with a known method."""
    read_secret(secret)


GATEWAY = Gateway(
    parse,
    get=True,
    heeds=frozenset({"secret"}),
    check_secret=check_secret,
    # https://api.support.vonage.com/hc/en-us/articles/226572227, after the connection
    patience=15,
    setup="""\
In the dashboard, API settings > SMS settings: SMS API, Inbound SMS webhook, method POST-JSON.
(--secret is the signature secret there, after its method: sha256:SECRET, for example. Vonage's
support has to turn on signed webhooks):

  URL""",
)
