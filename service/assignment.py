"""Getting a number for a user: limit, Idempotency-Key, the main server, the records."""

import contextlib
import logging
import re
import time
from datetime import timedelta

from flask import current_app
from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm.attributes import set_committed_value

from service import upstream
from service.errors import (
    BadRequest,
    CountriesUnavailable,
    DailyLimitReached,
    NoNumberReceived,
    UnableToGetNumber,
)
from service.logs import event
from service.models import (
    Operator,
    PhoneNumber,
    UserSummary,
    count,
    db,
    execute,
    sha256,
    store,
    transact,
    upsert,
    utcnow,
)

log = logging.getLogger(__name__)
KEY_LIFETIME = timedelta(hours=24)

# Built once, and past the ORM: what every call writes
_NUMBERS, _OPERATOR = PhoneNumber.__table__, Operator.__table__
_THIS = _NUMBERS.c.id == bindparam("row_id")
_FILL = update(_NUMBERS).where(_THIS, _NUMBERS.c.state != "assigned")
_MARK_UNKNOWN = update(_NUMBERS).where(_THIS, _NUMBERS.c.state == "requested")
_MARK_UNKNOWN = _MARK_UNKNOWN.values(state="unknown")
_FORGET = delete(_NUMBERS).where(_THIS, _NUMBERS.c.state == "requested")
_OPERATORS = select(_OPERATOR).where(_OPERATOR.c.id.in_(bindparam("ids", expanding=True)))


def get_number(user, country_id, operator_id, number_format, idempotency_key):
    """A number for `user`: its PhoneNumber row, assigned.

    The row is made first and holds the user's limit and Idempotency-Key, so that neither a
    concurrent call nor a crash can get round them; no transaction is open while the main
    server is asked. Raises the errors of GET /api/get-number.
    """
    row = _reserve(user, country_id, operator_id, idempotency_key)
    if row.state == "assigned":
        return row
    told = {"request": row.id, "user_id": user.id, "country_id": country_id}
    try:
        phone_code = phone_code_of(country_id) if number_format == "national" else None
        grant = upstream.get_number(country_id, operator_id, _upstream_key(user, idempotency_key))
    except upstream.UpstreamError as e:
        _give_up(row, e, told)
        raise (NoNumberReceived if isinstance(e, upstream.NoNumber) else UnableToGetNumber) from e
    except Exception:
        _run(_FORGET, row)  # the country list: no number was asked for
        raise
    changes = {"state": "assigned", "digits": grant.digits, "phone_code": phone_code}
    changes["assigned_at"] = utcnow()
    try:
        transact(lambda: _assign(row, changes, grant.operators))
    except Exception as e:
        # Granted, but nowhere recorded: this line is all that is left to find it by
        event(
            log, "number_not_recorded", logging.CRITICAL, exc_info=True,
            phone_number=f"+{grant.digits}", operator_id=operator_id, **told,
        )  # fmt: skip
        with contextlib.suppress(DBAPIError):
            _run(_MARK_UNKNOWN, row, patience=0)
        raise UnableToGetNumber from e
    for name, value in changes.items():
        set_committed_value(row, name, value)
    event(log, "number_assigned", number_id=row.id, user_id=user.id, country_id=country_id)
    return row


def phone_code_of(country_id):
    """The digits of a country's phone code; raises CountriesUnavailable."""
    try:
        countries = upstream.init()["countries"]
    except upstream.UpstreamError as e:
        raise CountriesUnavailable from e
    for country in countries:
        code = re.sub(r"[^0-9]", "", country.get("phone_code") or "")
        if country["id"] == country_id and code:
            return code[:8]
    raise CountriesUnavailable


def present(row, number_format):
    """The number of an assigned `row` as `full`, `national` or `remove_plus`."""
    if number_format == "full":
        return f"+{row.digits}"
    if number_format == "national":
        code = row.phone_code or phone_code_of(row.country_id)
        return row.digits.removeprefix(code) or row.digits
    return row.digits


def _request_lease():
    # Longer than the country list and the number take together; no more, since a repeat of a
    # call whose process died waits for it
    return timedelta(seconds=2 * current_app.config["UPSTREAM_TIMEOUT"] + 10)


def _upstream_key(user, idempotency_key):
    """The key as the main server gets it: two of our users may have chosen the same one."""
    if idempotency_key is None:
        return None
    key = f"{user.id}:{idempotency_key}"
    return key if len(key) <= 255 and key.isascii() and key.isprintable() else sha256(key)


