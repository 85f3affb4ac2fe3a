"""Many records at once, made by the database itself: numbers, SMS, due deliveries."""

from datetime import timedelta

from sqlalchemy import text

from benchmarks.harness import USERS
from service.database.columns import utcnow
from service.database.engine import db
from service.database.writing import transact

# n from 1 to :count, and what the two engines write differently
DIALECTS = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE s(n) AS"
        " (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s)",
        "digits": "'4475' || printf('%08d', n)",
        "hash": "lower(hex(randomblob(32)))",
        "webhook_id": "'msg_' || id",
    },
    "mysql": {
        "numbers": "(SELECT seq AS n FROM seq_1_to_{count})",
        "digits": "CONCAT('4475', LPAD(n, 8, '0'))",
        "hash": "SHA2(id, 256)",
        "webhook_id": "CONCAT('msg_', id)",
    },
}
NUMBERS = """
INSERT INTO phone_numbers
(user_id, state, digits, country_id, operator_id, requested_at, assigned_at)
SELECT 1 + n % {users}, 'assigned', {digits}, 2, 201, :at, :at FROM {numbers} AS numbers
"""
MESSAGES = """
INSERT INTO messages
(user_id, phone_number_id, provider, digits, sms_text, otp_code, otp_rule, dedupe_key,
 received_at, created_at)
SELECT user_id, id, 'gw', digits, 'Your code is 493817', '493817', 'keyword-before', {hash},
 :at, :at
FROM phone_numbers WHERE digits LIKE '4475%'
"""
DELIVERIES = """
INSERT INTO deliveries
(webhook_id, user_id, message_id, body, state, attempts, next_attempt_at, created_at)
SELECT {webhook_id}, user_id, id, :body, 'pending', 0, :at, :at
FROM messages WHERE digits LIKE '4475%'
"""
BODY = b'{"event":"otp_received","data":{"phone_number":"+447500000001","otp_code":"493817"}}'


def add(count, deliveries=False):
    """`count` numbers of all users in turn, an SMS for each, and perhaps a due delivery of each."""
    words = DIALECTS[db.engine.dialect.name]
    words = {name: word.format(count=count) for name, word in words.items()} | {"users": USERS}
    at = (utcnow() - timedelta(days=1)).replace(tzinfo=None)
    for sql in [NUMBERS, MESSAGES] + [DELIVERIES] * deliveries:
        statement = text(sql.format(**words))
        given = {"at": at, "body": BODY} if sql is DELIVERIES else {"at": at}
        transact(lambda tx, statement=statement, given=given: db.session.execute(statement, given))
