"""The records and their enums: users, providers, numbers, SMS, deliveries, counts."""

from datetime import date, datetime
from enum import StrEnum

from sqlalchemy import Computed, Date, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.database.columns import ASCII, ID, LONG_BYTES, LONG_TEXT, UTCDateTime, utcnow
from service.database.engine import Base


class NumberState(StrEnum):
    """The progress of an assignment."""

    REQUESTED = "requested"
    ASSIGNED = "assigned"
    UNKNOWN = "unknown"  # the main server may have granted a number that never reached us
    REFUSED = "refused"  # an unknown one, of which the operator found that it was not granted


class DeliveryState(StrEnum):
    """The state of a webhook's delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Unmatched(StrEnum):
    """Why an SMS is nobody's."""

    UNKNOWN_NUMBER = "unknown_number"
    UNKNOWN_RECIPIENT = "unknown_recipient"  # the gateway does not tell whom it is for
    ASSIGNMENT_CHANGED = "assignment_changed"  # it may be for somebody who held the number before
    USER_REMOVED = "user_removed"


# The webhook state that users see for a message that fires none
NO_WEBHOOK = "none"
NATIONAL = Computed("substr(digits, length(phone_code) + 1)", persisted=False)


class Trigger(StrEnum):
    """What caused an attempt."""

    INGEST = "ingest"
    WORKER = "worker"
    REDELIVERY = "redelivery"
    TEST = "test"

    @property
    def heeds_circuit(self) -> bool:
        """Whether it waits while the endpoint's circuit is open; an attempt by hand does not."""
        return self in (Trigger.INGEST, Trigger.WORKER)


class Reason(StrEnum):
    """Why a webhook got no HTTP status."""

    TIMEOUT = "timeout"
    DNS = "dns"
    CONNECT = "connect"
    CONNECTION = "connection"
    TLS = "tls"
    URL = "url"
    FORBIDDEN = "forbidden"
    SECRET_UNREADABLE = "secret_unreadable"
    # No request was made, and a retry would not help
    DISABLED = "disabled"
    NO_URL = "no_url"
    USER_INACTIVE = "user_inactive"
    # Put off: no request was made yet
    CIRCUIT_OPEN = "circuit_open"
    BUSY = "busy"


class Result(str):
    """The result of an attempt: an HTTP status such as "200", or a Reason."""

    __slots__ = ()

    @property
    def is_status(self) -> bool:
        return self.isdecimal()

    @property
    def is_success(self) -> bool:
        return len(self) == 3 and self.startswith("2")

    @property
    def is_gone(self) -> bool:
        """The receiver wants no more (410 Gone; Standard Webhooks, "Consumer responses")."""
        return self == "410"

    @property
    def called_nobody(self) -> bool:
        """There was no endpoint to call, so the result says nothing about its health."""
        return self in (Reason.DISABLED, Reason.NO_URL, Reason.USER_INACTIVE)


class User(Base):
    """One API caller; the key works only while the user is `active` and `approved`."""

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
    # Sealed (see keys); after a rotation the old one also signs for a while
    webhook_secret: Mapped[str] = mapped_column(String(512))
    webhook_old_secret: Mapped[str | None] = mapped_column(String(512))
    webhook_old_secret_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # The endpoint's circuit breaker: consecutive failures, and until when it is open
    webhook_failures: Mapped[int] = mapped_column(default=0, server_default="0")
    webhook_open_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # The receiver answered 410 Gone; nothing is sent until the user sets the URL again
    webhook_disabled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # A browser session holds the version of its start, and ends when this one is raised
    session_version: Mapped[int] = mapped_column(default=0, server_default="0")
    # Their key, webhook and messages are gone; their numbers and counts stay as history
    removed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)

    @hybrid_property
    def may_call(self) -> bool:
        return self.active & self.approved


