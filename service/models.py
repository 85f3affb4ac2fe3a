"""The records: who may ask, who got which number, which SMS came, what became of it."""

import contextlib
import hashlib
import random
import secrets
import sqlite3
import threading
import time
from datetime import UTC, date, datetime
from functools import cache

import pymysql
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    BigInteger,
    Date,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    bindparam,
    event,
    select,
)
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.orm.attributes import set_committed_value

from service.errors import InvalidApiKey, InvalidIngestKey

NUMBER_FORMATS = ("full", "national", "remove_plus")
SUMMARY_SHARDS = 16


class Base(DeclarativeBase):
    # Named constraints, so that a migration can drop them on every engine
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# Rows are read once and used after the commit: expiring them would reopen a transaction.
# Parameters are hidden from errors, which end in the log.
db = SQLAlchemy(
    model_class=Base,
    session_options={"expire_on_commit": False},
    engine_options={"hide_parameters": True},
)
migrate = Migrate()


class UTCDateTime(TypeDecorator):
    """An aware UTC time, with microseconds on every engine."""

    impl = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value, dialect):
        return value and value.replace(tzinfo=UTC)


# SQLite only numbers INTEGER keys by itself
ID = BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
# Bytes compared as bytes: hashes and ids of others, which differ in case
ASCII = String(64).with_variant(
    mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)


def utcnow():
    return datetime.now(UTC)


def new_key(prefix):
    """A fresh random key; the prefix tells people and secret scanners what it is."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def sha256(*parts):
    """Hex SHA-256 of text parts, none of which can be mistaken for another's end."""
    encoded = [part.encode("utf-8", "replace") for part in parts]
    head = b"" if len(encoded) == 1 else b"".join(b"%d:" % len(part) for part in encoded)
    return hashlib.sha256(head + b"".join(encoded)).hexdigest()


class User(db.Model):
    """One API caller; `active` and `approved` must both hold for the key to work."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    key_hash: Mapped[str] = mapped_column(ASCII, unique=True)
    active: Mapped[bool] = mapped_column(default=True)
    approved: Mapped[bool] = mapped_column(default=True)
    manager_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    number_format: Mapped[str | None] = mapped_column(String(16))
    daily_limit: Mapped[int | None]
    webhook_url: Mapped[str | None] = mapped_column(String(2048))
    # Sealed (see secretbox); the old one signs too until its time is over
    webhook_secret: Mapped[str] = mapped_column(String(512))
    webhook_old_secret: Mapped[str | None] = mapped_column(String(512))
    webhook_old_secret_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # The endpoint's circuit: open until then, after so many failures in a row
    webhook_failures: Mapped[int] = mapped_column(default=0, server_default="0")
    webhook_open_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # The receiver answered 410 Gone; nothing is sent until the user sets the URL again
    webhook_disabled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)

    manager: Mapped["User | None"] = relationship(remote_side=[id], lazy="raise")

    @classmethod
    def locked(cls, user_id):
        """The user as the database has it now; nobody else changes it before the commit."""
        return db.session.get(cls, user_id, populate_existing=True, with_for_update=True)

    @property
    def may_call(self):
        return self.active and self.approved

    @classmethod
    def by_api_key(cls, key):
        """The user who holds `key` and may call; raises InvalidApiKey."""
        user = db.session.scalar(_USER, {"key_hash": sha256(key)})
        if user is None or not user.may_call:
            raise InvalidApiKey
        return user


# Statements of every call are built once: that costs more than running them
_USER = select(User).where(User.key_hash == bindparam("key_hash"))


class Provider(db.Model):
    """An SMS gateway that may post to /api/ingest/{ingest_key}."""

    __tablename__ = "providers"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    format: Mapped[str] = mapped_column(String(32))
    key_hash: Mapped[str] = mapped_column(ASCII, unique=True)
    secret: Mapped[str | None] = mapped_column(String(512))  # sealed
    # The number that the gateway holds, for one that does not tell; digits
    number: Mapped[str | None] = mapped_column(String(20))
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)

    @classmethod
    def by_ingest_key(cls, key):
        """The provider who holds `key` and is not disabled; raises InvalidIngestKey."""
        provider = db.session.scalar(_PROVIDER, {"key_hash": sha256(key)})
        if provider is None or not provider.active:
            raise InvalidIngestKey
        return provider


_PROVIDER = select(Provider).where(Provider.key_hash == bindparam("key_hash"))


class Operator(db.Model):
    """A mobile operator as the main server last described it; `id` is the main server's."""

    __tablename__ = "operators"

    id: Mapped[int] = mapped_column(ID, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(255))
    country_id: Mapped[int | None]
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, onupdate=utcnow)


