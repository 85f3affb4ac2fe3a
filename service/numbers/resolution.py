"""What the operator found out about a number that the main server may have granted."""

from service.database.columns import utcnow
from service.database.models import NumberState, PhoneNumber
from service.database.writing import Transaction
from service.numbers.reservation import is_under_way


class NotUnknown(Exception):
    """The row has no unknown number; the message says what it has."""


def resolve(tx: Transaction, row: PhoneNumber, digits: str | None) -> bool:
    """Record the number of an `unknown` row of `tx`, or with None that none was granted; returns
    False if that is recorded already. Raises NotUnknown.

    A request whose process died is unknown as well, and counted now. The number is the user's from
    the time of their request on.
    """
    wanted = NumberState.REFUSED if digits is None else NumberState.ASSIGNED
    if (row.state, row.digits) == (wanted, digits):
        return False
    has_died = row.state == NumberState.REQUESTED and not is_under_way(row, utcnow())
    if row.state != NumberState.UNKNOWN and not has_died:
        has = f"has +{row.digits}" if row.digits else f"is {row.state}"
        raise NotUnknown(f"number {row.id} {has}; only an unknown one can be resolved")
    row.state, row.digits = wanted, digits
    if digits is None:
        row.idempotency_hash = None  # a repeat asks for another number
    else:
        row.assigned_at = row.requested_at
    tx.session.flush()
    numbers = int(digits is not None)
    tx.count(row.user_id, row.requested_at, requests=int(has_died), numbers=numbers)
    return True
