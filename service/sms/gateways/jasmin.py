"""Jasmin."""

from flask import Request

from service.errors import BadRequest
from service.sms import charsets
from service.sms.gateways.gateway import Gateway, Options, decode
from service.sms.incoming import Sms, read

# SMPP v3.4, 5.2.19, data_coding; all others are decoded as the default alphabet
CODINGS = {
    "3": "iso-8859-1",
    "5": "shift_jis",
    "6": "iso-8859-5",
    "7": "iso-8859-8",
    "8": "utf-16-be",
    "10": "iso2022_jp",
    "14": "cp949",
}


def parse(request: Request, options: Options) -> Sms:
    """A form; the text is read from `binary`, the bytes of the SMS in hex, as `coding` says.

    Jasmin documentation, "Receiving SMS-MO". `content` has the same bytes misread as text. Parts of
    a long message that Jasmin does not join have an id each.
    """
    given = request.values
    text, charset = given.get("content"), CODINGS.get(given.get("coding", ""))
    if given.get("binary"):
        try:
            data = bytes.fromhex(given["binary"])
        except ValueError as e:
            raise BadRequest("Invalid binary", errors={"binary": ["must be hex"]}) from e
        text = decode(data, charset) if charset else charsets.decode_default(data)
    return read({"phone_number": given.get("to"), "sms_text": text, "message_id": given.get("id")})


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
