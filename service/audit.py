"""The audit trail: who changed what, or read it in the name of another."""

import json
from enum import StrEnum
from typing import Any

from flask import g, has_request_context, request

from service.database.models import AuditEntry
from service.database.writing import Transaction
from service.logs import note_caller


class Actor(StrEnum):
    """Who acts."""

    USER = "user"
    SYSTEM_KEY = "system key"
    COMMAND = "command"
    NOBODY = "nobody"  # a request without a valid key


def acts_as(actor: Actor, user_id: int | None = None) -> None:
    """Note who makes this request, once the key or the session is known."""
    g.actor = actor
    note_caller(user_id=user_id, by=None if actor is Actor.USER else actor)


def is_system_key() -> bool:
    """Whether this request acts for a user with the system key."""
    return bool(g.get("actor") == Actor.SYSTEM_KEY)


def record(tx: Transaction, action: str, user_id: int | None = None, **details: Any) -> None:
    """Add an entry in the transaction that it is about; `user_id` is the user whom it concerns.

    `details` are names, ids and states: never keys, codes or texts.
    """
    actor, address = Actor.COMMAND, None
    if has_request_context():
        actor, address = g.get("actor", Actor.NOBODY), (request.remote_addr or "")[:64]
    kept = {name: value for name, value in details.items() if value is not None}
    tx.store(
        AuditEntry(
            actor=actor, address=address, action=action, user_id=user_id,
            details=json.dumps(kept, default=str) if kept else None,
        )
    )  # fmt: skip
