"""Write transactions: begun, committed, and retried as a whole after a transient error."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, CursorResult, Executable, Insert, Table
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from service.database.engine import WRITE, Base, db, error_code
from service.database.models import SystemSummary, User, UserSummary

SUMMARY_SHARDS = 16
# MySQL: deadlock, lock wait timeout, shutdown, cannot connect, server gone, lost connection,
# connection lost while reading, too many connections; Galera: node not ready
PASSING_MYSQL = {1213, 1205, 1053, 2003, 2006, 2013, 2055, 1040, 1047}
ROW_LOCKS = {1213, 1205}  # of these
DUPLICATE_KEY = 1062  # MySQL
# How many seconds a transaction is retried for: a database server restarts in less
PATIENCE_SECONDS = 10
# SQLite has no fair queue for writers, so the threads of one process take turns
_sqlite_turn = threading.RLock()

P = ParamSpec("P")
T = TypeVar("T")
Record = TypeVar("Record", bound=Base)
Values = Mapping[str, Any]


class Transaction:
    """An open write transaction; its holder may write but must not commit.

    `session` is for the ORM; the methods bypass its unit of work, which takes a fifth of a call.
    """

    def __init__(self, session: Session, connection: Connection) -> None:
        self.session = session
        self._connection = connection

    def execute(
        self, statement: Executable, values: Values | Sequence[Values] | None = None
    ) -> CursorResult[Any]:
        """Run a Core statement, for each of several `values` if so given."""
        return self._connection.execute(statement, values)

    def store(self, row: Record) -> Record:
        """Insert a new row now, set its id and return it; `row` does not join the session."""
        table, values = row.table(), row.__dict__.copy()
        del values["_sa_instance_state"]
        key = self.execute(_insert(table), values).inserted_primary_key
        set_committed_value(row, "id", key and key[0])
        return row

    def upsert(self, model: type[Base], key: dict[str, Any], values: dict[str, Any]) -> None:
        """Insert the row `key | values`; if `key` exists, update its `values`."""
        self.execute(_upsert(model, tuple(key), tuple(values), self._dialect, False), key | values)

    def lock_user(self, user_id: int) -> User:
        """The user as stored now, locked until the commit."""
        return self.session.get_one(User, user_id, populate_existing=True, with_for_update=True)

    def count(self, user_id: int | None, at: datetime, **steps: int) -> None:
        """Add `steps` (counter name: amount) to the user's and the system's summary for `at`'s day.

        If `user_id` is None, counts for the system only. Locks the user's row, which all of their
        calls share: so count last.
        """
        if user_id is not None:
            self._add(UserSummary, "user_id", [{"user_id": user_id} | steps], at)
        self._add_to_system(steps, at)

    def count_delivered(self, webhooks: Mapping[int, int], at: datetime) -> None:
        """Count delivered webhooks, by user, as count() does."""
        # In one order, so that no two transactions wait for each other
        rows = [{"user_id": id, "webhooks_delivered": n} for id, n in sorted(webhooks.items())]
        if rows:
            self._add(UserSummary, "user_id", rows, at)
            self._add_to_system({"webhooks_delivered": sum(webhooks.values())}, at)

    def _add_to_system(self, steps: Mapping[str, int], at: datetime) -> None:
        shard = random.randrange(SUMMARY_SHARDS)
        self._add(SystemSummary, "shard", [{"shard": shard, **steps}], at)

    def _add(
        self, model: type[Base], key: str, rows: Sequence[dict[str, int]], at: datetime
    ) -> None:
        """Add to the summary rows of a day that have these keys; create them if needed. Atomic."""
        day = at.astimezone(UTC).date()
        names = tuple(name for name in rows[0] if name != key)
        statement = _upsert(model, (key, "day"), names, self._dialect, True)
        values = [_zeros(model) | row | {"day": day} for row in rows]
        self.execute(statement, values if len(values) > 1 else values[0])

    @property
    def _dialect(self) -> str:
        return self._connection.dialect.name


Work = Callable[Concatenate[Transaction, P], T]


def transact(work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work(transaction, …)` in a write transaction, commit it, and return the result.

    After a deadlock, a lock timeout, a lost connection or a busy SQLite file, all of it is run
    again: so `work` may only use the database, and must not log. On MySQL it continues in an open
    read transaction, and sees what others have committed since.
    """
    return transact_within(PATIENCE_SECONDS, work, *args, **kwargs)


def transact_within(patience: float, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same as transact(), retried for `patience` seconds."""
    on_sqlite = db.session.get_bind().dialect.name == "sqlite"
    give_up = time.monotonic() + patience
    pause = 0.02
    while True:
        try:
            if on_sqlite:
                release()  # so that a thread waiting for its turn holds no connection
            with _sqlite_turn if on_sqlite else contextlib.nullcontext():
                connection = db.session.connection()
                if on_sqlite:
                    connection.exec_driver_sql(WRITE)
                result = work(Transaction(db.session(), connection), *args, **kwargs)
                db.session.commit()
            return result
        except (DBAPIError, PoolTimeout) as e:
            db.session.rollback()
            if time.monotonic() > give_up or not _is_passing(e):
                raise
        except BaseException:
            db.session.rollback()
            raise
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 1)


def is_duplicate_key(error: IntegrityError) -> bool:
    """Whether a row with the same unique key exists; other rules that an insert may break, such as
    a foreign key's, are no duplicates."""
    sqlite_name = getattr(error.orig, "sqlite_errorname", None)
    return error_code(error.orig) == DUPLICATE_KEY or sqlite_name == "SQLITE_CONSTRAINT_UNIQUE"


def release() -> None:
    """Return the database connection to the pool, before an outbound call or a wait."""
    if db.session().in_transaction():
        db.session.commit()


def is_gone(error: Exception) -> bool:
    """Whether a transaction was given up because none could be had: not for a row's lock."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeout)
    return _is_passing(error) and error_code(error.orig) not in ROW_LOCKS


def _is_passing(error: DBAPIError | PoolTimeout) -> bool:
    if isinstance(error, PoolTimeout):
        return True
    is_known = error_code(error.orig) in PASSING_MYSQL or "locked" in str(error.orig)
    return error.connection_invalidated or is_known


# Statements run by every call are compiled once: compiling costs more than running them


@cache
def _zeros(model: type[Base]) -> dict[str, int]:
    return dict.fromkeys(model.table().c.keys(), 0)


@cache
def _upsert(
    model: type[Base], key: tuple[str, ...], names: tuple[str, ...], dialect: str, add: bool
) -> Insert:
    table = model.table()
    insert: Any = (sqlite if dialect == "sqlite" else mysql).insert(table)
    new = insert.excluded if dialect == "sqlite" else insert.inserted
    changes = {name: table.c[name] + new[name] if add else new[name] for name in names}
    if dialect == "sqlite":
        upsert: Insert = insert.on_conflict_do_update(index_elements=key, set_=changes)
    else:
        upsert = insert.on_duplicate_key_update(changes)
    return upsert


@cache
def _insert(table: Table) -> Insert:
    return table.insert()
