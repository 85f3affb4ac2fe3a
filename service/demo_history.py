"""`flask demo --days`: weeks of made-up history, as if the demo had been in use."""

import random
import secrets
from datetime import datetime, timedelta
from typing import Any

from service import users
from service.database.columns import utcnow
from service.database.models import (
    Attempt,
    Delivery,
    DeliveryState,
    Message,
    NumberState,
    Operator,
    PhoneNumber,
    Provider,
    Reason,
    Result,
    Trigger,
    Unmatched,
    User,
)
from service.database.writing import Transaction, transact
from service.keys import new_key, sha256
from service.sandbox import COUNTRIES, operators, random_digits
from service.sms import otp
from service.webhooks import queue
from service.webhooks.outcomes import RETRY_SECONDS

# Name and settings; those without a webhook read their SMS back. None but the demo's user has a
# key that is shown.
PEOPLE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Shop QA", {"daily_limit": 200}),
    ("Payments QA", {"number_format": "remove_plus"}),
    ("Partner integration", {"number_format": "national"}),
    ("Nightly tests", {"webhook_url": None}),
    ("Left in spring", {"active": False}),
    ("Waits for approval", {"approved": False}),
)
GATEWAYS = (("modem-berlin", "generic"), ("smsc", "kannel"))
# The main server sends most
SENT_BY = ("sandbox", "sandbox", "sandbox", *(name for name, _ in GATEWAYS))
TEXTS = (
    "Your code is {code}",
    "{code} is your Example verification code. Do not share it.",
    "G-{code} is your verification code.",
    "Use {code} to log in. It expires in 10 minutes.",
    "Ihr Bestätigungscode lautet {code}",
    "Votre code de validation est {code}",
)
TEXTS_WITHOUT = (
    "Welcome to Example! Your account is ready.",
    "Your parcel arrives today between 2 and 4 pm.",
    "Reply STOP to end these messages.",
)
NUMBERS_A_DAY = {False: 40, True: 12}  # True: at the weekend
# How often an attempt fails, and of how many in 100 deliveries
FAILURE_RATES, OF_DELIVERIES = (0.01, 0.6, 1.0), (92, 6, 2)
FAILURES = ("500", "502", "503", Reason.TIMEOUT, Reason.CONNECT)
# What came for a number is in by then
AGE = timedelta(minutes=15)


def add(days: int, demo_user: int) -> None:
    """Store `days` days until now, each in a transaction, in the database of the current app, in
    which there is nobody but `demo_user`."""
    now = utcnow()
    callers = transact(_add_people, demo_user, now - timedelta(days=days))
    for n in reversed(range(days)):
        transact(_add_day, callers, now - timedelta(days=n) - AGE, now)


def _add_people(tx: Transaction, demo_user: int, at: datetime) -> list[User]:
    """The people, gateways and operators; returns the users who may call.

    Their webhooks go to the demo's receiver, which knows the secret of the demo's user.
    """
    demo = tx.lock_user(demo_user)
    demo.created_at = at
    everybody = [demo]
    for name, settings in PEOPLE:
        user, *_ = users.create(tx, name)
        like_demo = {"webhook_url": demo.webhook_url, "webhook_secret": demo.webhook_secret}
        for column, value in (like_demo | {"created_at": at} | settings).items():
            setattr(user, column, value)
        everybody.append(user)
    everybody[-1].manager_id = everybody[1].id
    for name, kind in GATEWAYS:
        key = sha256(new_key("ing"))
        tx.store(Provider(name=name, format=kind, key_hash=key, created_at=at))
    for operator in operators():
        if operator["country_id"]:
            tx.store(Operator(**operator, updated_at=at))
    return [user for user in everybody if user.may_call]


