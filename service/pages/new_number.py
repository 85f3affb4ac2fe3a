"""The page that gets a number from the main server."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from flask import flash, redirect, render_template, request, url_for

from service import auth, limits, upstream
from service.api.schemas import GetNumberQuery
from service.database.columns import utcnow
from service.database.models import User
from service.database.writing import release
from service.errors import ApiError, BadRequest, InitBusy, ServiceFetchFailed, UnableToGetNumber
from service.fields import load_query
from service.numbers import assignment
from service.numbers.formats import NumberFormat, present
from service.numbers.reservation import used_today
from service.pages.blueprint import bp, logged_in
from service.pages.naming import remember
from service.pages.settings import EXAMPLES

_FORM = GetNumberQuery()
MAX_ONCE = 64


@bp.route("/profile/get-number", methods=["GET", "POST"])
@logged_in
def new_number(user: User) -> Any:
    """Get a number, and go to its inbox, which is watched."""
    if request.method != "POST":
        return _form_page(user, {"number_format": user.number_format or NumberFormat.FULL})
    try:
        with limits.gate().inside():
            digits, shown = _get_number(user)
    except ApiError as e:
        return _form_page(user, request.form, e), e.status, e.headers
    flash(f"{shown} is yours.")
    path = url_for("profile.overview", number=f"+{digits}", watch=int(time.time()))
    return redirect(path)


def _get_number(user: User) -> tuple[str, str]:
    """(the digits of a number, the number in the format asked for); the form's own key sees to it
    that a second click gets the same one. Raises the errors of GET /api/get-number."""
    auth.require_active_manager(user)
    form = load_query(_FORM, request.form)
    once = request.form.get("once") or None
    if once and len(once) > MAX_ONCE:
        raise BadRequest
    _check_operator(form["country_id"], form.get("operator_id"))
    number_format = form.get("number_format") or user.number_format or NumberFormat.FULL
    row, phone_code = assignment.get_number(
        user, form["country_id"], form.get("operator_id"), number_format, once
    )
    return row.digits or "", present(row.digits or "", number_format, phone_code)


def _check_operator(country_id: int, operator_id: int | None) -> None:
    """Raise BadRequest if the operator is known to be another country's."""
    for operator in (upstream.known_init() or {"operators": []})["operators"]:
        if operator["id"] == operator_id and operator.get("country_id") not in (country_id, None):
            raise BadRequest(f"{operator['name']} is an operator of another country")


def _form_page(user: User, form: Mapping[str, Any], error: ApiError | None = None) -> str:
    # While it is unknown whether a number was granted, the same key asks for that one again
    is_open = isinstance(error, UnableToGetNumber)
    once = form["once"] if is_open and form.get("once") else secrets.token_urlsafe(16)
    shown = {"form": form, "once": once, "error": error, "examples": EXAMPLES}
    used = used_today(user, utcnow())
    release()
    try:
        shown["countries"] = _countries(user)
    except (upstream.UpstreamError, InitBusy) as e:
        message = e.message if isinstance(e, upstream.Refused) else None
        shown["obstacle"] = message or ServiceFetchFailed.message
    return render_template("new_number.html", user=user, used=used, **shown)


def _countries(user: User) -> list[dict[str, Any]]:
    """The main server's countries by name, each with its `operators`; raises UpstreamError or
    InitBusy."""
    data = upstream.init_in_turn(user.id)
    remember(data)
    operators = sorted(data["operators"], key=lambda row: row["name"].casefold())
    countries = [
        {
            "id": country["id"],
            "name": country.get("name") or f"Country {country['id']}",
            "operators": [row for row in operators if row.get("country_id") == country["id"]],
        }
        for country in data["countries"]
    ]
    return sorted(countries, key=lambda row: row["name"].casefold())
