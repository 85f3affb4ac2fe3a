"""Jasmin."""

import logging
import re

from flask import Request

from service.errors import BadRequest
from service.logs import event
from service.sms import forms, user_data
from service.sms.gateways.gateway import Gateway, Options
from service.sms.incoming import Sms, read


def parse(request: Request, options: Options) -> Sms:
    """A form; the text is read from `binary`, the bytes of the SMS in hex, as `coding` says.

    Jasmin documentation, "Receiving SMS-MO". `content` has the same bytes, misread as text. Jasmin
    joins the parts of a long SMS that have 8-bit references and no message class 2, if the last one
    comes last; others pass with their headers, and an id each (jasmin/managers/listeners.py).
    """
    given = forms.values(request)
    text, part = given.get("content"), None
    if given.get("binary"):
        try:
            data = bytes.fromhex(given["binary"])
        except ValueError as e:
            raise BadRequest("Invalid binary", errors={"binary": ["must be hex"]}) from e
        text, part = user_data.read(data, _coding(forms.raw_value(request, "coding")))
    sms = read(
        {
            "phone_number": given.get("to"),
            "sms_text": text,
            "message_id": given.get("id"),
            "sender": given.get("from"),
        }
    )
    # As decoded: what is not a character yet may become one with the next part
    return sms._replace(part=part, sms_text=text or "") if part else sms


def _coding(value: bytes) -> int:
    """SMPP's data_coding: Jasmin sends its one byte as it is; others send its digits.

    One digit alone is read as that digit; as a byte, it would say that the text is compressed.
    """
    if re.fullmatch(rb"[0-9]{1,3}", value) and int(value) < 256:
        return int(value)
    if len(value) == 1:
        return value[0]
    if value:
        event("coding_ignored", logging.WARNING, characters=len(value))
    return 0


GATEWAY = Gateway(
    parse,
    get=True,
    answer=("ACK/Jasmin", "text/plain"),
    # http_timeout of [deliversm-thrower], by default (jasmin/routing/configs.py)
    patience=30,
    setup="""\
In jcli, then name the connector in an MO route (morouter -a):

  httpccm -a
  cid otp
  url URL
  method POST
  ok
  persist""",
)
