"""The same job in FastAPI, httpx and SQLAlchemy's asyncio: the same records and commits.

Simply written, as a user would: no circuits, retries, total deadlines, guard of addresses or masked
logs. What the service does more counts against the service.
"""

import base64
import hashlib
import json
import os
import random
import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import httpx
from cryptography.fernet import Fernet
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel
from sqlalchemy import event, func, select, update
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from service.database.models import (
    Attempt,
    Delivery,
    Message,
    Operator,
    PhoneNumber,
    Provider,
    SystemSummary,
    User,
    UserSummary,
)
from service.keys import sha256
from service.sms import otp
from service.webhooks import signing
from service.webhooks.queue import payload

MAIN_SERVER = f"{os.environ['MAIN_SERVER_URL']}/api/{{}}/{os.environ['SYSTEM_API_KEY']}"
SEALED_UNDER = hashlib.sha256(b"webhook secrets:" + os.environ["SECRET_KEY"].encode()).digest()

url = make_url(os.environ["DATABASE_URL"])
ON_SQLITE = url.drivername == "sqlite"
if ON_SQLITE:
    engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"))

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection, _):
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "busy_timeout=15000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
        ):  # fmt: skip
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection):
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

else:
    engine = create_async_engine(
        url.set(drivername="mysql+asyncmy", query={}),
        isolation_level="READ COMMITTED", pool_pre_ping=True, pool_recycle=280,
        connect_args={"charset": "utf8mb4"},
    )  # fmt: skip

Session = async_sessionmaker(engine, expire_on_commit=False)
client = httpx.AsyncClient(timeout=10)
fernet = Fernet(base64.urlsafe_b64encode(SEALED_UNDER))
app = FastAPI()
cached = {"data": None, "until": 0}


def now():
    return datetime.now(UTC)


async def writing(session):
    """Begin a transaction that takes SQLite's lock at once."""
    await session.connection(execution_options={"writes": True})


async def user_of(session, key):
    user = await session.scalar(select(User).where(User.key_hash == sha256(key)))
    if not user or not user.active or not user.approved:
        raise HTTPException(401, "Invalid api_key")
    return user


async def upsert(session, model, key, values, changes):
    if ON_SQLITE:
        statement = sqlite.insert(model).values(**key, **values)
        statement = statement.on_conflict_do_update(index_elements=list(key), set_=changes)
    else:
        statement = mysql.insert(model).values(**key, **values).on_duplicate_key_update(**changes)
    await session.execute(statement)


async def count(session, user_id, **steps):
    day = now().date()
    shard = {"day": day, "shard": random.randrange(16)}
    for model, key in ((UserSummary, {"user_id": user_id, "day": day}), (SystemSummary, shard)):
        columns = model.__table__.c
        zeros = {column.name: 0 for column in columns if column.name not in key}
        changes = {name: columns[name] + step for name, step in steps.items()}
        await upsert(session, model, key, zeros | steps, changes)


async def ask(endpoint, **options):
    try:
        answer = await client.get(MAIN_SERVER.format(endpoint), **options)
    except httpx.HTTPError as e:
        raise HTTPException(500, "Unable to get number") from e
    if answer.status_code == 404:
        raise HTTPException(404, "No number received")
    if answer.status_code != 200:
        raise HTTPException(500, "Unable to get number")
    return answer.json()["data"]


@app.get("/api/init/{key}")
async def init(key: str):
    async with Session() as session:
        await user_of(session, key)
    if time.monotonic() > cached["until"]:
        cached.update(data=await ask("init"), until=time.monotonic() + 3600)
    return {"status": "success", "data": cached["data"]}


@app.get("/api/get-number/{key}")
async def get_number(
    key: str,
    country_id: int,
    operator_id: int | None = None,
    number_format: Literal["full", "national", "remove_plus"] | None = None,
    idempotency_key: Annotated[str | None, Header()] = None,
):
    async with Session() as session:
        user = await user_of(session, key)
        if user.manager_id and not (await session.get(User, user.manager_id)).active:
            raise HTTPException(403, "Manager inactive. Contact support.")
    async with Session() as session:
        await writing(session)
        key_hash = sha256(idempotency_key) if idempotency_key else None
        if key_hash:
            same = select(PhoneNumber).where(PhoneNumber.idempotency_hash == key_hash)
            row = await session.scalar(same.where(PhoneNumber.user_id == user.id))
            if row:
                return answer_number(row, number_format or user.number_format)
        row = PhoneNumber(
            user_id=user.id, state="requested", country_id=country_id, operator_id=operator_id,
            idempotency_hash=key_hash, requested_at=now(),
        )  # fmt: skip
        session.add(row)
        await count(session, user.id, requests=1)
        if user.daily_limit is not None:
            today = select(func.count()).where(
                PhoneNumber.user_id == user.id, PhoneNumber.requested_at > now().date()
            )
            if await session.scalar(today) > user.daily_limit:
                raise HTTPException(429, "Daily number limit reached")
        await session.commit()

    params = {"country_id": country_id, "number_format": "full"}
    data = await ask("get-number", params=params)
    async with Session() as session:
        await writing(session)
        row.state, row.digits, row.assigned_at = "assigned", data["phone_number"][1:], now()
        changes = {"state": row.state, "digits": row.digits, "assigned_at": row.assigned_at}
        mine = update(PhoneNumber).where(PhoneNumber.id == row.id)
        await session.execute(mine.values(**changes))
        await count(session, user.id, numbers=1)
        if told := data.get("operator"):
            known = await session.get(Operator, told["id"])
            if not known or (known.name, known.country_id) != (told["name"], told["country_id"]):
                values = {"name": told["name"], "country_id": told["country_id"]}
                values["updated_at"] = now()
                await upsert(session, Operator, {"id": told["id"]}, values, values)
        await session.commit()
    return answer_number(row, number_format or user.number_format)


