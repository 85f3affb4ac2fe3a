"""What of the records is worth watching: what waits, what is stuck, what nobody owns."""

from sqlalchemy import func, select

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, DeliveryState, Message, NumberState, PhoneNumber, User
from service.database.writing import release
from service.metrics import Reading
from service.webhooks import queue


def read() -> list[Reading]:
    """Gauges from the database; raises SQLAlchemyError."""
    now = utcnow()
    try:
        due, oldest = queue.due()
        counted = select(Delivery.state, func.count()).group_by(Delivery.state)
        found = {row[0]: row[1] for row in db.session.execute(counted)}
        states = dict.fromkeys(DeliveryState, 0) | found
        is_open = (User.webhook_open_until > now) | User.webhook_disabled_at.is_not(None)
        figures = (
            ("otp_deliveries_due", "Webhook deliveries that are due", due),
            ("otp_delivery_oldest_due_seconds", "How long the oldest of them has been due",
             (now - oldest).total_seconds() if oldest else 0),
            ("otp_circuits_open", "Webhooks that are paused or disabled", _count(User, is_open)),
            ("otp_messages_unmatched", "SMS that are nobody's",
             _count(Message, Message.user_id.is_(None))),
            ("otp_numbers_unknown", "Numbers that may have been granted, and never reached us",
             _count(PhoneNumber, PhoneNumber.state == NumberState.UNKNOWN)),
        )  # fmt: skip
    finally:
        release()
    by_state = [([str(state)], float(n)) for state, n in states.items()]
    readings: list[Reading] = [
        ("otp_deliveries", "Webhook deliveries by state", ["state"], by_state)
    ]
    for name, text, figure in figures:
        readings.append((name, text, [], [([], float(figure))]))
    return readings


def _count(model: type[User | Message | PhoneNumber], condition: object) -> int:
    query = select(func.count()).select_from(model).where(condition)  # type: ignore[arg-type]
    return db.session.scalar(query) or 0
