"""Signed requests that come again later: who has overheard one gains nothing by sending it."""

import logging
import time

from service.errors import BadRequest, InvalidSignature
from service.logs import event
from service.sms import ingestion
from service.sms.incoming import Sms
from service.sms.providers import Source
from service.webhooks.signing import TOLERANCE_SECONDS


def refuse_replay(sms: Sms, source: Source) -> None:
    """Raise InvalidSignature for a signature whose time is over, unless the SMS is stored already:
    then the sender only repeats it, and it will be told as a duplicate.

    Raises BadRequest for a signed SMS without an id, by which a repeat would not be recognised.
    """
    if not source.options.secret:
        return
    if not sms.message_id:
        errors = {"message_id": ["is required where the SMS is signed"]}
        raise BadRequest("message_id is required where the SMS is signed", errors=errors)
    if sms.signed_at is None:
        return
    age = time.time() - sms.signed_at
    if abs(age) <= TOLERANCE_SECONDS or (sms.part is None and ingestion.is_stored(sms, source)):
        return
    event("signature_out_of_time", logging.WARNING, format=source.format, seconds=round(age))
    raise InvalidSignature
