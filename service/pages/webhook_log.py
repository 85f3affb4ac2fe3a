"""The webhook log: every delivery with its attempts, redelivery, and the endpoint's restart."""

from datetime import datetime
from typing import Any

from flask import current_app, flash, redirect, render_template, request, url_for
from marshmallow import ValidationError

from service import history, search
from service.database.engine import db
from service.database.models import Delivery, DeliveryState, Result, User
from service.database.writing import Transaction, transact
from service.errors import NotFound, StillSending
from service.fields import Moment
from service.pages.blueprint import asked, bp, kept, logged_in
from service.pages.filters import STATES, counted, result_sentence, waiting_webhooks
from service.pages.naming import names
from service.webhooks import by_hand, endpoint

REDELIVER_SECONDS = 10


@bp.get("/profile/webhooks")
@logged_in
def webhooks(user: User) -> Any:
    """The deliveries, newest first."""
    given, of_user = asked(), Delivery.user_id == user.id
    state = given["state"] if given.get("state") in list(DeliveryState) else None
    page = search.Wanted(state=state, before=given.get("before"), after=given.get("after"))
    found = search.deliveries(user, page)
    counts = {str(each): search.count(of_user, Delivery.state == each) for each in DeliveryState}
    counts["all"] = search.count(of_user)
    sms = [delivery.message for delivery in found.rows if delivery.message]
    return render_template(
        "webhooks.html",
        user=user,
        found=found,
        state=state,
        counts=counts,
        last_day=history.last_day(user),
        numbers=history.numbers_of(sms),
        names=names(),
    )


@bp.post("/profile/webhooks/redeliver")
@logged_in
def redeliver(user: User) -> Any:
    """Attempt one delivery now, or retry all failed ones, or those that failed since a time."""
    current_app.extensions["sends"].take(user.id)
    wanted = request.form.get("id", "")
    try:
        flash(_redeliver_failed(user) if wanted == "failed" else _redeliver_one(user, wanted))
    except StillSending as e:
        flash(e.message)
    return redirect(url_for("profile.webhooks", **kept()))


def _redeliver_failed(user: User) -> str:
    since: datetime | None = None
    if given := request.form.get("since"):
        try:
            since = Moment().deserialize(given)
        except ValidationError:
            return "That is not a time."
    states = by_hand.redeliver_failed(user, REDELIVER_SECONDS, since)
    counts = ", ".join(f"{states[state]} {STATES[state]}" for state in STATES if states[state])
    return f"Tried again: {counts}." if counts else "No OTP is left to redeliver."


def _redeliver_one(user: User, wanted: str) -> str:
    is_id = wanted.isascii() and wanted.isdecimal() and len(wanted) < 19
    row = db.session.get(Delivery, int(wanted)) if is_id else None
    if row is None or row.user_id != user.id:
        raise NotFound
    if by_hand.redeliver(row.id, user.id) is None:
        return f"Delivery {row.id}: it is being tried just now."
    row = db.session.get_one(Delivery, row.id, populate_existing=True)
    result = Result(row.last_result or "")
    if result.is_success:
        return f"Delivery {row.id}: delivered."
    return f"Delivery {row.id}: not delivered, {result_sentence(result)}."


@bp.post("/profile/webhooks/enable")
@logged_in
def enable(user: User) -> Any:
    """Resume webhooks to the endpoint: close its circuit, enable it, and send what waited."""
    waiting = counted(waiting_webhooks(user))
    transact(_enable, user.id)
    among = f", {waiting} that waited among them." if waiting != "0" else "."
    flash(f"Webhooks are sent again{among}")
    return redirect(url_for("profile.webhooks"))


def _enable(tx: Transaction, user_id: int) -> None:
    endpoint.resume(tx, tx.lock_user(user_id))
