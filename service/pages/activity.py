"""The pages that show a user's numbers and messages."""

from collections.abc import Sequence
from typing import Any

from flask import redirect, render_template, request, session, url_for

from service import audit, history
from service.database.models import NumberState, PhoneNumber, User
from service.database.writing import transact
from service.pages.blueprint import PAGE, ask_for_key, asked, bp, logged_in
from service.pages.session import is_confirmed

# The pages that hide codes and texts
REVEALING = ("overview", "messages", "webhooks")


@bp.get("/profile")
@logged_in
def overview(user: User) -> Any:
    """Totals, the last 30 days, the latest numbers and messages."""
    latest = {"numbers": _numbers(user, 5), "messages": history.messages(user, 5)[::-1]}
    return render_template("profile.html", user=user, summary=history.summary(user, 30), **latest)


@bp.get("/profile/numbers")
@logged_in
def numbers(user: User) -> Any:
    """The numbers, newest first."""
    rows = _numbers(user, PAGE + 1, asked("before"))
    return render_template("numbers.html", user=user, numbers=rows)


@bp.get("/profile/messages")
@logged_in
def messages(user: User) -> Any:
    """The SMS, newest first."""
    rows = history.messages(user, PAGE, before=asked("before"))[::-1]
    older = rows[-1].id if rows and history.has_older(user, rows[-1].id) else None
    return render_template("messages.html", user=user, messages=rows, older=older)


@bp.post("/profile/reveal")
@logged_in
def reveal(user: User) -> Any:
    """Show or hide codes and texts in this session; no URL can do this."""
    wanted = request.form.get("reveal") == "1"
    page = request.form.get("page")
    page = page if page in REVEALING else "overview"
    if wanted and not is_confirmed():
        asking = ask_for_key(user, "show codes and texts", reveal="1", page=page)
        if asking:
            return asking
    if wanted:
        transact(audit.record, "codes_revealed", user.id)
    session["reveal"] = wanted
    return redirect(url_for(f"profile.{page}"))


def _numbers(user: User, limit: int, before: int | None = None) -> Sequence[PhoneNumber]:
    return history.numbers(user, limit, before, (NumberState.ASSIGNED, NumberState.UNKNOWN))
