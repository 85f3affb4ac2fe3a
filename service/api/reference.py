"""What people read of the API, on /docs and in docs/api.md."""

import json
from typing import Any, NamedTuple

from service.api import openapi
from service.api.endpoints import ENDPOINTS, WEBHOOK, Endpoint, paragraphs


class Call(NamedTuple):
    """A call as people read it; the texts have code between backticks.

    `command` is a line for a shell that knows $KEY or $INGEST_KEY. `parameters` are (name,
    meaning), `failures` (status, message, when).
    """

    name: str
    title: str
    for_operator: bool
    paragraphs: list[str]
    command: str
    answer: str
    parameters: list[tuple[str, str]]
    failures: list[tuple[str, str, str]]


class Webhook(NamedTuple):
    """The webhook as people read it: `headers` are (name, meaning), `answers` (the receiver's
    answer, what follows)."""

    summary: str
    body: str
    description: str
    headers: list[tuple[str, str]]
    answers: list[tuple[str, str]]


def webhook() -> Webhook:
    body = WEBHOOK["requestBody"]["content"]["application/json"]["example"]
    return Webhook(
        WEBHOOK["summary"],
        json.dumps(body, separators=(",", ":"), ensure_ascii=False),
        WEBHOOK["description"],
        [(f"`{header['name']}`", header["description"]) for header in WEBHOOK["parameters"]],
        [
            (status.replace("default", "anything else"), answer["description"])
            for status, answer in WEBHOOK["responses"].items()
        ],
    )


def calls(base: str) -> list[Call]:
    """All calls, in the order in which a user needs them; `base` is the service's address."""
    return [_call(endpoint, base) for endpoint in ENDPOINTS]


def _call(endpoint: Endpoint, base: str) -> Call:
    operation = openapi.document()["paths"][endpoint.path][endpoint.method]
    key = f"/{{{endpoint.key}}}" if endpoint.key else ""
    body = endpoint.body or {"properties": {}, "required": []}
    parameters = [_parameter(parameter) for parameter in operation["parameters"]]
    for name, field in body["properties"].items():
        parameters.append((f"`{name}`", _meaning(field["description"], name in body["required"])))
    return Call(
        endpoint.name,
        f"{endpoint.method.upper()} {endpoint.path}{key}",
        endpoint.for_operator,
        [endpoint.summary, *filter(None, [body.get("description")]), *paragraphs(endpoint.notes)],
        _command(endpoint, base),
        f'{{"status":"success","data":{endpoint.example}}}',
        parameters,
        [(str(f["status"]), f["message"], f["when"]) for f in operation["x-failures"]],
    )


def _command(endpoint: Endpoint, base: str) -> str:
    key = {"api_key": "$KEY", "ingest_key": "$INGEST_KEY"}.get(endpoint.key or "")
    header = f' -H "Authorization: Bearer {key}"' if key else ""
    return f'curl "{base}{endpoint.path}{endpoint.query_example}"{header}{endpoint.body_example}'


def _parameter(parameter: dict[str, Any]) -> tuple[str, str]:
    schema = parameter["schema"]
    text = parameter["description"]
    if parameter["in"] == "header":
        text += " A header."
    if "enum" in schema:
        text += f" One of {', '.join(f'`{value}`' for value in schema['enum'])}."
    if "default" in schema:
        least, most = schema["minimum"], schema["maximum"]
        text += f" From {least} to {most}, default {schema['default']}."
    return f"`{parameter['name']}`", _meaning(text, parameter.get("required", False))


def _meaning(text: str, is_required: bool) -> str:
    return f"Required. {text}" if is_required else text
