"""Many records at once, made by the database itself: numbers, SMS, due deliveries."""

from datetime import timedelta

from sqlalchemy import text

from benchmarks.harness import USERS
from service.database.columns import utcnow
from service.database.engine import db
from service.database.writing import transact

# How many are made in one statement: the driver waits half a minute for one
STEP = 100_000
# n from {low} to {high}, and what the two engines write differently
DIALECTS = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE s(n) AS"
        " (SELECT {low} UNION ALL SELECT n + 1 FROM s WHERE n < {high}) SELECT n FROM s)",
        "digits": "'4475' || printf('%08d', n)",
        "hash": "lower(hex(randomblob(32)))",
        "webhook_id": "'msg_' || id",
    },
    "mysql": {
        "numbers": "(SELECT seq AS n FROM seq_{low}_to_{high})",
        "digits": "CONCAT('4475', LPAD(n, 8, '0'))",
        "hash": "SHA2(id, 256)",
        "webhook_id": "CONCAT('msg_', id)",
    },
}
NUMBERS = """
INSERT INTO phone_numbers
(user_id, state, digits, phone_code, country_id, operator_id, requested_at, assigned_at)
SELECT 1 + n % {users}, 'assigned', {digits}, '44', 2, 201, :at, :at FROM {numbers} AS numbers
"""
MESSAGES = """
INSERT INTO messages
(user_id, phone_number_id, provider, digits, sms_text, otp_code, otp_rule, dedupe_key,
 received_at, created_at)
SELECT user_id, id, 'gw', digits, 'Your code is 493817', '493817', 'keyword-before', {hash},
 :at, :at
FROM phone_numbers WHERE digits BETWEEN :low AND :high
"""
DELIVERIES = """
INSERT INTO deliveries
(webhook_id, user_id, message_id, body, state, attempts, next_attempt_at, created_at)
SELECT {webhook_id}, user_id, id, :body, 'pending', 0, :at, :at
FROM messages WHERE digits BETWEEN :low AND :high
"""
BODY = b'{"event":"otp_received","data":{"phone_number":"+447500000001","otp_code":"493817"}}'


def add(count, deliveries=False, users=USERS):
    """`count` numbers of the first `users` in turn, an SMS for each, and perhaps a due delivery of
    each."""
    at = (utcnow() - timedelta(days=1)).replace(tzinfo=None)
    for low in range(1, count + 1, STEP):
        high = min(low + STEP - 1, count)
        words = DIALECTS[db.engine.dialect.name]
        words = {name: word.format(low=low, high=high) for name, word in words.items()}
        given = {"at": at, "low": f"4475{low:08}", "high": f"4475{high:08}", "body": BODY}
        for sql in [NUMBERS, MESSAGES] + [DELIVERIES] * deliveries:
            statement = text(sql.format(users=users, **words))
            values = {name: given[name] for name in statement.compile().params}
            transact(lambda tx, one=statement, values=values: db.session.execute(one, values))
