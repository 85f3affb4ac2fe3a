"""Pages of a user's numbers, messages and deliveries, found by text, time and state."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from typing import Any, NamedTuple

from marshmallow import ValidationError
from sqlalchemy import ColumnElement, exists, func, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute, selectinload

from service import history
from service.database.engine import db
from service.database.models import (
    NO_WEBHOOK,
    Delivery,
    Message,
    NumberState,
    PhoneNumber,
    User,
)
from service.errors import NotFound
from service.fields import phone_digits

PAGE = 20  # rows
# How far rows are counted; and of how many of the newest ones texts and states are looked at, so
# that a page takes as long for a million as for these
BOUND = 10_000
# So many digits mean a phone number; fewer may be a part of a code
NUMBER_DIGITS = 7
# States of a number that a page can ask for
WAITING, USED = "waiting", "used"
_SHOWN = PhoneNumber.state.not_in((NumberState.REQUESTED, NumberState.REFUSED))
_OF_NUMBER: dict[str, ColumnElement[bool]] = {
    WAITING: (PhoneNumber.state == NumberState.ASSIGNED) & PhoneNumber.first_sms_at.is_(None),
    USED: PhoneNumber.first_sms_at.is_not(None),
    NumberState.UNKNOWN: PhoneNumber.state == NumberState.UNKNOWN,
}
Conditions = list[ColumnElement[bool]]


class Wanted(NamedTuple):
    """What is looked for, and from where on: `before` and `after` are ids of rows.

    `text` is a number in any notation, or part of a sender or a text; texts are read only with
    `reads_texts`. `since` and `until` are days (UTC), both included.
    """

    text: str | None = None
    since: date | None = None
    until: date | None = None
    state: str | None = None
    before: int | None = None
    after: int | None = None
    reads_texts: bool = False


class Found(NamedTuple):
    """One page, newest first: its rows, how many are newer, whether there are older ones, and how
    many there are in all; BOUND + 1 stands for more.

    `is_cut` says that only the newest BOUND were looked at, of more.
    """

    rows: Sequence[Any]
    newer: int
    has_older: bool
    total: int
    is_cut: bool = False


def messages(user: User, wanted: Wanted) -> Found:
    """The user's Message rows that are wanted, with their deliveries."""
    time = Message.received_at
    ids, page = _page(time, user, _messages(user, wanted), wanted)
    sizes = select(Message.id, history.TEXT_BYTES).where(Message.id.in_(ids))
    rows = history.read(sizes.order_by(time.desc(), Message.id.desc()))
    return page._replace(rows=rows, has_older=page.has_older or len(rows) < len(ids))


def count_messages(user: User, wanted: Wanted) -> int:
    """How many there are; BOUND + 1 for more."""
    return count(*_messages(user, wanted).conditions)


def numbers(user: User, wanted: Wanted) -> Found:
    """The user's PhoneNumber rows that are wanted: assigned and unknown ones."""
    time = PhoneNumber.requested_at
    ids, page = _page(time, user, _numbers(user, wanted), wanted)
    rows = select(PhoneNumber).where(PhoneNumber.id.in_(ids))
    newest = rows.order_by(time.desc(), PhoneNumber.id.desc())
    return page._replace(rows=db.session.scalars(newest).all())


def count_numbers(user: User, wanted: Wanted) -> int:
    """How many there are; BOUND + 1 for more."""
    return count(*_numbers(user, wanted).conditions)


def deliveries(user: User, wanted: Wanted) -> Found:
    """The user's Delivery rows in the wanted state, with their attempts and messages."""
    time, conditions = Delivery.created_at, [Delivery.user_id == user.id]
    if wanted.state:
        conditions.append(Delivery.state == wanted.state)
    ids, page = _page(time, user, _Scope(conditions), wanted)
    rows = select(Delivery).where(Delivery.id.in_(ids))
    rows = rows.options(selectinload(Delivery.tries), selectinload(Delivery.message))
    newest = rows.order_by(time.desc(), Delivery.id.desc())
    return page._replace(rows=db.session.scalars(newest).all())


def count(*conditions: ColumnElement[bool]) -> int:
    """How many rows fulfil the conditions; BOUND + 1 if there are more than BOUND."""
    some = select(literal(1).label("one")).where(*conditions).limit(BOUND + 1).subquery()
    return db.session.scalar(select(func.count()).select_from(some)) or 0


class _Scope(NamedTuple):
    """The conditions of what is wanted, and whether they leave out all but the newest BOUND."""

    conditions: Conditions
    is_cut: bool = False