def _add_day(tx: Transaction, callers: list[User], end: datetime, now: datetime) -> None:
    """The 24 hours before `end`."""
    count = NUMBERS_A_DAY[end.weekday() >= 5]
    for ago in sorted((random.random() for _ in range(count)), reverse=True):
        at, user = end - timedelta(days=ago), random.choice(callers)
        waits = sorted(random.uniform(5, 600) for _ in range(random.choice((0, 1, 1, 1, 1, 2))))
        arrivals = [at + timedelta(seconds=wait) for wait in waits]
        number = _add_number(tx, user, at, next(iter(arrivals), None))
        for at in arrivals if number.digits else ():
            message = _add_sms(tx, at, number.digits or "", number)
            if message.otp_code and user.webhook_url:
                _add_delivery(tx, message, now)
    _add_sms(tx, end, random_digits(random.choice([*COUNTRIES])))


def _add_number(
    tx: Transaction, user: User, at: datetime, first_sms_at: datetime | None
) -> PhoneNumber:
    """A number granted; one in a hundred without digits, since the answer never came."""
    country_id = random.choice([*COUNTRIES])
    _, phone_code, _, _, names = COUNTRIES[country_id]
    number = PhoneNumber(
        user_id=user.id, state=NumberState.UNKNOWN, country_id=country_id,
        operator_id=100 * country_id + random.randrange(len(names)) + 1, requested_at=at,
    )  # fmt: skip
    if random.random() > 0.01:
        number.state, number.assigned_at = NumberState.ASSIGNED, at
        number.digits, number.phone_code = random_digits(country_id), phone_code
        number.first_sms_at = first_sms_at
    tx.count(user.id, at, requests=1, numbers=int(number.digits is not None))
    return tx.store(number)


def _add_sms(
    tx: Transaction, at: datetime, digits: str, number: PhoneNumber | None = None
) -> Message:
    """An SMS to a user's number, or to one that nobody has."""
    text = random.choice(TEXTS if random.random() < 0.85 else TEXTS_WITHOUT)
    text = text.format(code=f"{random.randrange(10**6):06}")
    found = otp.extract(text)
    counts = {"sms": 1, "otps": int(found is not None)} | ({} if number else {"unmatched": 1})
    user_id = number.user_id if number else None
    tx.count(user_id, at, **counts)
    return tx.store(
        Message(
            user_id=user_id, phone_number_id=number and number.id,
            unmatched=None if number else Unmatched.UNKNOWN_NUMBER, digits=digits,
            provider=random.choice(SENT_BY), sender="Example", sms_text=text,
            otp_code=found and found.code, otp_rule=found and found.rule,
            received_at=at, created_at=at,
        )
    )  # fmt: skip


def _add_delivery(tx: Transaction, message: Message, now: datetime) -> None:
    tries = _tries(message.created_at, now)
    last = tries[-1]
    delivered_at, state = None, DeliveryState.DEAD
    if Result(last.result).is_success:
        delivered_at = last.started_at + timedelta(milliseconds=last.ms)
        state = DeliveryState.DELIVERED
        tx.count(message.user_id, delivered_at, webhooks_delivered=1)
    elif last.next_attempt_at:
        state = DeliveryState.PENDING
    delivery = tx.store(
        Delivery(
            webhook_id=f"msg_{secrets.token_urlsafe(18)}", user_id=message.user_id,
            message_id=message.id, body=queue.payload(message), created_at=message.created_at,
            state=state, attempts=len(tries), last_result=last.result,
            next_attempt_at=last.next_attempt_at, delivered_at=delivered_at,
        )
    )  # fmt: skip
    for attempt in tries:
        attempt.delivery_id = delivery.id
        tx.store(attempt)


def _tries(at: datetime, now: datetime) -> list[Attempt]:
    """Attempts from `at` on, until one arrives, the schedule ends, or the next is still to come."""
    [rate] = random.choices(FAILURE_RATES, OF_DELIVERIES)
    tries: list[Attempt] = []
    for pause in (*RETRY_SECONDS, None):
        failed = random.random() < rate
        result = random.choice(FAILURES) if failed else "204"
        ms = 5000 if result == Reason.TIMEOUT else random.randrange(20, 400)
        next_at = at + timedelta(seconds=pause) if failed and pause else None
        tries.append(
            Attempt(
                trigger=Trigger.WORKER if tries else Trigger.INGEST, started_at=at, ms=ms,
                result=result, next_attempt_at=next_at,
            )
        )  # fmt: skip
        if next_at is None or next_at > now:
            break
        at = next_at
    return tries
