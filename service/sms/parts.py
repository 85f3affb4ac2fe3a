"""The parts of long SMS that a gateway does not join: they wait in the database for each other."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import SmsPart
from service.database.writing import Transaction, is_duplicate_key, release, transact
from service.keys import sha256
from service.logs import event
from service.sms import ingestion, providers
from service.sms.incoming import Part, Sms, mended
from service.sms.replays import refuse_replay

# How long a part waits for the others; then what is there is stored as it is
WAIT = timedelta(minutes=10)
# How long it is remembered that a part was joined, should its gateway repeat it
REMEMBERED = timedelta(days=1)
# Stands for the parts that never came, so that no two numbers run into one
GAP = "…"
# The answer's `data` for a part that waits
WAITING = {
    "id": None, "matched": False, "duplicate": False, "otp_code": None, "webhook": "none",
    "part": True,
}  # fmt: skip

# Rows of id, number, sms and created_at
_Waiting = Sequence[Any]


class _Taken(Exception):
    """Another call has joined these parts meanwhile."""


class _Kept(Enum):
    """What became of a part that came in."""

    WAITS = auto()
    IS_REPEATED = auto()  # it was joined before
    IS_OF_ANOTHER = auto()  # another SMS with its reference waits: references start again


def ingest(sms: Sms, source: providers.Source, by_worker: bool = False) -> dict[str, Any]:
    """As ingestion.ingest(); but a part is stored until it has waited for all the others.

    A part is committed before it is answered. The last one's call, or that of its repeat, joins
    them: the SMS is stored in the transaction that takes the parts away, so there is one of it.
    Raises BadRequest or InvalidSignature for a signed one that comes again too late.
    """
    if sms.part is None or not 1 <= sms.part.number <= sms.part.total or sms.part.total == 1:
        whole = sms._replace(sms_text=mended(sms.sms_text), part=None)
        refuse_replay(whole, source)
        return ingestion.ingest(whole, source, by_worker=by_worker)
    refuse_replay(sms, source)
    sweep()
    key = _key(sms, source.id)
    while (kept := _keep_once(key, sms, source.id)) is _Kept.IS_OF_ANOTHER:
        _store(key, source, _waiting(key), by_worker=True)
    event("sms_part", number=sms.part.number, total=sms.part.total, kept=kept.name.lower())
    waiting = _waiting(key)
    if kept is _Kept.WAITS and len(waiting) == sms.part.total:
        return _store(key, source, waiting, by_worker) or WAITING
    return WAITING | {"duplicate": kept is _Kept.IS_REPEATED}


def sweep() -> int:
    """Store the SMS whose parts have waited for WAIT, as far as they came; returns how many.

    Their webhooks are left to the worker.
    """
    now = utcnow()
    is_waiting = (SmsPart.sms != "") & (SmsPart.created_at <= now - WAIT)
    found = select(SmsPart.message_key, SmsPart.source).where(is_waiting).distinct()
    is_old = SmsPart.created_at <= now - REMEMBERED
    overdue = db.session.execute(found).all()
    if db.session.scalar(select(SmsPart.id).where(is_old, SmsPart.sms == "").limit(1)):
        transact(_forget, now - REMEMBERED)
    for key, source_id in overdue:
        source = providers.source_with_id(source_id)
        _store(key, source, _waiting(key), by_worker=True)
    release()
    return len(overdue)


def _store(
    key: str, source: providers.Source, waiting: _Waiting, by_worker: bool = False
) -> dict[str, Any] | None:
    """Store the SMS that the parts make; None if another call has done so."""
    if not waiting:
        return None
    claim = partial(_claim, key, source.id, waiting)
    try:
        return ingestion.ingest(_joined(waiting), source, claim, by_worker)
    except _Taken:
        return None


def _key(sms: Sms, source_id: str) -> str:
    """What the parts of one SMS have in common (3GPP TS 23.040, 9.2.3.24.1)."""
    assert sms.part
    common = sms.part.reference, str(sms.part.total)
    return sha256(source_id, sms.digits, sms.sender or "", *common)


def _trace(key: str, sms: Sms) -> str:
    """The key of a part that was joined: it tells its repeat from another SMS's part."""
    return sha256("joined", key, sms.message_id or "", sms.sms_text)


