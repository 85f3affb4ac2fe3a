"""The floor: each job on the same stack with nothing around it, as bare as Flask allows."""

from functools import cache

import requests
from flask import Flask, request
from sqlalchemy import select

from config import Config
from service.database.columns import utcnow
from service.database.engine import WRITE, db, set_up_mysql, set_up_sqlite
from service.database.models import Message, PhoneNumber, User
from service.keys import sha256

app = Flask(__name__)
config = Config.from_environment()
app.config.from_object(config)
app.config.from_prefixed_env("BENCH")
db.init_app(app)
with app.app_context():
    # The same durability, the same connections
    if db.engine.dialect.name == "sqlite":
        set_up_sqlite(db.engine)
    else:
        set_up_mysql(db.engine, config.DATABASE_HOSTS)
session = requests.Session()
MAIN_SERVER = f"{config.MAIN_SERVER_URL}/api/{{}}/{config.SYSTEM_API_KEY}"


@cache
def countries():
    return session.get(MAIN_SERVER.format("init"), timeout=10).json()["data"]


def user_of(key):
    return db.session.scalar(select(User).where(User.key_hash == sha256(key)))


def commit(row):
    if db.engine.dialect.name == "sqlite":
        db.session.connection().exec_driver_sql(WRITE)
    db.session.add(row)
    db.session.commit()


@app.get("/api/init/<key>")
def init(key):
    assert user_of(key)
    return {"status": "success", "data": countries()}


@app.get("/api/get-number/<key>")
def get_number(key):
    user = user_of(key)
    db.session.commit()
    country_id = request.args.get("country_id", type=int)
    url = MAIN_SERVER.format("get-number")
    number = session.get(url, params={"country_id": country_id}, timeout=10).json()["data"]
    row = PhoneNumber(
        user_id=user.id, state="assigned", digits=number["phone_number"][1:],
        country_id=country_id, assigned_at=utcnow(),
    )  # fmt: skip
    commit(row)
    return {"status": "success", "data": {"phone_number": f"+{row.digits}", "id": row.id}}


@app.post("/api/ingest/<key>")
def ingest(key):
    sms = request.get_json()
    message = Message(
        provider="gw", digits=sms["to"], sms_text=sms["text"], otp_code="493817",
        received_at=utcnow(),
    )  # fmt: skip
    commit(message)
    data = {"phone_number": f"+{sms['to']}", "otp_code": "493817", "sms_text": sms["text"]}
    body = {"event": "otp_received", "data": data}
    session.post(app.config["HOOK"], json=body, timeout=5).raise_for_status()
    return {"status": "success", "data": {"id": message.id}}
