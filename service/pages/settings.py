"""The edit page: the webhook URL, the number format, the test event, rotations."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flask import current_app, flash, redirect, render_template, request, url_for
from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate

from service import audit, history, users
from service.database.models import Attempt, User
from service.database.writing import Transaction, release, transact
from service.errors import TooManyTries
from service.keys import Unreadable, new_key, new_secret, seal, sha256, unseal
from service.logs import event
from service.numbers.formats import NumberFormat
from service.pages.blueprint import ask_for_key, ask_for_recent_key, asked, bp, logged_in
from service.pages.session import CONFIRMED_SECONDS, begin
from service.webhooks import by_hand, endpoint, guard

EXAMPLES = {
    NumberFormat.FULL: "+447400849540",
    NumberFormat.NATIONAL: "7400849540",
    NumberFormat.REMOVE_PLUS: "447400849540",
}
# What to do about a URL that is refused, by the end of the sentence that says why
WAYS_OUT = {
    "is not on the public internet": "Ask the operator to allow its network.",
    "cannot be found": "Check its spelling, and that it is in the public DNS.",
    "must begin with https://": "Ask the operator if plain http has to be allowed.",
    "user name or password": "Put a secret into its path or query instead.",
}


class ProfileForm(Schema):
    """The form of /profile/edit."""

    webhook_url = fields.String(load_default="")
    number_format = fields.String(
        required=True,
        validate=validate.OneOf(list(NumberFormat), error="Choose one of the formats."),
        error_messages={"required": "Choose one of the formats."},
    )

    @post_load
    def strip(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return data | {"webhook_url": data["webhook_url"].strip() or None}


@bp.route("/profile/edit", methods=["GET", "POST"])
@logged_in
def edit(user: User) -> Any:
    """The Webhook URL and the preferred number format."""
    if request.method != "POST":
        shown = {"webhook_url": user.webhook_url, "number_format": user.number_format or "full"}
        return _edit_page(
            user, shown, tested=history.last_test_attempt(user, asked().get("tested"))
        )
    form = request.form.to_dict()
    try:
        given = ProfileForm(unknown=EXCLUDE).load(form)
        url = given["webhook_url"]
        if url and endpoint.needs_saving(user, url):
            current_app.extensions["sends"].take(user.id)  # a name may take seconds to look up
            release()
            guard.check_url(url)
    except ValidationError as e:
        return _edit_page(user, form, errors=e.normalized_messages()), 400
    except TooManyTries as e:
        return _edit_page(user, form, errors={"webhook_url": [e.message]}), e.status, e.headers
    except guard.ForbiddenUrl as e:
        return _edit_page(user, form, errors={"webhook_url": [_refusal(e)]}), 400
    # Whoever has a copy of the cookie alone must not have the codes sent elsewhere
    if url != user.webhook_url:
        again = {"webhook_url": url or "", "number_format": given["number_format"]}
        asking = ask_for_recent_key(user, "change the Webhook URL", **again)
        if asking:
            return asking
    if transact(_save, user.id, url, given["number_format"]):
        event("webhook_url_set", user_id=user.id)
    flash("Saved.")
    return redirect(url_for("profile.edit"))


def _refusal(error: guard.ForbiddenUrl) -> str:
    way_out = next((way for end, way in WAYS_OUT.items() if str(error).endswith(end)), "")
    return f"The URL {error}. {way_out}".strip()


def _save(tx: Transaction, user_id: int, url: str | None, number_format: str) -> bool:
    """Whether the URL was set."""
    user = tx.lock_user(user_id)
    if number_format != (user.number_format or NumberFormat.FULL):
        audit.record(tx, "user_changed", user_id, number_format=number_format)
    user.number_format = number_format
    if is_new := endpoint.needs_saving(user, url):
        endpoint.set_url(tx, user, url)
    return is_new


def _edit_page(
    user: User,
    form: Mapping[str, str | None],
    tested: Attempt | None = None,
    errors: dict[str, list[str]] | None = None,
) -> str:
    shown = {"form": form, "tested": tested, "errors": errors}
    return render_template("edit.html", user=user, examples=EXAMPLES, **shown)


@bp.post("/profile/test")
@logged_in
def send_test(user: User) -> Any:
    """Send a test event to the endpoint; /profile/edit shows the result."""
    try:
        current_app.extensions["sends"].take(user.id)
        sent = by_hand.send_test(user)
    except TooManyTries as e:
        flash(e.message)
        return redirect(url_for("profile.edit"))
    return redirect(url_for("profile.edit", tested=sent.id, _anchor="test"))


@bp.route("/profile/secret", methods=["GET", "POST"])
@logged_in
def rotate_secret(user: User) -> Any:
    """Rotate the webhook secret: shown only now, in force once the user has copied it."""
    if "offer" not in request.form:
        secret = new_secret()
        asking = ask_for_key(user, "rotate the webhook secret")
        return asking or _offer(user, "secret", user.webhook_secret, secret, secret)
    old, secret = _accepted(user, "secret")
    return _rotated(user, "secret", bool(secret) and transact(_set_secret, user.id, old, secret))


def _set_secret(tx: Transaction, user_id: int, old: str, secret: str) -> bool:
    """Whether `secret` is in force, also if the same form was sent before."""
    user = tx.lock_user(user_id)
    if sha256(user.webhook_secret) == old:
        endpoint.rotate_secret(tx, user_id, secret)
        return True
    with suppress(Unreadable):
        return unseal(user.webhook_secret) == secret
    return False


@bp.route("/profile/key", methods=["GET", "POST"])
@logged_in
def rotate_key(user: User) -> Any:
    """Rotate the API key: shown only now; the old one stops once the user has copied it."""
    if "offer" not in request.form:
        key = new_key("usr")
        asking = ask_for_key(user, "rotate the API key")
        return asking or _offer(user, "key", user.key_hash, key, sha256(key))
    old, key_hash = _accepted(user, "key")
    is_first = sha256(user.key_hash) == old  # of several clicks
    done = bool(key_hash) and transact(users.replace_key, user.id, old, key_hash)
    if done and is_first:
        begin(user)  # this browser stays logged in, all others are logged out
    return _rotated(user, "key", done)


def _offer(user: User, kind: str, old: str, shown: str, kept: str) -> str:
    """The page that shows a new key or secret; nothing changes before its form comes back.

    The form carries the new value, sealed, which shows that the current key was given. So neither
    a lost response nor a second click can leave the user without the value in force, or claim that
    it is not in force.
    """
    offer = seal(json.dumps([kind, user.id, sha256(old), kept, int(time.time())]))
    return render_template("rotate.html", user=user, what=kind, shown=shown, offer=offer)


def _accepted(user: User, kind: str) -> tuple[str, str]:
    """(the hash of the old one, the new one) that was offered to the user just now; empty if
    something else came back."""
    try:
        offered = json.loads(unseal(request.form.get("offer", "")))
    except Unreadable:
        return "", ""
    if offered[:2] != [kind, user.id] or time.time() - offered[4] > CONFIRMED_SECONDS:
        return "", ""
    return offered[2], offered[3]


def _rotated(user: User, kind: str, done: bool) -> Any:
    if done:
        event(f"{kind}_rotated", user_id=user.id)
    flash(f"The new {kind} is in force." if done else f"The {kind} was not rotated: look again.")
    return redirect(url_for("profile.edit"))