def _messages(user: User, wanted: Wanted) -> _Scope:
    conditions = [Message.user_id == user.id, *_days(Message.received_at, wanted)]
    narrowing: Conditions = []
    if wanted.text:
        own = _numbers_like(user, wanted.text)
        if own and sum(character.isdigit() for character in wanted.text) >= NUMBER_DIGITS:
            conditions.append(Message.digits.in_(own))
        else:
            narrowing.append(_holds(wanted.text, wanted.reads_texts))
    if wanted.state:
        has_delivery = exists().where(Delivery.message_id == Message.id)
        in_state = has_delivery.where(Delivery.state == wanted.state)
        narrowing.append(~has_delivery if wanted.state == NO_WEBHOOK else in_state)
    return _narrowed(Message.received_at, conditions, narrowing)


def _numbers(user: User, wanted: Wanted) -> _Scope:
    of_user = [PhoneNumber.user_id == user.id]
    if wanted.text:
        named = PhoneNumber.digits.in_(_numbers_like(user, wanted.text))
        rows = db.session.execute(select(PhoneNumber.id, PhoneNumber.user_id).where(named))
        # Without the user's id, by which a database would read through all of their numbers
        of_user = [PhoneNumber.id.in_([row.id for row in rows if row.user_id == user.id])]
    conditions = [*of_user, _SHOWN, *_days(PhoneNumber.requested_at, wanted)]
    narrowing = [_OF_NUMBER[wanted.state]] if wanted.state in _OF_NUMBER else []
    return _narrowed(PhoneNumber.requested_at, conditions, narrowing)


def _narrowed(
    time: InstrumentedAttribute[Any], conditions: Conditions, narrowing: Conditions
) -> _Scope:
    """With the conditions that no index answers, for the newest BOUND rows alone."""
    if not narrowing:
        return _Scope(conditions)
    newest = select(time).where(*conditions).order_by(time.desc(), time.class_.id.desc())
    floor = db.session.scalar(newest.offset(BOUND).limit(1))
    is_recent = [] if floor is None else [time > floor]
    return _Scope(conditions + is_recent + narrowing, floor is not None)


def _page(
    time: InstrumentedAttribute[Any], user: User, scope: _Scope, wanted: Wanted
) -> tuple[list[int], Found]:
    """(the ids of one page, the Found without its rows)."""
    model, conditions = time.class_, scope.conditions
    page = Found([], 0, False, count(*conditions), scope.is_cut)
    query = select(model.id).where(*conditions)
    if cursor := wanted.before or wanted.after:
        of_user = (model.id == cursor) & (model.user_id == user.id)
        at = db.session.scalar(select(time).where(of_user))
        if at is None:
            raise NotFound
        is_newer = (time >= at) & or_(time > at, model.id > cursor)
        newer = count(*conditions, is_newer)
        if wanted.before:
            query = query.where((time <= at) & or_(time < at, model.id < cursor))
            page = page._replace(newer=newer + 1)
        elif newer > PAGE:  # else it is the first page
            just_newer = query.where(is_newer).order_by(time, model.id).limit(PAGE)
            ids = list(db.session.scalars(just_newer))[::-1]
            return ids, page._replace(newer=newer - PAGE, has_older=True)
    newest = query.order_by(time.desc(), model.id.desc()).limit(PAGE + 1)
    ids = list(db.session.scalars(newest))
    return ids[:PAGE], page._replace(has_older=len(ids) > PAGE)


def _days(time: InstrumentedAttribute[Any], wanted: Wanted) -> Conditions:
    conditions: Conditions = []
    if wanted.since:
        conditions.append(time >= datetime.combine(wanted.since, clock(), UTC))
    if wanted.until:
        conditions.append(time < datetime.combine(wanted.until, clock(), UTC) + timedelta(days=1))
    return conditions


def _holds(text: str, reads_texts: bool) -> ColumnElement[bool]:
    """The condition of a message that has `text` in it."""
    columns = [Message.sender, Message.provider, Message.digits]
    columns += [Message.sms_text, Message.otp_code] if reads_texts else []
    return or_(*(column.contains(text.strip(), autoescape=True) for column in columns))


def _numbers_like(user: User, text: str) -> set[str]:
    """The digits of the user's numbers that `text` names, in full or by a part of at least four."""
    try:
        digits = phone_digits(text)
    except ValidationError:
        return set()
    if history.has_held(user, digits):
        return {digits}
    newest = select(PhoneNumber.digits).where(PhoneNumber.user_id == user.id)
    newest = newest.order_by(PhoneNumber.requested_at.desc(), PhoneNumber.id.desc()).limit(BOUND)
    recent = newest.subquery()
    part = recent.c.digits.contains(digits.lstrip("0"))
    return set(db.session.scalars(select(recent.c.digits).where(part).distinct().limit(100)))
