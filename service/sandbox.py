"""A main server for trying out the service: a separate in-memory app with made-up numbers."""

import json
import random
import secrets
import threading
import time
from datetime import UTC, datetime
from typing import Any

import requests
from flask import Flask, request

from service.webhooks.signing import sign

# id: (name, phone code, mobile prefixes, number of digits after the prefix, operators)
COUNTRIES = {
    1: ("United States", "1", ("202555", "312555"), 4, ("AT&T", "Verizon", "T-Mobile US")),
    2: ("United Kingdom", "44", ("7400", "7911"), 6, ("EE", "O2 UK", "Vodafone UK", "Three UK")),
    3: ("Germany", "49", ("151", "171"), 8, ("Telekom", "Vodafone DE", "O2 DE")),
    4: ("France", "33", ("6", "7"), 8, ("Orange FR", "SFR", "Bouygues", "Free Mobile")),
    5: ("Spain", "34", ("6", "71"), 8, ("Movistar", "Orange ES", "Vodafone ES")),
    6: ("Italy", "39", ("320", "347"), 7, ("TIM", "Vodafone IT", "WindTre", "Iliad")),
    7: ("Netherlands", "31", ("6",), 8, ("KPN", "Odido", "Vodafone NL")),
    8: ("Poland", "48", ("50", "60"), 7, ("Play", "Orange PL", "Plus", "T-Mobile PL")),
    9: ("Sweden", "46", ("70", "73"), 7, ("Telia", "Tele2", "Telenor SE")),
    10: ("Türkiye", "90", ("530", "542"), 7, ("Turkcell", "Vodafone TR", "Türk Telekom")),
    11: ("Egypt", "20", ("10", "11", "12"), 8, ("Orange EG", "Vodafone EG", "e& EG", "WE")),
    12: ("Saudi Arabia", "966", ("50", "55"), 7, ("stc", "Mobily", "Zain SA")),
    13: ("United Arab Emirates", "971", ("50", "55"), 7, ("e& UAE", "du", "Virgin Mobile UAE")),
    14: ("India", "91", ("98", "70"), 8, ("Jio", "Airtel", "Vi", "BSNL")),
    15: ("Pakistan", "92", ("300", "345"), 7, ("Jazz", "Telenor PK", "Zong")),
    16: ("Indonesia", "62", ("811", "857"), 8, ("Telkomsel", "Indosat", "XL Axiata")),
    17: ("Philippines", "63", ("917", "920"), 7, ("Globe", "Smart", "DITO")),
    18: ("Viet Nam", "84", ("90", "98"), 7, ("Viettel", "Vinaphone", "MobiFone")),
    19: ("Japan", "81", ("70", "80", "90"), 8, ("NTT Docomo", "au", "SoftBank")),
    20: ("Brazil", "55", ("119", "219"), 8, ("Vivo", "Claro BR", "TIM BR")),
    21: ("Mexico", "52", ("55", "81"), 8, ("Telcel", "Movistar MX", "AT&T MX")),
    22: ("Nigeria", "234", ("803", "701"), 7, ("MTN NG", "Airtel NG", "Glo")),
    23: ("South Africa", "27", ("72", "83"), 7, ("Vodacom", "MTN ZA", "Cell C")),
    24: ("Ukraine", "380", ("50", "67"), 7, ("Kyivstar", "Vodafone UA", "lifecell")),
}

# operator_ids that misbehave, in any country
NO_NUMBER, DELAY, ERROR_500, MALFORMED, DUPLICATE_SMS, LATE_SMS = range(9001, 9007)
MAGIC = {
    NO_NUMBER: "has no number (404)",
    DELAY: "answers after the delay",
    ERROR_500: "answers 500",
    MALFORMED: "answers HTML",
    DUPLICATE_SMS: "sends every SMS twice",
    LATE_SMS: "always grants the same number, and sends its SMS after the delay",
}


def random_digits(country_id: int) -> str:
    """A number of a country, as digits."""
    _, code, prefixes, length, _ = COUNTRIES[country_id]
    return code + random.choice(prefixes) + str(random.randrange(10**length)).zfill(length)


def operators() -> list[dict[str, Any]]:
    """All operators, as init lists them."""
    listed = [
        {"id": 100 * country_id + n, "name": name, "country_id": country_id}
        for country_id, (*_, names) in COUNTRIES.items()
        for n, name in enumerate(names, 1)
    ]
    return listed + [
        {"id": id, "name": f"Sandbox: {what}", "country_id": None} for id, what in MAGIC.items()
    ]