def _keep_once(key: str, sms: Sms, source_id: str) -> _Kept:
    while True:
        try:
            return transact(_keep, key, sms, source_id)
        except IntegrityError as e:  # its repeat came at the same time
            if not is_duplicate_key(e):
                raise


def _keep(tx: Transaction, key: str, sms: Sms, source_id: str) -> _Kept:
    """Store the part, unless it was joined, or waits, already."""
    assert sms.part
    now, trace = utcnow(), _trace(key, sms)
    of_number = select(SmsPart.sms, SmsPart.created_at).where(SmsPart.number == sms.part.number)
    # Read in this order: a part that is joined in between is found by both, not by neither
    earlier = tx.session.execute(of_number.where(SmsPart.message_key == key)).first()
    joined = tx.session.execute(of_number.where(SmsPart.message_key == trace)).first()
    if joined:
        # Without an id, the same text may be another SMS, as for whole ones
        if sms.message_id or joined.created_at > now - ingestion.DUPLICATE_WINDOW:
            return _Kept.IS_REPEATED
        tx.execute(delete(SmsPart).where(SmsPart.message_key == trace))
    if earlier:
        is_same = _loaded(earlier.sms).sms_text == sms.sms_text
        return _Kept.WAITS if is_same else _Kept.IS_OF_ANOTHER
    tx.store(
        SmsPart(
            message_key=key, number=sms.part.number, source=source_id, sms=_dumped(sms),
            created_at=now,
        )
    )  # fmt: skip
    return _Kept.WAITS


def _waiting(key: str) -> _Waiting:
    """The parts that wait, in order."""
    columns = SmsPart.id, SmsPart.number, SmsPart.sms, SmsPart.created_at
    found = select(*columns).where(SmsPart.message_key == key).order_by(SmsPart.number)
    return db.session.execute(found).all()


def _claim(key: str, source_id: str, waiting: _Waiting, tx: Transaction) -> None:
    """Take the parts away, all of them, and leave a trace of each; raises _Taken."""
    for part in waiting:
        trace = _trace(key, _loaded(part.sms))
        mine = update(SmsPart).where(SmsPart.id == part.id, SmsPart.message_key == key)
        if tx.execute(mine.values(message_key=trace, sms="")).rowcount != 1:
            raise _Taken


def _forget(tx: Transaction, before: datetime) -> None:
    tx.execute(delete(SmsPart).where(SmsPart.created_at <= before, SmsPart.sms == ""))


def _joined(waiting: _Waiting) -> Sms:
    """The SMS of the parts that came. Its id is made of theirs, so that it comes out the same when
    all of them are repeated; it was received when the first of them was."""
    parts = [_loaded(part.sms) for part in waiting]
    text, expected = "", waiting[0].number
    for row, part in zip(waiting, parts, strict=True):
        text += part.sms_text if row.number == expected else GAP + part.sms_text
        expected = row.number + 1
    ids = [part.message_id for part in parts if part.message_id]
    times = [part.received_at or row.created_at for row, part in zip(waiting, parts, strict=True)]
    return parts[0]._replace(
        sms_text=mended(text),
        message_id=sha256("parts", *ids) if ids else None,
        otp_code=next((part.otp_code for part in parts if part.otp_code), None),
        received_at=min(times),
        part=None,
    )


def _dumped(sms: Sms) -> str:
    """JSON in ASCII, which keeps halves of surrogate pairs."""
    fields = sms._asdict() | {"received_at": sms.received_at and sms.received_at.isoformat()}
    return json.dumps(fields)


def _loaded(text: str) -> Sms:
    fields = json.loads(text)
    time = fields.pop("received_at")
    part = Part(*fields.pop("part"))
    return Sms(**fields, part=part, received_at=datetime.fromisoformat(time) if time else None)
