"""Twilio."""

import base64
import hmac
import re

from flask import Request

from service.sms.gateways.gateway import Gateway, Options, check_signature
from service.sms.incoming import Sms, read


def parse(request: Request, options: Options) -> Sms:
    """A form, signed in X-Twilio-Signature if there is a secret (the account's auth token).

    https://www.twilio.com/docs/usage/security: base64 HMAC-SHA1 over the URL and the sorted
    parameters. A proxy may have turned Twilio's https into http; and as in Twilio's own libraries,
    the signed URL may or may not include the port.
    """
    if options.secret:
        path = request.full_path if request.query_string else request.path
        fields = "".join(k + v for k, v in sorted(set(request.form.items(multi=True))))
        name = re.sub(r":\d+\Z", "", request.host)
        signed = [
            f"{scheme}://{host}{path}{fields}"
            for scheme, port in (("https", 443), ("http", 80))
            for host in (request.host, name, f"{name}:{port}")
        ]
        digests = [hmac.digest(options.secret.encode(), text.encode(), "sha1") for text in signed]
        check_signature(
            request, "X-Twilio-Signature", [base64.b64encode(d).decode() for d in digests]
        )
    form = request.form
    to, text, id = form.get("To"), form.get("Body"), form.get("MessageSid")
    return read({"phone_number": to, "sms_text": text, "message_id": id})


GATEWAY = Gateway(
    parse,
    answer=("<Response/>", "text/xml"),
    heeds=frozenset({"secret"}),
    setup="""\
On the number, "A message comes in": Webhook, HTTP POST, and this URL (--secret is the auth token):

  URL""",
)
