"""The API's description for programs: /openapi.json."""

from functools import cache
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow.fields import Field

from service.api.endpoints import (
    ENDPOINTS,
    INGEST_BY_GET,
    INTRODUCTION,
    PHONE_PATTERN,
    TOO_LONG,
    WEBHOOK,
    Endpoint,
    Failure,
    paragraphs,
)
from service.fields import Digits, Moment, Phone, Text
from service.version import VERSION


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document, as a dict; `x-failures` lists each error of a call."""
    plugin = MarshmallowPlugin()
    info = {"description": "\n\n".join(paragraphs(INTRODUCTION))}
    spec = APISpec("OTP number service", VERSION, "3.1.0", plugins=[plugin], info=info)
    converter = plugin.converter
    assert converter is not None  # the plugin is in use
    text, moment = ("string", None), ("string", "date-time")
    converter.field_mapping |= {Digits: ("integer", None), Text: text, Phone: text, Moment: moment}
    converter.add_attribute_function(_bounds)
    spec.components.schema("Error", _object(status={"const": "error"}, message={"type": "string"}))
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    api_key = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    spec.components.security_scheme("header", api_key)
    for endpoint in (*ENDPOINTS, INGEST_BY_GET):
        operation = _operation(endpoint, converter)
        schemes: list[dict[str, Any]] = [{"bearer": []}, {"header": []}]
        headers = {"security": schemes} if endpoint.key else {}
        spec.path(endpoint.path, operations={endpoint.method: operation | headers})
        if endpoint.key:
            path = f"{endpoint.path}/{{{endpoint.key}}}"
            spec.path(path, operations=_by_path(endpoint, operation))
    return spec.to_dict() | {"webhooks": {"otp_received": {"post": WEBHOOK}}}


def _operation(endpoint: Endpoint, converter: Any) -> dict[str, Any]:
    parameters = [*endpoint.headers]
    for schema in endpoint.query:
        parameters += converter.schema2parameters(schema(), location="query")
    # An empty parameter counts as missing
    for parameter in parameters:
        if parameter["in"] == "query" and not parameter.get("required"):
            parameter["allowEmptyValue"] = True
    answer = _object(status={"const": "success"}, data=endpoint.answer)
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": ["operator" if endpoint.for_operator else "user"],
        "parameters": parameters,
        "responses": {"200": _response("success", answer)} | _failures(endpoint) | TOO_LONG,
        "x-failures": [
            {"status": status, "message": message, "when": when}
            for (status, message), when in map(_plain, endpoint.failures)
        ],
    }
    if endpoint.notes:
        operation["description"] = "\n\n".join(paragraphs(endpoint.notes))
    if endpoint.body:
        kinds = ("application/json", "application/x-www-form-urlencoded")
        content = {kind: {"schema": endpoint.body} for kind in kinds}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _by_path(endpoint: Endpoint, operation: dict[str, Any]) -> dict[str, Any]:
    key = {"in": "path", "name": endpoint.key, "required": True, "schema": {"type": "string"}}
    changes = {
        "operationId": f"{endpoint.name}_by_path",
        "summary": f"{endpoint.summary} (The key in the path.)",
        "parameters": [key, *operation["parameters"]],
    }
    return {endpoint.method: operation | changes}


def _failures(endpoint: Endpoint) -> dict[str, Any]:
    """A response for each status, with the messages that go with it."""
    sentences: dict[str, dict[str, None]] = {}
    for (status, message), _ in map(_plain, endpoint.failures):
        status = "default" if status == "its own" else str(status)
        sentences.setdefault(status, {})[message] = None
    return {status: _response("; ".join(said), "Error") for status, said in sentences.items()}


def _plain(failure: Failure) -> tuple[tuple[int | str, str], str]:
    error, when = failure
    return (error if isinstance(error, tuple) else (error.status, error.message)), when


def _response(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _bounds(self: Any, field: Field[Any], **kwargs: Any) -> dict[str, Any]:
    if isinstance(field, Digits):
        return {"minimum": field.low, "maximum": field.high}
    return {"pattern": PHONE_PATTERN} if isinstance(field, Phone) else {}