class PhoneNumber(db.Model):
    """One assignment of a number to a user; a re-assigned number has several rows.

    The row is made before the main server is asked (`state` requested), which reserves the
    user's limit and the Idempotency-Key. It becomes `assigned` with the number; it is deleted
    when the main server said no; it becomes `unknown` when the main server may have granted
    a number that never reached us.
    """

    __tablename__ = "phone_numbers"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    state: Mapped[str] = mapped_column(String(16), default="requested")
    digits: Mapped[str | None] = mapped_column(String(20))
    country_id: Mapped[int]
    operator_id: Mapped[int | None]
    phone_code: Mapped[str | None] = mapped_column(String(8))
    idempotency_hash: Mapped[str | None] = mapped_column(ASCII)
    requested_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    assigned_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # Kept when the messages are purged: numbers that never got one show misuse
    first_sms_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (
        Index(None, "digits", "assigned_at"),
        Index(None, "user_id", "state", "id"),
        UniqueConstraint("user_id", "idempotency_hash"),
    )

    @classmethod
    def holding(cls, digits, at):
        """The assignment of `digits` in force at the time `at`, and its user; or two None."""
        row = db.session.execute(_HOLDING, {"digits": digits, "at": at}).first()
        return row or (None, None)


_HOLDING = (
    select(PhoneNumber, User)
    .join(User, User.id == PhoneNumber.user_id)
    .where(
        PhoneNumber.digits == bindparam("digits"),
        PhoneNumber.state == "assigned",
        PhoneNumber.assigned_at <= bindparam("at"),
    )
    .order_by(PhoneNumber.assigned_at.desc(), PhoneNumber.id.desc())
    .limit(1)
)


class Message(db.Model):
    """One SMS; `phone_number_id` is None while no user held its number (unmatched)."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    phone_number_id: Mapped[int | None] = mapped_column(ForeignKey("phone_numbers.id"))
    # The provider's name at that time; the main server has no row of its own
    provider: Mapped[str] = mapped_column(String(64))
    digits: Mapped[str] = mapped_column(String(20))
    sms_text: Mapped[str] = mapped_column(
        Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
    )
    otp_code: Mapped[str | None] = mapped_column(String(32))
    # Which rule of `otp` decided on the code; "given" when the provider sent it along
    otp_rule: Mapped[str | None] = mapped_column(String(32))
    # What makes it a duplicate; None once its 10 minutes without a message id are over
    dedupe_key: Mapped[str | None] = mapped_column(ASCII, unique=True)
    received_at: Mapped[datetime] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)

    deliveries: Mapped[list["Delivery"]] = relationship(lazy="raise")

    @property
    def webhook(self):
        """The state of its delivery; `none` when it fires none."""
        return self.deliveries[-1].state if self.deliveries else "none"

    __table_args__ = (Index(None, "user_id", "id"), Index(None, "user_id", "digits", "id"))


class Delivery(db.Model):
    """One webhook on its way to a user: `pending` until `delivered`, or `dead` after the last try.

    `lease` names who is trying it now, until `leased_until`; only its holder may write the
    outcome, so a crash frees the delivery when the lease runs out.
    """

    __tablename__ = "deliveries"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ASCII, unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    message_id: Mapped[int | None] = mapped_column(ForeignKey("messages.id"))
    body: Mapped[bytes] = mapped_column(
        LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    )
    state: Mapped[str] = mapped_column(String(16), default="pending")
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    lease: Mapped[str | None] = mapped_column(ASCII)
    leased_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # What the last try came to: "200", a word for why there was no status, or for why no try
    last_result: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    delivered_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    message: Mapped["Message | None"] = relationship(lazy="raise", viewonly=True)
    tries: Mapped[list["Attempt"]] = relationship(lazy="raise", order_by="Attempt.id")

    __table_args__ = (
        Index(None, "state", "next_attempt_at"),
        Index(None, "user_id", "state"),
        Index(None, "message_id"),
    )


class Attempt(db.Model):
    """One try of a delivery: when, how long, what came of it."""

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"))
    # ingest, worker, redelivery or test
    trigger: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime] = mapped_column(UTCDateTime)
    ms: Mapped[int]
    result: Mapped[str] = mapped_column(String(64))
    # The first kilobyte of what the receiver said: for its owner's eyes only
    answer: Mapped[str | None] = mapped_column(Text)
    next_attempt_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (Index(None, "delivery_id"), Index(None, "started_at"))


class _Counters:
    # Calls that were asked of the main server; `numbers` are those that got one
    requests: Mapped[int] = mapped_column(default=0)
    numbers: Mapped[int] = mapped_column(default=0)
    sms: Mapped[int] = mapped_column(default=0)
    otps: Mapped[int] = mapped_column(default=0)
    webhooks_delivered: Mapped[int] = mapped_column(default=0)


class UserSummary(_Counters, db.Model):
    """A user's counts of one UTC day."""

    __tablename__ = "user_summaries"

    user_id: Mapped[int] = mapped_column(
        ForeignKey("users.id"), primary_key=True, autoincrement=False
    )
    day: Mapped[date] = mapped_column(Date, primary_key=True)


