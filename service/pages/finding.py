"""The pages that list and find numbers and messages."""

from typing import Any

from flask import render_template

from service import history, search
from service.database.models import NO_WEBHOOK, DeliveryState, NumberState, User
from service.pages.blueprint import asked, bp, logged_in
from service.pages.naming import names
from service.pages.session import is_confirmed

NUMBER_STATES = {
    search.WAITING: "no SMS yet",
    search.USED: "SMS received",
    NumberState.UNKNOWN: "unknown",
}
MESSAGE_STATES = {
    DeliveryState.PENDING: "webhook pending",
    DeliveryState.DELIVERED: "webhook delivered",
    DeliveryState.DEAD: "webhook failed",
    NO_WEBHOOK: "no webhook",
}


@bp.get("/profile/numbers")
@logged_in
def numbers(user: User) -> Any:
    """The numbers, newest first."""
    wanted = _wanted(NUMBER_STATES)
    found = search.numbers(user, wanted)
    counts = {
        "numbers": found.total,
        "messages": search.count_messages(user, wanted._replace(state=None)),
    }
    shown = {"wanted": wanted, "found": found, "counts": counts, "states": NUMBER_STATES}
    return render_template("numbers.html", user=user, names=names(), **shown)


@bp.get("/profile/messages")
@logged_in
def messages(user: User) -> Any:
    """The SMS, newest first."""
    wanted = _wanted(MESSAGE_STATES)
    found = search.messages(user, wanted)
    counts = {
        "numbers": search.count_numbers(user, wanted._replace(state=None)),
        "messages": found.total,
    }
    shown = {"wanted": wanted, "found": found, "counts": counts, "states": MESSAGE_STATES}
    numbers_of = history.numbers_of(found.rows)
    return render_template("messages.html", user=user, names=names(), numbers=numbers_of, **shown)


def _wanted(states: dict[Any, str]) -> search.Wanted:
    """What the query string asks for, of a list whose rows may be in one of `states`."""
    given = asked()
    return search.Wanted(
        text=given.get("q", "").strip() or None,
        since=given.get("since"),
        until=given.get("until"),
        state=given["state"] if given.get("state") in states else None,
        before=given.get("before"),
        after=given.get("after"),
        # Else who has but a copy of the cookie could guess a code digit by digit
        reads_texts=is_confirmed(),
    )
