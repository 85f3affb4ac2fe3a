"""Kannel."""

from urllib.parse import parse_qs

from flask import Request

from service.sms.gateways.gateway import Gateway, Options, decode
from service.sms.incoming import Sms, read


def parse(request: Request, options: Options) -> Sms:
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
    text = None if data is None else decode(data, charset)
    return read({"phone_number": query.get("to"), "sms_text": text, "message_id": query.get("id")})


GATEWAY = Gateway(
    parse,
    get=True,
    # Kannel sends a non-empty answer back to the sender as an SMS
    answer=("", "text/plain"),
    # http-timeout of `group = core`, by default (gwlib/http.c)
    patience=240,
    setup="""\
In kannel.conf (and in its `group = smsbox`: mo-recode = true, http-request-retry = 100):

  group = sms-service
  keyword = default
  catch-all = yes
  max-messages = 0
  omit-empty = yes
  post-url = "URL?from=%p&to=%P&id=%I&smsc=%i\"""",
)
