"""The pages: a user logs in, sets the webhook, and sees what happened."""

import json
import logging
import re
from contextlib import suppress
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
from service.secretbox import Unreadable, seal, unseal
from service.webhooks import new_secret

log = logging.getLogger(__name__)
bp = Blueprint("profile", __name__)

PAGE = 20
# The pages that hide codes and texts
REVEALING = ("overview", "messages", "webhooks")
# What the states of a delivery are called here
STATES = {"pending": "pending", "delivered": "delivered", "dead": "failed"}
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
        user = _me()
        if user is None:
            if "user" in session:
                sessions.log_out()
                flash("You have been logged out.")
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
    if request.method != "POST":
        return redirect(url_for("profile.overview")) if _me() else render_template("login.html")
    try:
        sessions.log_in(request.form.get("api_key", "").strip())
    except (InvalidApiKey, TooManyTries) as e:
        sentence = "This is not an API key in use." if e.status == 401 else e.message
        return render_template("login.html", error=sentence), e.status, e.headers
    return redirect(url_for("profile.overview"))


@bp.route("/logout", methods=["GET", "POST"])
def logout():
    """Log out; by GET it is asked for first, since anybody can make a browser follow a link."""
    if request.method != "POST":
        return render_template("logout.html", user=_me())
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
    rows = _numbers(user, PAGE + 1, _asked("before"))
    return render_template("numbers.html", user=user, numbers=rows)


@bp.get("/profile/messages")
@logged_in
def messages(user):
    rows = history.messages(user, PAGE + 1, before=_asked("before"))[::-1]
    return render_template("messages.html", user=user, messages=rows)


@bp.post("/profile/reveal")
@logged_in
def reveal(user):
    """Show codes and texts in this session, or hide them again; never by a URL."""
    session["reveal"] = request.form.get("reveal") == "1"
    page = request.form.get("page")
    return redirect(url_for(f"profile.{page if page in REVEALING else 'overview'}"))


@bp.route("/profile/edit", methods=["GET", "POST"])
@logged_in
def edit(user):
    """The Webhook URL and the preferred number format."""
    if request.method != "POST":
        tested = history.last_attempt(user, _asked("tested"))
        form = {"webhook_url": user.webhook_url, "number_format": user.number_format or "full"}
        return _edit_page(user, form, tested=tested)
    form = request.form.to_dict()
    try:
        given = ProfileForm().load(form)
        url = given["webhook_url"]
        if url and (url != user.webhook_url or user.webhook_disabled_at):
            current_app.extensions["sends"].take(user.id)  # a name may take seconds to look up
            release()
            guard.check_url(url)
    except ValidationError as e:
        return _edit_page(user, form, errors=e.normalized_messages()), 400
    except TooManyTries as e:
        return _edit_page(user, form, errors={"webhook_url": [e.message]}), e.status, e.headers
    except guard.ForbiddenUrl as e:
        return _edit_page(user, form, errors={"webhook_url": [f"The URL {e}."]}), 400

    def save():
        row = User.locked(user.id)
        if row.webhook_url != given["webhook_url"] or row.webhook_disabled_at:
            delivery.set_url(row, given["webhook_url"])
            event(log, "webhook_url_set", user_id=user.id)
        row.number_format = given["number_format"]

    transact(save)
    flash("Saved.")
    return redirect(url_for("profile.edit"))


@bp.post("/profile/test")
@logged_in
def send_test(user):
    """Send a test event to the endpoint; /profile/edit shows what came of it."""
    try:
        current_app.extensions["sends"].take(user.id)
    except TooManyTries as e:
        flash(e.message)
        return redirect(url_for("profile.edit"))
    sent = delivery.send_test(user)
    return redirect(url_for("profile.edit", tested=sent.id, _anchor="test"))


@bp.route("/profile/secret", methods=["GET", "POST"])
@logged_in
def rotate_secret(user):
    """A new webhook secret: shown this once, in force when the user has copied it."""
    if request.method != "POST":
        secret = new_secret()
        return _offer(user, "secret", user.webhook_secret, secret, secret)
    old, secret = _accepted(user, "secret")

    def rotate():
        row = User.locked(user.id)
        if sha256(row.webhook_secret) == old:
            delivery.rotate_secret(row, secret)
            return True
        with suppress(Unreadable):
            return unseal(row.webhook_secret) == secret
        return False

    return _rotated(user, "secret", secret and transact(rotate))


@bp.route("/profile/key", methods=["GET", "POST"])
@logged_in
def rotate_key(user):
    """A new API key: shown this once; the old one stops when the user has copied it."""
    if request.method != "POST":
        key = new_key("usr")
        return _offer(user, "key", user.key_hash, key, sha256(key))
    old, key_hash = _accepted(user, "key")

    def rotate():
        row = User.locked(user.id)
        if sha256(row.key_hash) == old:
            row.key_hash = key_hash
        return row.key_hash == key_hash

    done = key_hash and transact(rotate)
    if done:
        sessions.begin(user)  # this browser stays logged in, all others are logged out
    return _rotated(user, "key", done)


@bp.get("/profile/webhooks")
@logged_in
def webhooks(user):
    """The webhook log: every delivery with its attempts."""
    state = request.args.get("state")
    state = state if state in ("pending", "delivered", "dead") else None
    rows = history.deliveries(user, PAGE + 1, _asked("before"), state)
    return render_template("webhooks.html", user=user, deliveries=rows, state=state)


