"""Any gateway that can be told what to send."""

from typing import Any

from flask import Request

from service.sms import forms
from service.sms.gateways.gateway import Gateway, Options, json_object
from service.sms.incoming import Sms, read

NAMES = {
    "phone_number": ("phone_number", "to"),
    "sms_text": ("sms_text", "text", "message", "body"),
    "message_id": ("id", "message_id"),
    "otp_code": ("otp_code",),
    "received_at": ("received_at",),
}


def parse(request: Request, options: Options) -> Sms:
    """JSON, a form or the query string, with the field names of NAMES."""
    given = json_object(request) if request.is_json else forms.values(request)
    fields: dict[str, Any] = {}
    for field, names in NAMES.items():
        for name in names:
            if given.get(name) is not None:
                fields.setdefault(field, given[name])
    # A form sends unset fields as empty strings; the text of an SMS may be empty
    return read({k: v for k, v in fields.items() if v != "" or k == "sms_text"})


GATEWAY = Gateway(
    parse,
    setup="""\
curl 'URL' -d to=447400849540 -d 'text=Your code is 493817' -d id=42""",
)
