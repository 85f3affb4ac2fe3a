"""Any gateway: one that can be told what to send, or whose fields are found with --field."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from flask import Request
from marshmallow import ValidationError

from service.errors import BadRequest
from service.fields import Phone
from service.sms import forms
from service.sms.gateways.gateway import Gateway, Options, json_value
from service.sms.gateways.paths import is_path, put, walk
from service.sms.gateways.recipients import BARE, ending_in, international, own_number
from service.sms.incoming import Sms, read

NAMES = {
    "phone_number": ("phone_number", "to"),
    "sms_text": ("sms_text", "text", "message", "body"),
    "message_id": ("id", "message_id", "messageId"),
    "otp_code": ("otp_code",),
    "received_at": ("received_at",),
    "sender": ("sender", "from"),
    "sim": ("sim", "simNumber", "sim_number"),
}
# Further out, these are an event's or a batch's
OWN = ("sms_text", "message_id", "otp_code")
# In Options.fields, the path of the list of SMS
LIST = "sms"
FIELDS = (*NAMES, LIST)
# For the setup text
SAMPLES = {
    "phone_number": "+447400849540",
    "message_id": "42",
    "otp_code": "493817",
    "sender": "Bank",
    "sim": "1",
}


def parse(request: Request, options: Options) -> Sms | list[Sms]:
    """JSON (an object, or a list of them), a form or the query string.

    A field is where Options.fields says, in the SMS or in the body; else it has one of its NAMES
    beside the text, or in what the text lies in. What is not there may be in the query string.
    """
    body = _body(request)
    found = walk(body, options.fields[LIST])[1] if LIST in options.fields else body
    outer, query = body if isinstance(body, dict) else {}, forms.query(request).to_dict()
    if isinstance(found, dict):
        return _sms(_fields(found, outer, query, options.fields), options)
    items = found if isinstance(found, list) else []
    if not items or not all(isinstance(item, dict) for item in items):
        why = (
            f"there is no list of objects at {options.fields[LIST]}"
            if LIST in options.fields
            else "must be objects"
        )
        raise BadRequest(f"{LIST} must be a list of objects", errors={LIST: [why]})
    messages: list[Sms] = []
    errors: dict[str, Any] = {}
    for n, item in enumerate(items):
        try:
            messages.append(_sms(_fields(item, outer, query, options.fields), options))
        except BadRequest as e:
            errors |= {f"{n}.{name}": why for name, why in (e.errors or {}).items()}
    if errors:
        raise BadRequest(f"Invalid {', '.join(errors)}", errors=errors)
    return messages


def check_field(name: str, path: str) -> None:
    """Raise ValueError, a sentence, unless `path` may be where the field `name` is."""
    if name not in FIELDS:
        raise ValueError(f"there is no field {name!r}: it is one of {', '.join(FIELDS)}")
    if not is_path(path):
        raise ValueError(f"{name} needs a path, such as data.messages.0.text")


def _body(request: Request) -> Any:
    """The body: JSON, whatever its content type says, or a form; empty if it is neither."""
    body = json_value(request)
    if isinstance(body, dict | list):
        return body
    if request.is_json and request.get_data():
        raise BadRequest("The body must be a JSON object, or a list of them")
    return forms.form(request).to_dict()


def _fields(
    item: dict[str, Any], body: dict[str, Any], query: dict[str, str], paths: Mapping[str, str]
) -> dict[str, Any]:
    """What `item`, one SMS of `body`, tells of each field; without those that it does not tell."""
    around, _ = walk(item, paths.get("sms_text", "sms_text"))
    *outside, beside = [body, *(holder for holder in around if isinstance(holder, dict))]
    fields: dict[str, Any] = {}
    for name, aliases in NAMES.items():
        if name in paths:
            holders = [item, query] if name in OWN else [item, body, query]
            values = [walk(holder, paths[name])[1] for holder in holders]
        else:
            holders = [beside] if name in OWN else [beside, *reversed(outside)]
            values = [holder.get(alias) for holder in holders for alias in aliases]
        values += [query.get(alias) for alias in aliases]
        fields |= next(({name: value} for value in values if _is_told(name, value)), {})
    return fields


def _is_told(name: str, value: Any) -> bool:
    """A form sends what it does not know as empty; but the text of an SMS may be empty."""
    if isinstance(value, str):
        return bool(value.strip()) or name == "sms_text"
    return value is not None


def _sms(fields: dict[str, Any], options: Options) -> Sms:
    numbers, told, sim = options.numbers, fields.get("phone_number"), fields.pop("sim", None)
    try:
        return read(fields, _recipient(numbers, told, sim) if numbers else None)
    except BadRequest as e:
        # Who set the path up reads this: where it was looked for
        errors = e.errors or {}
        for name in errors.keys() & options.fields.keys() - fields.keys():
            errors[name] = [f"there is nothing at {options.fields[name]}"]
        raise


def _recipient(numbers: Mapping[str, str], told: Any, sim: Any) -> str:
    """The digits of the recipient; "" if it is not certain.

    Here a number needs no `+`. But it has to be one: a SIM's or a contact's name is none, nor is a
    local number.
    """
    if digits := international(told) or ending_in(numbers, told):
        return digits
    try:
        digits = Phone().deserialize(told)
    except ValidationError:
        digits = ""
    return digits if digits and digits[0] != "0" else own_number(numbers, told, sim)


def _setup(options: Options) -> str:
    """A command that sends an SMS as these options want it."""
    sms = {"sms_text": "Your code is 493817"}
    sims = [sim for sim in options.numbers if sim != BARE]
    if sims:
        sms["sim"] = sims[0]
    elif not options.numbers:
        sms["phone_number"] = "+447400849540"
    if not options.fields:
        usual = {"sms_text": "text", "phone_number": "to"}
        fields = [f"{usual.get(name, name)}={value}" for name, value in sms.items()] + ["id=42"]
        return f"curl 'URL' {' '.join(f'-d {shlex.quote(field)}' for field in fields)}"
    sms = {name: SAMPLES[name] for name in options.fields if name in SAMPLES} | sms
    item: Any = None
    for name, value in sms.items():
        item = put(item, options.fields.get(name, name), value)
    body = put(None, options.fields[LIST], [item]) if LIST in options.fields else item
    text = shlex.quote(json.dumps(body))
    return f"curl 'URL' -H 'Content-Type: application/json' -d {text}"


GATEWAY = Gateway(
    parse,
    get=True,
    heeds=frozenset({"numbers", "fields", "reply"}),
    setup=_setup,
)