class SystemSummary(_Counters, db.Model):
    """The deployment's counts of one UTC day: the sum over the day's shards.

    A writer takes a shard at random, so that calls do not queue on one row.
    """

    __tablename__ = "system_summaries"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    unmatched: Mapped[int] = mapped_column(default=0)


COUNTERS = ("requests", "numbers", "sms", "otps", "webhooks_delivered")


def count(user_id, at, **steps):
    """Add `steps` (counter name: amount) to the user's and the system's summary of `at`'s day.

    Runs inside the caller's transaction. `user_id` None counts for the system alone.
    """
    day = at.astimezone(UTC).date()
    if user_id is not None:
        _add(UserSummary, {"user_id": user_id, "day": day}, steps)
    _add(SystemSummary, {"day": day, "shard": random.randrange(SUMMARY_SHARDS)}, steps)


def _add(model, key, steps):
    """Add to a summary row, made where it is missing: exact under concurrency."""
    statement = _upsert(model, tuple(key), tuple(steps), _dialect(), add=True)
    execute(statement, _zeros(model) | key | steps)


def upsert(model, key, values):
    """Insert the row `key | values`; where `key` is there already, give it `values`."""
    execute(_upsert(model, tuple(key), tuple(values), _dialect(), add=False), key | values)


# What is the same for each call is built once: that costs more than running it


@cache
def _zeros(model):
    return dict.fromkeys(model.__table__.c.keys(), 0)


@cache
def _upsert(model, key, names, dialect, add):
    table, on_sqlite = model.__table__, dialect == "sqlite"
    if on_sqlite:
        insert = sqlite.insert(table)
        new = insert.excluded
    else:
        insert = mysql.insert(table)
        new = insert.inserted
    changes = {name: table.c[name] + new[name] if add else new[name] for name in names}
    if on_sqlite:
        return insert.on_conflict_do_update(index_elements=key, set_=changes)
    return insert.on_duplicate_key_update(changes)


@cache
def _insert(table):
    return table.insert()


def store(row):
    """Insert a new row at once and give it its id, past the ORM's unit of work, which would be a
    fifth of a call. `row` does not join the session."""
    table, values = row.__table__, row.__dict__.copy()
    del values["_sa_instance_state"]
    set_committed_value(row, "id", execute(_insert(table), values).inserted_primary_key[0])


def execute(statement, values):
    """Run a statement on tables in the transaction of transact(), past the ORM."""
    return _writing.connection.execute(statement, values)


def _dialect():
    return _writing.connection.dialect.name


# --- transactions -------------------------------------------------------------------------

# MySQL: deadlock, lock wait timeout, shutdown, cannot connect, server gone, lost connection,
# lost while reading, too many connections; Galera: node not ready
_PASSING_MYSQL = {1213, 1205, 1053, 2003, 2006, 2013, 2055, 1040, 1047}
_GALERA_NOT_READY = 1047
# Seconds for which a transaction is tried again: a database server restarts in fewer
_PATIENCE = 10
# For how long a connection that was used is taken to be alive
_TRUSTED_SECONDS = 1
_SQLITE_BUSY_SECONDS = 15
# SQLite lets whoever asks at the right moment write next; threads of one process take turns
_sqlite_turn = threading.RLock()
# `connection`: that of the transaction which transact() runs in this thread
_writing = threading.local()