class EndedSession(Base):
    """A browser session that was logged out, kept until it would have expired: a copy of its cookie
    is worth nothing."""

    __tablename__ = "ended_sessions"

    id_hash: Mapped[str] = mapped_column(ASCII, primary_key=True)
    ended_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, index=True)


class Provider(Base):
    """An SMS gateway that may post to /api/ingest/{ingest_key}."""

    __tablename__ = "providers"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    format: Mapped[str] = mapped_column(String(32))
    key_hash: Mapped[str] = mapped_column(ASCII, unique=True)
    secret: Mapped[str | None] = mapped_column(String(512))  # sealed
    # JSON of the rest of its `sms.gateways.gateway.Options`
    options: Mapped[str | None] = mapped_column(Text)
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Operator(Base):
    """A mobile operator as the main server last described it; `id` is the main server's."""

    __tablename__ = "operators"

    id: Mapped[int] = mapped_column(ID, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(255))
    country_id: Mapped[int | None]
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, onupdate=utcnow)


class PhoneNumber(Base):
    """One assignment of a number to a user; a re-assigned number has several rows.

    The row is created before the main server is asked (`state` requested), which reserves the
    Idempotency-Key and a share of the user's limit. It becomes `assigned` with the number; it is
    deleted if the main server refuses; it becomes `unknown` if the main server may have granted
    a number that never reached us.
    """

    __tablename__ = "phone_numbers"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    state: Mapped[str] = mapped_column(String(16), default=NumberState.REQUESTED)
    digits: Mapped[str | None] = mapped_column(String(20))
    country_id: Mapped[int]
    operator_id: Mapped[int | None]
    phone_code: Mapped[str | None] = mapped_column(String(8))
    national: Mapped[str | None] = mapped_column(String(20), NATIONAL)
    idempotency_hash: Mapped[str | None] = mapped_column(ASCII)
    requested_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    assigned_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # Kept when the messages are purged: numbers that never get an SMS indicate misuse
    first_sms_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (
        Index(None, "digits", "assigned_at"),
        Index(None, "user_id", "state", "id"),
        Index(None, "user_id", "requested_at", "id"),
        Index(None, "user_id", "state", "national"),
        UniqueConstraint("user_id", "idempotency_hash"),
    )