def answer_number(row, number_format):
    number = row.digits if number_format == "remove_plus" else f"+{row.digits}"
    data = {"phone_number": number, "id": row.id, "country_id": row.country_id}
    return {"status": "success", "data": data | {"operator_id": row.operator_id}}


class Sms(BaseModel):
    to: str
    text: str
    id: str | None = None


@app.post("/api/ingest/{key}")
async def ingest(key: str, sms: Sms):
    digits, at, delivery = sms.to.removeprefix("+"), now(), None
    async with Session() as session:
        by_key = select(Provider).where(Provider.key_hash == sha256(key))
        provider = await session.scalar(by_key)
        if not provider or not provider.active:
            raise HTTPException(401, "Invalid ingest_key")
    async with Session() as session:
        await writing(session)
        dedupe_key = sha256("id", str(provider.id), sms.id or f"{digits} {sms.text}")
        first = select(Message).where(Message.dedupe_key == dedupe_key)
        if message := await session.scalar(first):
            return answer_sms(message, True, "none")
        holding = select(PhoneNumber).where(
            PhoneNumber.digits == digits, PhoneNumber.state == "assigned",
            PhoneNumber.assigned_at <= at,
        )  # fmt: skip
        newest = holding.order_by(PhoneNumber.assigned_at.desc()).limit(1)
        number = await session.scalar(newest)
        code = otp.extract(sms.text)
        message = Message(
            user_id=number and number.user_id, phone_number_id=number and number.id,
            provider=provider.name, digits=digits, sms_text=sms.text, received_at=at,
            otp_code=code and code.code, otp_rule=code and code.rule, dedupe_key=dedupe_key,
        )  # fmt: skip
        session.add(message)
        try:
            await session.flush()
        except IntegrityError as e:
            raise HTTPException(409, "The same SMS came at the same moment") from e
        if number:
            await count(session, number.user_id, sms=1, otps=int(code is not None))
            user = await session.get(User, number.user_id)
            if code and user.webhook_url:
                delivery = Delivery(
                    webhook_id=f"msg_{secrets.token_urlsafe(18)}", user_id=user.id,
                    message_id=message.id, body=payload(message), state="pending",
                    next_attempt_at=at + timedelta(seconds=15),
                )  # fmt: skip
                session.add(delivery)
        await session.commit()
    state = await deliver(user, delivery) if delivery else "none"
    return answer_sms(message, False, state)


async def deliver(user, delivery):
    secret = fernet.decrypt(user.webhook_secret).decode()
    timestamp, started_at, started = int(time.time()), now(), time.monotonic()
    headers = {
        "Content-Type": "application/json",
        "webhook-id": delivery.webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signing.sign(secret, delivery.webhook_id, timestamp, delivery.body),
    }
    answer = ""
    try:
        response = await client.post(user.webhook_url, content=delivery.body, headers=headers)
        result, answer = str(response.status_code), response.text[:1024]
    except httpx.HTTPError as e:
        result = type(e).__name__
    ms = round(1000 * (time.monotonic() - started))
    delivered = result.startswith("2")
    async with Session() as session:
        await writing(session)
        changes = {"attempts": 1, "last_result": result}
        if delivered:
            changes |= {"state": "delivered", "delivered_at": now(), "next_attempt_at": None}
            await count(session, user.id, webhooks_delivered=1)
        mine = update(Delivery).where(Delivery.id == delivery.id)
        await session.execute(mine.values(**changes))
        attempt = Attempt(delivery_id=delivery.id, trigger="ingest", started_at=started_at, ms=ms)
        attempt.result, attempt.answer = result, answer
        session.add(attempt)
        await session.commit()
    print(json.dumps({"event": "webhook_tried", "id": delivery.id, "result": result, "ms": ms}))
    return "delivered" if delivered else "pending"


def answer_sms(message, duplicate, state):
    data = {"id": message.id, "matched": message.phone_number_id is not None}
    data |= {"duplicate": duplicate, "otp_code": message.otp_code, "webhook": state}
    return {"status": "success", "data": data}
