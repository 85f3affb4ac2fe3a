"""The pages: a user logs in, sets the webhook, and sees what happened."""

import logging
import re
from functools import wraps

from flask import (
    Blueprint,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from markupsafe import Markup, escape
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from service import delivery, guard, history, openapi, sessions
from service.errors import ApiError, InvalidApiKey, NotFound, TooManyTries
from service.logs import event, request_id
from service.models import (
    Delivery,
    User,
    db,
    new_key,
    release,
    sha256,
    transact,
    utcnow,
)
from service.schemas import PageQuery, ProfileForm

log = logging.getLogger(__name__)
bp = Blueprint("profile", __name__)

PAGE = 20
REDELIVER_SECONDS = 10
EXAMPLES = {"full": "+447400849540", "national": "7400849540", "remove_plus": "447400849540"}

# What a delivery's result says to its owner
RESULTS = {
    "timeout": "no answer in time",
    "dns": "the host name was not found",
    "connect": "no connection",
    "connection": "the connection broke",
    "tls": "the TLS certificate or handshake was refused",
    "forbidden": "the address may not be called",
    "url": "the URL cannot be used",
    "disabled": "the webhook is disabled",
    "no_url": "no Webhook URL is set",
    "circuit_open": "waiting until the endpoint is tried again",
    "busy": "waiting for its turn",
    "secret_unreadable": "the webhook secret has to be rotated",
}


def logged_in(view):
    """Give `view` the user; who is not logged in is sent to /login."""

    @wraps(view)
    def guarded(**kwargs):
        user = sessions.current_user()
        if user is None:
            sessions.log_out()
            return redirect(url_for("profile.login"))
        return view(user, **kwargs)

    return guarded


@bp.before_request
def check_form():
    """No form is taken that was not made for this session."""
    if request.method == "POST":
        sessions.check_csrf()


@bp.get("/")
def home():
    return redirect(url_for("profile.overview"))


@bp.route("/login", methods=["GET", "POST"])
def login():
    """Log in with the API key."""
    if request.method == "GET":
        return render_template("login.html")
    try:
        sessions.log_in(request.form.get("api_key", "").strip())
    except (InvalidApiKey, TooManyTries) as e:
        sentence = "This is not an API key in use." if e.status == 401 else e.message
        return render_template("login.html", error=sentence), e.status, e.headers
    return redirect(url_for("profile.overview"))


@bp.route("/logout", methods=["GET", "POST"])
def logout():
    """Log out; by GET it is asked for first, since anybody can make a browser follow a link."""
    if request.method == "GET":
        return render_template("logout.html")
    sessions.log_out()
    return redirect(url_for("profile.login"))


@bp.get("/profile")
@logged_in
def overview(user):
    """Totals, the last 30 days, the latest numbers and messages."""
    return render_template(
        "profile.html",
        user=user,
        summary=history.summary(user, 30),
        numbers=_numbers(user, 5),
        messages=history.messages(user, 5)[::-1],
    )


@bp.get("/profile/numbers")
@logged_in
def numbers(user):
    before = _before()
    return render_template("numbers.html", user=user, numbers=_numbers(user, PAGE, before))


@bp.get("/profile/messages")
@logged_in
def messages(user):
    rows = history.messages(user, PAGE, before=_before())[::-1]
    return render_template("messages.html", user=user, messages=rows)


@bp.post("/profile/reveal")
@logged_in
def reveal(user):
    """Show codes and texts in this session, or hide them again; never by a URL."""
    session["reveal"] = request.form.get("reveal") == "1"
    everything = request.form.get("page") == "messages"
    return redirect(url_for("profile.messages" if everything else "profile.overview"))


@bp.route("/profile/edit", methods=["GET", "POST"])
@logged_in
def edit(user):
    """The Webhook URL and the preferred number format."""
    if request.method == "GET":
        return _edit_page(user)
    form = request.form.to_dict()
    try:
        given = ProfileForm().load(form)
        if url := given["webhook_url"]:
            release()
            guard.check_url(url)
    except ValidationError as e:
        return _edit_page(user, form=form, errors=e.normalized_messages()), 400
    except guard.ForbiddenUrl as e:
        return _edit_page(user, form=form, errors={"webhook_url": [f"The URL {e}."]}), 400

    def save():
        row = db.session.get(User, user.id)
        if row.webhook_url != given["webhook_url"]:
            delivery.set_url(row, given["webhook_url"])
        row.number_format = given["number_format"]

    transact(save)
    flash("Saved.")
    return redirect(url_for("profile.edit"))


@bp.post("/profile/test")
@logged_in
def send_test(user):
    """Send a test event to the endpoint, and show what came of it."""
    current_app.extensions["tests"].take(user.id)
    return _edit_page(user, tested=history.last_attempt(delivery.send_test(user)))


@bp.post("/profile/secret")
@logged_in
def rotate_secret(user):
    """A new webhook secret, shown this once; a form that is sent again rotates nothing."""

    def rotate():
        row = db.session.get(User, user.id)
        return _is_current(row.webhook_secret) and delivery.rotate_secret(row)

    secret = transact(rotate)
    if not secret:
        flash("The secret has been rotated since this page was made.")
        return redirect(url_for("profile.edit"))
    return _edit_page(user, secret=secret)


@bp.route("/profile/key", methods=["GET", "POST"])
@logged_in
def rotate_key(user):
    """A new API key, shown this once; asked for first, since the old one stops at once."""
    if request.method == "GET":
        return render_template("key.html", user=user, token=_token(user.key_hash))
    key = new_key("usr")

    def rotate():
        row = db.session.get(User, user.id)
        if current := _is_current(row.key_hash):
            row.key_hash = sha256(key)
        return current

    if not transact(rotate):
        flash("The key has been rotated since this page was made.")
        return redirect(url_for("profile.edit"))
    event(log, "key_rotated", user_id=user.id)
    sessions.begin(user)  # this browser stays logged in, all others are logged out
    return render_template("key.html", user=user, key=key)


@bp.get("/profile/webhooks")
@logged_in
def webhooks(user):
    """The webhook log: every delivery with its attempts."""
    state = request.args.get("state")
    state = state if state in ("pending", "delivered", "dead") else None
    rows = history.deliveries(user, PAGE, _before(), state)
    return render_template("webhooks.html", user=user, deliveries=rows, state=state)


@bp.post("/profile/webhooks/redeliver")
@logged_in
def redeliver(user):
    """Try one delivery again now, or make all that failed due again."""
    wanted = request.form.get("id", "")
    if wanted == "failed":
        found, delivered = delivery.redeliver_failed(user, REDELIVER_SECONDS)
        flash(f"{found} to deliver again: {delivered} delivered, the others are due now.")
    else:
        row = wanted.isascii() and wanted.isdecimal() and db.session.get(Delivery, int(wanted[:18]))
        if not row or row.user_id != user.id:
            raise NotFound
        state = delivery.redeliver(row.id)
        flash(f"Delivery {row.id}: {state or 'it is being tried just now'}.")
    return redirect(url_for("profile.webhooks"))


@bp.post("/profile/webhooks/enable")
@logged_in
def enable(user):
    """Let webhooks go to the endpoint again: its circuit closed, no longer disabled."""

    def close():
        row = db.session.get(User, user.id)
        delivery.set_url(row, row.webhook_url)

    transact(close)
    flash("Webhooks are sent again.")
    return redirect(url_for("profile.webhooks"))


@bp.get("/docs")
def docs():
    """The API documentation, from the same source as /openapi.json."""
    user = sessions.current_user()
    return render_template(
        "docs.html", user=user, paths=openapi.document()["paths"], calls=openapi.ENDPOINTS
    )


# --- shared by the views ------------------------------------------------------------------


def _edit_page(user, form=None, **shown):
    user = db.session.get(User, user.id, populate_existing=True)
    release()
    form = form or {"webhook_url": user.webhook_url, "number_format": user.number_format or "full"}
    return render_template(
        "edit.html",
        user=user,
        form=form,
        examples=EXAMPLES,
        token=_token(user.webhook_secret),
        **shown,
    )


def _numbers(user, limit, before=None):
    return history.numbers(user, limit, before, states=("assigned", "unknown"))


def _before():
    try:
        return PageQuery().load(request.args.to_dict()).get("before")
    except ValidationError as e:
        raise NotFound from e


def _token(value):
    """What a form that replaces `value` carries, so that it does so once."""
    return sha256("form", value)[:16]


def _is_current(value):
    return request.form.get("token") == _token(value)


@bp.app_template_filter("result")
def result_sentence(result):
    """A delivery's result as its owner understands it."""
    if result and result.isdecimal():
        return f"answered {result}"
    return RESULTS.get(result, result or "not tried yet")


@bp.app_template_filter("moment")
def moment(time):
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


@bp.app_template_filter("code")
def code(text):
    """`text` escaped, what is between backticks as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


@bp.app_context_processor
def template_globals():
    return {"now": utcnow, "revealed": lambda: session.get("reveal", False)}


# --- answers ------------------------------------------------------------------------------

POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "img-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)


def answer_error(error):
    """Any exception of a request for a page, as a page."""
    if isinstance(error, HTTPException):
        if error.code is None or error.code < 400:
            return error
        status, sentence, headers = error.code, error.description, {}
        if getattr(error, "valid_methods", None):
            headers["Allow"] = ", ".join(error.valid_methods)
    elif isinstance(error, ApiError):
        status, sentence, headers = error.status, error.message, error.headers
    else:
        event(log, "unexpected_error", logging.ERROR, exc_info=True)
        status, sentence, headers = 500, "Something went wrong on our side.", {}
    page = render_template("error.html", status=status, sentence=sentence, request_id=request_id())
    return page, status, headers


def secure(response):
    """Headers of every answer: nothing runs, frames or leaks what we serve."""
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("X-Frame-Options", "DENY")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    if request.blueprint == bp.name:
        response.headers.setdefault("Cache-Control", "no-store")
    return response
