"""A main server to try the service against: an app of its own, in memory, with made-up numbers."""

import json
import logging
import random
import secrets
import threading
import time
from datetime import UTC, datetime

import requests
from flask import Flask, request

from service.webhooks import sign

log = logging.getLogger(__name__)

# id: (name, phone code, mobile prefixes, digits after the prefix, operators)
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

# operator_ids that misbehave, in every country
NO_NUMBER, DELAY, ERROR_500, MALFORMED, DUPLICATE_SMS, LATE_SMS = range(9001, 9007)
MAGIC = {
    NO_NUMBER: "has no number (404)",
    DELAY: "answers after the delay",
    ERROR_500: "answers 500",
    MALFORMED: "answers HTML",
    DUPLICATE_SMS: "sends every SMS twice",
    LATE_SMS: "gives the same number again and again, and sends its SMS after the delay",
}


def operators():
    """All operators as init lists them."""
    listed = [
        {"id": 100 * country_id + n, "name": name, "country_id": country_id}
        for country_id, (*_, names) in COUNTRIES.items()
        for n, name in enumerate(names, 1)
    ]
    return listed + [
        {"id": id, "name": f"Sandbox: {what}", "country_id": None} for id, what in MAGIC.items()
    ]


def create_sandbox(api_key, deliver_to=None, webhook_secret=None, delay=3.0):
    """The sandbox as a WSGI app.

    `api_key` is the SYSTEM_API_KEY it takes; `deliver_to` the URL that its SMS are POSTed to
    (…/api/ingest/SYSTEM_API_KEY), signed with `webhook_secret` when given; `delay` in seconds.
    """
    app = Flask(__name__)
    app.json.sort_keys = False
    app.config.update(DELIVER_TO=deliver_to)
    granted = {}  # digits -> operator_id
    by_key = {}  # Idempotency-Key -> digits
    lock = threading.Lock()

    def error(status, message):
        return {"status": "error", "message": message}, status

    @app.get("/api/init/<path:key>")
    def init(key):
        if key != api_key:
            return error(401, "Unauthorized")
        countries = [
            {"id": id, "name": name, "phone_code": code}
            for id, (name, code, *_) in COUNTRIES.items()
        ]
        return {"status": "success", "data": {"countries": countries, "operators": operators()}}

    @app.get("/api/get-number/<path:key>")
    def get_number(key):
        if key != api_key:
            return error(401, "Invalid api_key")
        country_id = request.args.get("country_id", type=int)
        operator_id = request.args.get("operator_id", type=int)
        if country_id not in COUNTRIES:
            return error(404, "No number received")
        if operator_id == NO_NUMBER:
            return error(404, "No number received")
        if operator_id == ERROR_500:
            return error(500, "The sandbox fails as asked")
        if operator_id == MALFORMED:
            return "<html>The sandbox talks nonsense as asked</html>"
        if operator_id == DELAY:
            time.sleep(delay)
        mine = [o for o in operators() if o["country_id"] == country_id]
        operator = next((o for o in operators() if o["id"] == operator_id), random.choice(mine))
        with lock:
            digits = by_key.get(request.headers.get("Idempotency-Key"))
            if digits is None:
                digits = fresh(country_id, operator["id"])
            granted[digits] = operator["id"]
            if given := request.headers.get("Idempotency-Key"):
                by_key[given] = digits
        return {
            "status": "success",
            "data": {"phone_number": f"+{digits}", "operator": operator, "operators": mine},
        }

    def fresh(country_id, operator_id):
        _, code, prefixes, length, _ = COUNTRIES[country_id]
        if operator_id == LATE_SMS:
            return code + prefixes[0] + "0" * length
        while True:
            digits = (
                code + random.choice(prefixes) + str(random.randrange(10**length)).zfill(length)
            )
            if digits not in granted:
                return digits

    @app.post("/sms")
    def sms():
        """A fake SMS (phone_number, sms_text, otp_code): what the world would send the number."""
        given = request.get_json() if request.is_json else request.values
        digits = given.get("phone_number", "").strip().lstrip("+")
        text = given.get("sms_text") or f"Your code is {random.randrange(10**6):06}"
        if digits not in granted:
            return error(404, "The sandbox has granted no such number")
        data = {
            "phone_number": f"+{digits}",
            "otp_code": given.get("otp_code"),
            "provider": "sandbox",
            "sms_text": text,
        }
        message_id = f"msg_{secrets.token_hex(12)}"
        if granted[digits] == LATE_SMS:
            data["received_at"] = datetime.now(UTC).isoformat()
            timer = threading.Timer(delay, deliver, (message_id, data))
            timer.daemon = True
            timer.start()
            return {"status": "success", "data": {"sent": "later"}}, 202
        answers = [deliver(message_id, data)]
        if granted[digits] == DUPLICATE_SMS:
            answers.append(deliver(message_id, data))
        return {"status": "success", "data": {"sent": text, "answers": answers}}

    def deliver(message_id, data):
        body = json.dumps({"event": "otp_received", "data": data}).encode()
        headers = {"Content-Type": "application/json", "webhook-id": message_id}
        if webhook_secret:
            headers["webhook-timestamp"] = str(int(time.time()))
            headers["webhook-signature"] = sign(
                webhook_secret, message_id, headers["webhook-timestamp"], body
            )
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(app.config["DELIVER_TO"], data=body, headers=headers, timeout=30)
        return answer.json()

    return app