def create_sandbox(
    api_key: str,
    deliver_to: str | None = None,
    webhook_secret: str | None = None,
    delay: float = 3.0,
) -> Flask:
    """The sandbox as a WSGI app.

    `api_key` is the SYSTEM_API_KEY it accepts; `deliver_to` is the URL its SMS are POSTed to
    (…/api/ingest/SYSTEM_API_KEY), signed with `webhook_secret` if given; `delay` is in seconds.
    """
    app = Flask(__name__)
    app.json.sort_keys = False  # type: ignore[attr-defined]  # on Flask's default provider
    app.config.update(DELIVER_TO=deliver_to)
    sandbox = _Sandbox(app, api_key, webhook_secret, delay)
    app.add_url_rule("/api/init/<path:key>", view_func=sandbox.init)
    app.add_url_rule("/api/get-number/<path:key>", view_func=sandbox.get_number)
    app.add_url_rule("/sms", view_func=sandbox.sms, methods=["POST"])
    return app


def _error(status: int, message: str) -> tuple[dict[str, Any], int]:
    return {"status": "error", "message": message}, status


# What the magic operators return instead of a number
FAILURES: dict[int | None, Any] = {
    NO_NUMBER: _error(404, "No number received"),
    ERROR_500: _error(500, "The sandbox failed on request"),
    MALFORMED: "<html>The sandbox returned garbage on request</html>",
}


class _Sandbox:
    def __init__(self, app: Flask, api_key: str, webhook_secret: str | None, delay: float) -> None:
        self.app, self.api_key, self.webhook_secret = app, api_key, webhook_secret
        self.delay = delay
        self.granted: dict[str, int] = {}  # digits -> operator_id
        self.by_key: dict[str | None, str] = {}  # Idempotency-Key -> digits
        self.lock = threading.Lock()

    def init(self, key: str) -> Any:
        if key != self.api_key:
            return _error(401, "Unauthorized")
        countries = [
            {"id": id, "name": name, "phone_code": code}
            for id, (name, code, *_) in COUNTRIES.items()
        ]
        return {"status": "success", "data": {"countries": countries, "operators": operators()}}

    def get_number(self, key: str) -> Any:
        if key != self.api_key:
            return _error(401, "Invalid api_key")
        country_id = request.args.get("country_id", type=int)
        operator_id = request.args.get("operator_id", type=int)
        if country_id not in COUNTRIES:
            return _error(404, "No number received")
        if operator_id in FAILURES:
            return FAILURES[operator_id]
        if operator_id == DELAY:
            time.sleep(self.delay)
        of_country = [o for o in operators() if o["country_id"] == country_id]
        asked = (o for o in operators() if o["id"] == operator_id)
        operator = next(asked, random.choice(of_country))
        once = request.headers.get("Idempotency-Key")
        digits = self.grant(country_id, operator["id"], once)
        data = {"phone_number": f"+{digits}", "operator": operator, "operators": of_country}
        return {"status": "success", "data": data}, {"Idempotency-Key": once} if once else {}

    def grant(self, country_id: int, operator_id: int, idempotency_key: str | None) -> str:
        """The digits of a new number, or of the one that the Idempotency-Key got before."""
        with self.lock:
            digits = self.by_key.get(idempotency_key) or self.fresh(country_id, operator_id)
            self.granted[digits] = operator_id
            if idempotency_key:
                self.by_key[idempotency_key] = digits
        return digits

    def fresh(self, country_id: int, operator_id: int) -> str:
        if operator_id == LATE_SMS:
            _, code, prefixes, length, _ = COUNTRIES[country_id]
            return code + prefixes[0] + "0" * length
        while True:
            digits = random_digits(country_id)
            if digits not in self.granted:
                return digits

    def sms(self) -> Any:
        """Send a fake SMS (phone_number, sms_text, otp_code) to a granted number."""
        given = request.get_json() if request.is_json else request.values
        digits = given.get("phone_number", "").strip().lstrip("+")
        text = given.get("sms_text") or f"Your code is {random.randrange(10**6):06}"
        if digits not in self.granted:
            return _error(404, "The sandbox has granted no such number")
        data = {
            "phone_number": f"+{digits}",
            "otp_code": given.get("otp_code"),
            "provider": "sandbox",
            "sms_text": text,
        }
        message_id = f"msg_{secrets.token_hex(12)}"
        if self.granted[digits] == LATE_SMS:
            data["received_at"] = datetime.now(UTC).isoformat()
            timer = threading.Timer(self.delay, self.deliver, (message_id, data))
            timer.daemon = True
            timer.start()
            return {"status": "success", "data": {"sent": "later"}}, 202
        answers = [self.deliver(message_id, data)]
        if self.granted[digits] == DUPLICATE_SMS:
            answers.append(self.deliver(message_id, data))
        return {"status": "success", "data": {"sent": text, "answers": answers}}

    def deliver(self, message_id: str, data: dict[str, Any]) -> Any:
        body = json.dumps({"event": "otp_received", "data": data}).encode()
        headers = {"Content-Type": "application/json", "webhook-id": message_id}
        if self.webhook_secret:
            timestamp = str(int(time.time()))
            headers["webhook-timestamp"] = timestamp
            headers["webhook-signature"] = sign(self.webhook_secret, message_id, timestamp, body)
        with requests.Session() as session:
            session.trust_env = False
            url = self.app.config["DELIVER_TO"]
            return session.post(url, data=body, headers=headers, timeout=30).json()
