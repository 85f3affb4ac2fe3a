"""The pages that anybody may see: login, logout, the API's documentation."""

from typing import Any

from flask import current_app, redirect, render_template, request, session, url_for

from service.api import endpoints, examples, reference
from service.errors import AwaitingApproval, InvalidApiKey, TooManyTries
from service.pages.blueprint import bp
from service.pages.session import current_user, log_in, log_out


@bp.get("/")
def home() -> Any:
    return redirect(url_for("profile.overview"))


@bp.route("/login", methods=["GET", "POST"])
def login() -> Any:
    """Log in with the API key."""
    if request.method != "POST":
        if current_user():
            return redirect(url_for("profile.overview"))
        return render_template("login.html", missing=_missing())
    # The session holds where somebody wanted to go: no link can make a login lead elsewhere
    wanted = session.get("wanted")
    try:
        log_in(request.form.get("api_key", "").strip())
    except (InvalidApiKey, AwaitingApproval, TooManyTries) as e:
        sentence = "This is not an API key in use." if e.status == 401 else e.message
        return render_template("login.html", error=sentence), e.status, e.headers
    return redirect(wanted or url_for("profile.overview"))


def _missing() -> list[str]:
    """The settings without which this deployment can do nothing, or nothing that lasts."""
    config = current_app.config
    missing = [name for name in ("SYSTEM_API_KEY", "MAIN_SERVER_URL") if not config[name]]
    return missing + ["SECRET_KEY"] * ("SECRET_KEY_IS_OWN" in config)


@bp.route("/logout", methods=["GET", "POST"])
def logout() -> Any:
    """Log out, here or everywhere; a GET asks first, since any site can make a browser follow a
    link."""
    user = current_user()
    if request.method != "POST":
        return render_template("logout.html", user=user)
    if user:
        log_out(user, everywhere=request.form.get("everywhere") == "1")
    return redirect(url_for("profile.login"))


@bp.get("/docs")
def docs() -> Any:
    """The API documentation, from the same source as /openapi.json."""
    shown = {
        "introduction": endpoints.paragraphs(endpoints.INTRODUCTION),
        "for_operators": endpoints.paragraphs(endpoints.FOR_OPERATORS),
        "calls": reference.calls(request.url_root.rstrip("/")),
        "webhook": reference.webhook(),
        "receivers": examples.RECEIVERS,
        "recipes": examples.RECIPES,
    }
    return render_template("docs.html", user=current_user(), **shown)
