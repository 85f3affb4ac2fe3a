"""The pages' blueprint: who is let in, which forms are accepted, and errors as pages."""

import logging
from collections.abc import Callable
from datetime import date
from functools import wraps
from typing import Any

from flask import Blueprint, flash, redirect, render_template, request, session, url_for
from marshmallow import ValidationError, fields, validate
from werkzeug.exceptions import HTTPException

from service.database.models import User
from service.errors import ApiError, InvalidApiKey, NotFound, TooManyTries
from service.fields import MAX_ROW_ID, Digits, Phone, Query, Text
from service.logs import event, request_id
from service.pages.session import check_csrf, confirm, current_user, is_confirmed

bp = Blueprint("profile", __name__)
bp.before_request(check_csrf)

# Characters of the address to which a login leads back
MAX_WANTED = 500
# What a page is asked for again after a form was sent from it
KEPT = ("number", "watch", "q", "since", "until", "state", "before", "after")


# Days that every database can compare, and the days after them
_IS_NEAR = validate.Range(date(1970, 1, 1), date(9998, 12, 31))
# What errors of HTTP are called on the pages
SENTENCES = {
    404: NotFound.message,
    405: "This page cannot be used that way. Go back, and use its own links and buttons.",
    413: "That is more than a form of ours can hold.",
}


class PageQuery(Query):
    """What a page shows: of which number, what was looked for, and from which row on."""

    number = Phone()
    watch = Digits(high=MAX_ROW_ID)
    q = Text(validate=validate.Length(max=200))
    since = fields.Date(validate=_IS_NEAR)
    until = fields.Date(validate=_IS_NEAR)
    state = fields.String()
    before = Digits(high=MAX_ROW_ID)
    after = Digits(high=MAX_ROW_ID)
    tested = Digits(high=MAX_ROW_ID)


def logged_in(view: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the user to `view`; whoever is not logged in is sent to /login, and from there back."""

    @wraps(view)
    def guarded(**kwargs: Any) -> Any:
        user = current_user()
        if user is None:
            if "user" in session:
                session.clear()
                flash("You have been logged out.")
            if request.method == "GET":
                session["wanted"] = request.full_path[:MAX_WANTED].rstrip("?")
            return redirect(url_for("profile.login"))
        return view(user, **kwargs)

    return guarded


def ask_for_key(user: User, purpose: str, **form: str) -> Any:
    """None if the user's own API key came with this form; else the page that asks for it, and then
    sends the fields of `form` again."""
    shown: dict[str, Any] = {"purpose": purpose, "form": form, "user": user}
    if request.method != "POST" or "api_key" not in request.form:
        return render_template("confirm.html", **shown)
    try:
        confirm(user, request.form["api_key"].strip())
    except (InvalidApiKey, TooManyTries) as e:
        sentence = "This is not your API key." if e.status == 401 else e.message
        return render_template("confirm.html", error=sentence, **shown), e.status, e.headers
    return None


def ask_for_recent_key(user: User, purpose: str, **form: str) -> Any:
    """The same, but None as well if the key was given a while ago."""
    return None if is_confirmed() else ask_for_key(user, purpose, **form)


def asked() -> dict[str, Any]:
    """The query string as PageQuery reads it; raises NotFound."""
    try:
        loaded: dict[str, Any] = PageQuery().load(request.args.to_dict())
        return loaded
    except ValidationError as e:
        raise NotFound from e


def kept() -> dict[str, Any]:
    """The parameters of this page, for a link or a form that leads back to it."""
    return {name: request.args[name] for name in KEPT if request.args.get(name)}


def answer_error(error: Exception) -> Any:
    """Turn any exception into a page."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        if error.code is None or error.code < 400:
            return error
        status = error.code
        sentence = SENTENCES.get(status, error.description)
        if methods := getattr(error, "valid_methods", None):
            headers["Allow"] = ", ".join(methods)
    elif isinstance(error, ApiError):
        status, sentence, headers = error.status, error.message, error.headers
    else:
        event("unexpected_error", logging.ERROR, exc_info=True)
        status, sentence = 500, "Something went wrong on our side."
    # After a failure the database is not asked: the menu is that of who was logged in
    user = current_user() if status < 500 else "user" in session
    shown = {"status": status, "sentence": sentence, "request_id": request_id(), "user": user}
    return render_template("error.html", **shown), status, headers
