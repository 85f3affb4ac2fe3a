"""Getting a number for a user: reserve, ask the main server, record."""

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Executable, bindparam, delete, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm.attributes import set_committed_value

from service import limits, upstream
from service.database.columns import utcnow
from service.database.models import NumberState, Operator, PhoneNumber, User
from service.database.writing import Transaction, transact, transact_within
from service.errors import NoNumberReceived, NumbersBusy, UnableToGetNumber
from service.logs import describe, event
from service.numbers.formats import NumberFormat, code_in, phone_codes_of
from service.numbers.reservation import check_limit, reserve, upstream_key

# Compiled once, without the ORM: the statements of every call
_NUMBERS, _OPERATOR = PhoneNumber.table(), Operator.table()
_THIS = _NUMBERS.c.id == bindparam("row_id")
_FILL = update(_NUMBERS).where(_THIS, _NUMBERS.c.state != NumberState.ASSIGNED)
_REQUESTED = _THIS & (_NUMBERS.c.state == NumberState.REQUESTED)
_MARK_UNKNOWN = update(_NUMBERS).where(_REQUESTED).values(state=NumberState.UNKNOWN)
_FORGET = delete(_NUMBERS).where(_REQUESTED)
_OPERATORS = select(_OPERATOR).where(_OPERATOR.c.id.in_(bindparam("ids", expanding=True)))


class FilledMeanwhile(Exception):
    """Another call with the same Idempotency-Key has filled the row with another number."""


class Assigned(NamedTuple):
    """An assigned number; `phone_code` is known if the format asked for needs it."""

    row: PhoneNumber
    phone_code: str | None


def get_number(
    user: User,
    country_id: int,
    operator_id: int | None,
    number_format: str,
    idempotency_key: str | None,
) -> Assigned:
    """A number for `user`: a new one, or the one that the Idempotency-Key got before.

    The row is created first and holds the user's limit and Idempotency-Key, so that neither a
    concurrent call nor a crash can bypass them; no transaction is open while the main
    server is asked. Raises the errors of GET /api/get-number.
    """
    needs_code = number_format == NumberFormat.NATIONAL
    with _place(user):
        row = reserve(user, country_id, operator_id, idempotency_key)
        if row.state != NumberState.ASSIGNED:
            return _ask(user, row, needs_code, idempotency_key)
        if row.phone_code or not needs_code:
            return Assigned(row, row.phone_code)
        with limits.gate().outside():
            codes = phone_codes_of(row.country_id)
        return Assigned(row, code_in(row.digits or "", codes))


@contextlib.contextmanager
def _place(user: User) -> Iterator[None]:
    """Hold a place among those who wait for the main server; raises NumbersBusy, or
    DailyLimitReached, since coming back would not help then."""
    with limits.share("main_server").take(user.id) as has_place:
        if not has_place:
            check_limit(user)
            raise NumbersBusy
        yield


def _ask(user: User, row: PhoneNumber, needs_code: bool, idempotency_key: str | None) -> Assigned:
    """Ask the main server for the number of a reserved row, and record it."""
    country_id, operator_id = row.country_id, row.operator_id
    fields = {"request": row.id, "user_id": user.id, "country_id": country_id}
    try:
        with limits.gate().outside():
            codes = phone_codes_of(country_id) if needs_code else []
            once = upstream_key(row, idempotency_key)
            grant = upstream.get_number(country_id, operator_id, once)
    except upstream.UpstreamError as e:
        _give_up(row, e, fields)
        raise (NoNumberReceived if isinstance(e, upstream.NoNumber) else UnableToGetNumber) from e
    except Exception:
        transact(_end_without, _FORGET, row, asked=False)  # the country list failed
        raise
    phone_code = code_in(grant.digits, codes)
    _record(row, grant, phone_code, fields | {"operator_id": operator_id})
    event("number_assigned", number_id=row.id, user_id=user.id, country_id=country_id)
    return Assigned(row, phone_code)


def _give_up(row: PhoneNumber, error: upstream.UpstreamError, fields: dict[str, Any]) -> None:
    """Delete the row, or mark it unknown if the main server may have granted a number."""
    if error.granted:
        event("number_unknown", logging.WARNING, exc_info=True, **fields)
        transact(_end_without, _MARK_UNKNOWN, row)
    else:
        event("number_refused", why=describe(error), **fields)
        transact(_end_without, _FORGET, row)


def _record(
    row: PhoneNumber, grant: upstream.Grant, phone_code: str | None, fields: dict[str, Any]
) -> None:
    changes = {
        "state": NumberState.ASSIGNED,
        "digits": grant.digits,
        "phone_code": phone_code,
        "assigned_at": utcnow(),
    }
    try:
        transact(_assign, row, changes, grant.operators)
    except Exception as e:
        # Granted but not recorded: this line is the only trace of the number
        event("number_not_recorded", logging.CRITICAL, exc_info=True,
              phone_number=f"+{grant.digits}", **fields)  # fmt: skip
        with contextlib.suppress(SQLAlchemyError):
            transact_within(0, _end_without, _MARK_UNKNOWN, row)
        raise UnableToGetNumber from e
    for name, value in changes.items():
        set_committed_value(row, name, value)


def _end_without(
    tx: Transaction, statement: Executable, row: PhoneNumber, asked: bool = True
) -> None:
    """End a request without a number; it is counted if the main server was asked."""
    if tx.execute(statement, {"row_id": row.id}).rowcount == 1 and asked:
        tx.count(row.user_id, utcnow(), requests=1)


def _assign(
    tx: Transaction, row: PhoneNumber, changes: dict[str, Any], operators: list[dict[str, Any]]
) -> None:
    """The number, the operators and both summaries."""
    if tx.execute(_FILL, changes | {"row_id": row.id}).rowcount != 1:
        filled = tx.session.get(PhoneNumber, row.id, populate_existing=True)
        if filled is None or filled.digits != changes["digits"]:
            raise FilledMeanwhile
        return  # committed already: the connection was lost before the confirmation arrived
    _sync_operators(tx, operators, changes["assigned_at"])
    tx.count(row.user_id, changes["assigned_at"], requests=1, numbers=1)


def _sync_operators(tx: Transaction, operators: list[dict[str, Any]], now: datetime) -> None:
    """Upsert the main server's operators; unchanged ones are skipped, since every call brings the
    same ones."""
    new = {operator["id"]: operator for operator in operators}
    old = {row.id: row for row in tx.execute(_OPERATORS, {"ids": list(new)})} if new else {}
    for id, operator in sorted(new.items()):
        known = old.get(id)
        name = operator.get("name") or (known.name if known else f"Operator {id}")
        values = {"name": name, "country_id": operator.get("country_id")}
        if known is None or (known.name, known.country_id) != tuple(values.values()):
            tx.upsert(Operator, {"id": id}, values | {"updated_at": now})
