"""Column types that behave the same on every database engine."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, LargeBinary, String, Text, TypeDecorator
from sqlalchemy.dialects import mysql, sqlite


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC time, with microseconds on every engine."""

    impl: Any = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


# SQLite auto-increments only INTEGER keys
ID = BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
# Case-sensitive, for hashes and for ids chosen by others
ASCII = String(64).with_variant(
    mysql.VARCHAR(64, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
# MySQL's TEXT and BLOB end at 64 KiB
LONG_TEXT = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
LONG_BYTES = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def utcnow() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)
