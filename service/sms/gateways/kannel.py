"""Kannel."""

from flask import Request

from service.sms import charsets, forms
from service.sms.gateways.gateway import Gateway, Options, decode
from service.sms.incoming import Sms, read


def parse(request: Request, options: Options) -> Sms:
    """A POST of the text itself, in the charset that Content-Type declares; or a GET with `text`.

    Kannel user guide, "SMS-service group", post-url and get-url. `id` is %I, which stays the same
    over Kannel's retries.
    """
    query = forms.query(request)
    data: bytes | None
    if request.method == "POST":
        data, charset = request.get_data(), request.mimetype_params.get("charset")
    else:
        # Percent-encoded bytes in the charset given by `charset` (%C)
        data, charset = dict(forms.query_bytes(request)).get("text"), query.get("charset")
    text = None
    if data is not None:
        text = decode(data, charset) if charset else charsets.guess(data)
    return read(
        {
            "phone_number": query.get("to"),
            "sms_text": text,
            "message_id": query.get("id"),
            "sender": query.get("from"),
        }
    )


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
