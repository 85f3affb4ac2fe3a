"""The inbox, which can be watched, and the summary."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from flask import redirect, render_template, request, session, url_for

from service import audit, history, search
from service.database.columns import utcnow
from service.database.models import Delivery, DeliveryState, Message, User
from service.database.writing import transact
from service.pages.blueprint import ask_for_recent_key, asked, bp, kept, logged_in
from service.pages.naming import names

# The pages that hide codes and texts
REVEALING = ("overview", "messages", "webhooks")
INBOX = 20  # rows
# For how long an inbox refreshes itself; how long each of its calls waits, and how long while a
# webhook is being sent, whose state is awaited as well
WATCH_SECONDS = 600
WAIT_SECONDS, WEBHOOK_SECONDS = 25, 2


@bp.get("/profile")
@logged_in
def overview(user: User) -> Any:
    """The inbox: the latest SMS, of one number if it is asked for; watched from `watch` on, a time
    in Unix seconds, for which 1 is taken as now."""
    wanted, now = asked(), int(time.time())
    number = wanted.get("number")
    if wanted.get("watch") == 1:
        return redirect(url_for("profile.overview", **kept() | {"watch": now}))
    left = wanted["watch"] + WATCH_SECONDS - now if "watch" in wanted else None
    rows = history.messages(user, INBOX, number)
    return render_template(
        "inbox.html",
        number=number,
        held=history.number_of(user, number) if number else None,
        left=left,
        is_watched=left is not None and 0 < left <= WATCH_SECONDS,
        totals=None if rows else history.totals(user),
        **_listed(user, rows),
    )


@bp.get("/profile/watch")
@logged_in
def new_messages(user: User) -> Any:
    """The list of the inbox, as soon as there is an SMS with an id above `after`, or after a while;
    `state` is "pending" if a webhook is shown to be so."""
    wanted = asked()
    number, after = wanted.get("number"), wanted.get("after")
    rows = history.messages(user, INBOX, number)
    if after is not None and (rows[-1].id if rows else 0) <= after:
        # The SMS itself comes before its webhook's outcome, which is awaited where it is not shown
        recent = utcnow() - timedelta(seconds=WAIT_SECONDS)
        is_sent_now = any(row.created_at > recent for row in rows)
        is_awaited = is_sent_now and wanted.get("state") == DeliveryState.PENDING
        seconds = WEBHOOK_SECONDS if is_awaited else WAIT_SECONDS
        history.messages(user, 1, number, after=after, wait=seconds)
        rows = history.messages(user, INBOX, number)
    return render_template("inbox_list.html", **_listed(user, rows))


def _listed(user: User, rows: Sequence[Message]) -> dict[str, Any]:
    numbers = history.numbers_of(rows)
    return {"user": user, "messages": rows[::-1], "numbers": numbers, "names": names()}


@bp.get("/profile/summary")
@logged_in
def summary(user: User) -> Any:
    """The counts in all, and of each of the last 30 days."""
    of_user = Delivery.user_id == user.id
    failed = search.count(of_user, Delivery.state == DeliveryState.DEAD)
    counts = history.summary(user, 30)
    return render_template("summary.html", user=user, summary=counts, failed=failed)


@bp.post("/profile/reveal")
@logged_in
def reveal(user: User) -> Any:
    """Show or hide codes and texts in this session; no URL can do this."""
    wanted = request.form.get("reveal") == "1"
    page = request.form.get("page")
    page = page if page in REVEALING else "overview"
    if wanted:
        asking = ask_for_recent_key(user, "show codes and texts", reveal="1", page=page)
        if asking:
            return asking
        transact(audit.record, "codes_revealed", user.id)
    session["reveal"] = wanted
    return redirect(url_for(f"profile.{page}", **kept()))