class Message(Base):
    """One SMS; `phone_number_id` is None if no user held its number (unmatched)."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    phone_number_id: Mapped[int | None] = mapped_column(ForeignKey("phone_numbers.id"))
    # The provider's name at that time; the main server has no row in `providers`
    provider: Mapped[str] = mapped_column(String(64))
    # Empty if the gateway did not tell for certain whom it is for
    digits: Mapped[str] = mapped_column(String(20))
    # Who sent it, as the gateway tells it
    sender: Mapped[str | None] = mapped_column(String(64))
    # Why it is nobody's: one of Unmatched
    unmatched: Mapped[str | None] = mapped_column(String(32))
    sms_text: Mapped[str] = mapped_column(LONG_TEXT)
    otp_code: Mapped[str | None] = mapped_column(String(32))
    # The rule of `otp` that found the code; "given" if the provider sent the code
    otp_rule: Mapped[str | None] = mapped_column(String(32))
    # SMS with the same key are duplicates; None once the duplicate window of an SMS without id ends
    dedupe_key: Mapped[str | None] = mapped_column(ASCII, unique=True)
    received_at: Mapped[datetime] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)

    deliveries: Mapped[list["Delivery"]] = relationship(lazy="raise")

    @property
    def webhook(self) -> str:
        """The state of its delivery; `none` if it has none."""
        return self.deliveries[-1].state if self.deliveries else NO_WEBHOOK

    __table_args__ = (
        Index(None, "user_id", "id"),
        Index(None, "user_id", "digits", "id"),
        Index(None, "user_id", "received_at", "id"),
        Index(None, "user_id", "digits", "received_at", "id"),
        Index(None, "digits", "id"),
    )


class SmsPart(Base):
    """A part of a long SMS that waits for the others, which have the same `message_key`."""

    __tablename__ = "sms_parts"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    message_key: Mapped[str] = mapped_column(ASCII)
    number: Mapped[int]
    # The `id` of the `sms.providers.Source`, and JSON of the rest of the `sms.incoming.Sms`
    source: Mapped[str] = mapped_column(String(64))
    sms: Mapped[str] = mapped_column(LONG_TEXT)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)

    __table_args__ = (UniqueConstraint("message_key", "number"), Index(None, "created_at"))


class Delivery(Base):
    """A webhook for a user: `pending` until `delivered`, or `dead` after the last attempt.

    `lease` identifies who is attempting it, until `leased_until`; only its holder may record the
    outcome. After a crash, the lease expires and frees the delivery.
    """

    __tablename__ = "deliveries"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ASCII, unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    message_id: Mapped[int | None] = mapped_column(ForeignKey("messages.id"))
    body: Mapped[bytes] = mapped_column(LONG_BYTES)
    state: Mapped[str] = mapped_column(String(16), default=DeliveryState.PENDING)
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    lease: Mapped[str | None] = mapped_column(ASCII)
    leased_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    # The Result of the last attempt, or the Reason why there was none
    last_result: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    delivered_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    message: Mapped["Message | None"] = relationship(lazy="raise", viewonly=True)
    tries: Mapped[list["Attempt"]] = relationship(lazy="raise", order_by="Attempt.id")

    __table_args__ = (
        Index(None, "state", "user_id", "next_attempt_at"),
        Index(None, "user_id", "created_at", "id"),
        Index(None, "user_id", "state", "created_at", "id"),
        Index(None, "message_id"),
    )


class Attempt(Base):
    """One attempt to deliver: when, how long it took, and its result."""

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"))
    trigger: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime] = mapped_column(UTCDateTime)
    ms: Mapped[int]
    result: Mapped[str] = mapped_column(String(64))
    # The start of the receiver's answer (up to 1,024 characters): shown only to the user
    answer: Mapped[str | None] = mapped_column(Text)
    # Where it was sent
    url: Mapped[str | None] = mapped_column(String(2048))
    next_attempt_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (Index(None, "delivery_id"), Index(None, "started_at"))


class AuditEntry(Base):
    """What somebody changed, or read in the name of another: never a key, a code or a text."""

    __tablename__ = "audit_entries"

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, index=True)
    actor: Mapped[str] = mapped_column(String(16))  # one of `audit.Actor`
    # Of a request
    address: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    # The user whom it is about; who acts, if the actor is a user
    user_id: Mapped[int | None] = mapped_column(ID)
    details: Mapped[str | None] = mapped_column(Text)  # JSON

    __table_args__ = (Index(None, "user_id", "id"),)


class Chore(Base):
    """A task that one of the workers does now and then, such as the daily purge."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    # By the worker that does it now; after a crash, the lease expires
    leased_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    done_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class _Counters:
    # Calls that asked the main server; `numbers` counts those that got a number
    requests: Mapped[int] = mapped_column(default=0)
    numbers: Mapped[int] = mapped_column(default=0)
    sms: Mapped[int] = mapped_column(default=0)
    otps: Mapped[int] = mapped_column(default=0)
    webhooks_delivered: Mapped[int] = mapped_column(default=0)


class UserSummary(_Counters, Base):
    """A user's counts for one UTC day."""

    __tablename__ = "user_summaries"

    user_id: Mapped[int] = mapped_column(
        ForeignKey("users.id"), primary_key=True, autoincrement=False
    )
    day: Mapped[date] = mapped_column(Date, primary_key=True)


class SystemSummary(_Counters, Base):
    """The deployment's counts for one UTC day: the sum over its shards. A writer picks a random
    shard, so that calls do not queue for one row."""

    __tablename__ = "system_summaries"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    unmatched: Mapped[int] = mapped_column(default=0)


COUNTERS = ("requests", "numbers", "sms", "otps", "webhooks_delivered")