def _reserve(user, country_id, operator_id, idempotency_key):
    """The row of this request: a new one, or the one that the Idempotency-Key made before.

    While another call with the same key is asking the main server, waits for its outcome.
    """
    key_hash = sha256(idempotency_key) if idempotency_key is not None else None
    give_up = time.monotonic() + _request_lease().total_seconds()
    while True:
        try:
            row, mine = transact(lambda: _reserve_once(user, country_id, operator_id, key_hash))
        except IntegrityError:
            continue  # another call with this key was faster: look again
        if mine or row.state == "assigned":
            return row
        if time.monotonic() > give_up:
            raise UnableToGetNumber
        time.sleep(0.05)


def _reserve_once(user, country_id, operator_id, key_hash):
    """(row, whether it is this call's to fill), in one transaction."""
    now = utcnow()
    row = key_hash and db.session.scalar(
        select(PhoneNumber)
        .where(PhoneNumber.user_id == user.id, PhoneNumber.idempotency_hash == key_hash)
        .execution_options(populate_existing=True)
    )
    if row and row.requested_at < now - KEY_LIFETIME:
        row.idempotency_hash = None
        db.session.flush()
        row = None
    if row:
        if (row.country_id, row.operator_id) != (country_id, operator_id):
            raise BadRequest("Idempotency-Key was used with another country_id or operator_id")
        if row.state == "assigned" or (
            row.state == "requested" and row.requested_at > now - _request_lease()
        ):
            return row, False
        # Its call died or never heard the answer: ask again, with the same key
        row.state, row.requested_at = "requested", now
        db.session.flush()
    else:
        row = PhoneNumber(
            user_id=user.id, state="requested", country_id=country_id, operator_id=operator_id,
            idempotency_hash=key_hash, requested_at=now,
        )  # fmt: skip
        store(row)
    count(user.id, now, requests=1)  # also takes the lock of the user's row for the check below
    if user.daily_limit is not None:
        used = _used(user, now)
        if used >= user.daily_limit:
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            wait = int((midnight - now).total_seconds()) + 1
            raise DailyLimitReached(headers={"Retry-After": str(wait)})
    return row, True


def _used(user, now):
    """Today's numbers, and the requests under way, the caller's own not counted."""
    numbers = select(UserSummary.numbers).where(
        UserSummary.user_id == user.id, UserSummary.day == now.date()
    )
    asking = select(func.count()).where(
        PhoneNumber.user_id == user.id,
        PhoneNumber.state == "requested",
        PhoneNumber.requested_at > now - _request_lease(),
    )
    return (db.session.scalar(numbers) or 0) + db.session.scalar(asking) - 1


def _give_up(row, error, told):
    """Record that no number came: the row goes, unless the main server may have granted one."""
    if error.granted:
        event(log, "number_unknown", logging.WARNING, exc_info=True, **told)
        _run(_MARK_UNKNOWN, row)
    else:
        event(log, "number_refused", why=error, **told)
        _run(_FORGET, row)


def _run(statement, row, **options):
    transact(lambda: execute(statement, {"row_id": row.id}), **options)


def _assign(row, changes, operators):
    """The number, the operators and both summaries, in one transaction."""
    if execute(_FILL, changes | {"row_id": row.id}).rowcount != 1:
        filled = db.session.get(PhoneNumber, row.id, populate_existing=True)
        if filled is None or filled.digits != changes["digits"]:
            raise LookupError("another call with the same Idempotency-Key has filled the row")
        return  # committed already: the connection was lost before we heard of it
    now = changes["assigned_at"]
    _sync_operators(operators, now)
    count(row.user_id, now, numbers=1)  # last: it locks the row that the user's calls share


def _sync_operators(operators, now):
    """Upsert the main server's operators; unchanged ones are not written, since every call
    brings the same."""
    told = {operator["id"]: operator for operator in operators}
    known = {o.id: o for o in execute(_OPERATORS, {"ids": list(told)})} if told else {}
    for id, operator in sorted(told.items()):
        old = known.get(id)
        name = operator.get("name") or (old.name if old else f"Operator {id}")
        values = {"name": name, "country_id": operator.get("country_id")}
        if old is None or (old.name, old.country_id) != tuple(values.values()):
            values["updated_at"] = now
            upsert(Operator, {"id": id}, values)