def transact(work, patience=_PATIENCE):
    """Run `work()` in a writing transaction, commit, and return what it returned.

    A deadlock, a lock timeout, a lost connection or a busy SQLite file runs the whole of it
    again, for `patience` seconds: `work` must do nothing but use the database. On SQLite an
    open read transaction is ended first, since it cannot become a writing one; on MySQL `work`
    goes on in it, and sees what others have committed since.
    """
    on_sqlite = db.session.get_bind().dialect.name == "sqlite"
    options = {"writes": True} if on_sqlite else None
    give_up = time.monotonic() + patience
    pause = 0.02
    while True:
        try:
            if on_sqlite:
                release()  # before the wait for the turn: who waits holds no connection
            with _sqlite_turn if on_sqlite else contextlib.nullcontext():
                _writing.connection = db.session.connection(execution_options=options)
                result = work()
                db.session.commit()
            return result
        except DBAPIError as e:
            db.session.rollback()
            if time.monotonic() > give_up or not _passing(e):
                raise
        except BaseException:
            db.session.rollback()
            raise
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 1)


def release():
    """Give the database connection back before a call or a wait outside."""
    if db.session().in_transaction():
        db.session.commit()


def _code(error):
    return next(iter(getattr(error, "args", ())), None)


def _passing(error):
    code = _code(error.orig)
    return error.connection_invalidated or code in _PASSING_MYSQL or "locked" in str(error.orig)


def set_up_mysql(engine, hosts):
    """Connect to the first of `hosts` ((name, port), …) that is fit, from the last one that was.

    On a Galera cluster every transaction sees what was committed on other nodes before; a
    node that has lost the others is left for the next one.
    """
    hosts = list(hosts)

    @event.listens_for(engine, "do_connect")
    def _connect(dialect, _record, args, params):
        for last in [False] * (len(hosts) - 1) + [True]:
            name, port = hosts[0]
            try:
                return _set_up_galera(
                    dialect.connect(*args, **params | {"host": name, "port": port})
                )
            except dialect.loaded_dbapi.OperationalError:
                hosts.append(hosts.pop(0))
                if last:
                    raise

    @event.listens_for(engine, "checkin")
    def _note_use(_connection, record):
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ping(connection, record, _proxy):
        # A ping each time would be a third of all round trips; no server restarts in a second
        if time.monotonic() - record.info.get("used", 0) > _TRUSTED_SECONDS:
            try:
                connection.ping(reconnect=False)
            except pymysql.err.Error as e:
                raise DisconnectionError from e

    @event.listens_for(engine, "handle_error")
    def _leave_lost_node(context):
        if _code(context.original_exception) == _GALERA_NOT_READY:
            context.is_disconnect = True


def _set_up_galera(connection):
    with connection.cursor() as cursor:
        if not _is_on(cursor, "VARIABLES LIKE 'wsrep_on'"):
            return connection
        if not _is_on(cursor, "STATUS LIKE 'wsrep_ready'"):
            connection.close()
            raise pymysql.err.OperationalError(_GALERA_NOT_READY, "the node is not ready")
        cursor.execute("SET SESSION wsrep_sync_wait=1")
    return connection


def _is_on(cursor, what):
    cursor.execute(f"SHOW {what}")
    return (cursor.fetchone() or ("", "OFF"))[1] == "ON"


def set_up_sqlite(engine):
    """Make SQLite safe for many threads and processes.

    Writing transactions take the write lock when they begin, so that none is lost or refused
    half-way; synchronous=FULL, since what was answered must outlive a power cut.
    """

    @event.listens_for(engine, "connect")
    def _connect(connection, _record):
        connection.isolation_level = None  # the driver must not emit BEGIN itself
        connection.execute(f"PRAGMA busy_timeout={_SQLITE_BUSY_SECONDS * 1000}")
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection):
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _use_wal(connection):
    """Switch the file to WAL, which it then stays: an upgrade of the lock, for which SQLite does
    not wait as busy_timeout says (https://sqlite.org/c3ref/busy_handler.html)."""
    give_up = time.monotonic() + _SQLITE_BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)