@bp.post("/profile/webhooks/redeliver")
@logged_in
def redeliver(user):
    """Try one delivery again now, or make all that failed due again."""
    current_app.extensions["sends"].take(user.id)
    wanted = request.form.get("id", "")
    if wanted == "failed":
        states = delivery.redeliver_failed(user, REDELIVER_SECONDS)
        told = ", ".join(f"{states[state]} {STATES[state]}" for state in STATES if states[state])
        flash(f"Tried again: {told}." if told else "No OTP is left to redeliver.")
    else:
        known = wanted.isascii() and wanted.isdecimal() and len(wanted) < 19
        row = db.session.get(Delivery, int(wanted)) if known else None
        if row is None or row.user_id != user.id:
            raise NotFound
        if delivery.redeliver(row.id) is None:
            told = "it is being tried just now"
        else:
            result = db.session.get(Delivery, row.id, populate_existing=True).last_result
            arrived = result.startswith("2")
            told = "delivered" if arrived else f"not delivered, {result_sentence(result)}"
        flash(f"Delivery {row.id}: {told}.")
    return redirect(url_for("profile.webhooks"))


@bp.post("/profile/webhooks/enable")
@logged_in
def enable(user):
    """Let webhooks go to the endpoint again: its circuit closed, no longer disabled."""

    def close():
        row = User.locked(user.id)
        delivery.set_url(row, row.webhook_url)

    transact(close)
    flash("Webhooks are sent again.")
    return redirect(url_for("profile.webhooks"))


@bp.get("/docs")
def docs():
    """The API documentation, from the same source as /openapi.json."""
    return render_template(
        "docs.html",
        user=_me(),
        document=openapi.document(),
        calls=openapi.ENDPOINTS,
        retries=delivery.RETRY_SECONDS,
    )


# --- shared by the views ------------------------------------------------------------------


def _me():
    return sessions.current_user()


def _edit_page(user, form, **shown):
    return render_template("edit.html", user=user, form=form, examples=EXAMPLES, **shown)


def _offer(user, what, old, shown, kept):
    """The page that shows a new key or secret; nothing is changed before its form comes back.

    The form carries what is to be kept, sealed: so neither a lost answer nor a second click can
    leave the user without the one in force, or say that it is not.
    """
    offer = seal(json.dumps([what, user.id, sha256(old), kept]))
    return render_template("rotate.html", user=user, what=what, shown=shown, offer=offer)


def _accepted(user, what):
    """(the hash of the old one, the new one) of what was offered to the user; two None when that
    is not what came back."""
    try:
        offered = json.loads(unseal(request.form.get("offer", "")))
    except Unreadable:
        return None, None
    return offered[2:] if offered[:2] == [what, user.id] else (None, None)


def _rotated(user, what, done):
    if done:
        event(log, f"{what}_rotated", user_id=user.id)
    flash(f"The new {what} is in force." if done else f"The {what} was not rotated: look again.")
    return redirect(url_for("profile.edit"))


def _numbers(user, limit, before=None):
    return history.numbers(user, limit, before, states=("assigned", "unknown"))


def _asked(name):
    try:
        return PageQuery().load(request.args.to_dict()).get(name)
    except ValidationError as e:
        raise NotFound from e


@bp.app_template_filter("result")
def result_sentence(result):
    """A delivery's result as its owner understands it."""
    if result and result.isdecimal():
        return f"answered {result}" + " (a redirect is not followed)" * (result[0] == "3")
    return RESULTS.get(result, result or "not tried yet")


@bp.app_template_filter("moment")
def moment(time):
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


@bp.app_template_filter("compact")
def compact(value):
    """JSON as it goes over the wire."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@bp.app_template_filter("duration")
def duration(seconds):
    """`seconds` in the largest unit that it is a whole number of."""
    size, unit = next(x for x in ((3600, "h"), (60, "min"), (1, "s")) if seconds % x[0] == 0)
    return f"{seconds // size} {unit}"


@bp.app_template_filter("code")
def code(text):
    """`text` escaped, what is between backticks as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


@bp.app_context_processor
def template_globals():
    return {
        "now": utcnow,
        "revealed": lambda: session.get("reveal", False),
        "page_size": PAGE,
        "state_names": STATES,
    }


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
        sentence = NotFound.message if error.code == NotFound.status else error.description
        status, headers = error.code, {}
        if getattr(error, "valid_methods", None):
            headers["Allow"] = ", ".join(error.valid_methods)
    elif isinstance(error, ApiError):
        status, sentence, headers = error.status, error.message, error.headers
    else:
        event(log, "unexpected_error", logging.ERROR, exc_info=True)
        status, sentence, headers = 500, "Something went wrong on our side.", {}
    user = _me() if status < 500 else None
    page = render_template(
        "error.html", status=status, sentence=sentence, request_id=request_id(), user=user
    )
    return page, status, headers


def secure(response):
    """Headers of every answer: nothing runs, frames or leaks what we serve."""
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("X-Frame-Options", "DENY")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    if request.endpoint != "static":
        response.headers.setdefault("Cache-Control", "no-store")
    return response
