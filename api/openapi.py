"""The OpenAPI 3.1 document, made of the table of routes and the Structs they name. Nothing in it is written twice."""

import re
from typing import Any

import msgspec
from msgspec import Struct

from api import params
from api.contract import JSON, Answer, Operation
from api.errors import MEDIA_TYPE, TITLES, Problem, ProblemError
from api.errors import document as problem_document
from api.ingest_schema import SCHEMAS
from api.routes import ALIAS, OPERATIONS

_REF = "#/components/schemas/{name}"
_ID = "4f1c2a9be07d3358"
_DETAILS = {
    400: "Invalid HTTP request received.",
    401: "Send a token in the header: Authorization: Bearer TOKEN",
    403: "This needs a token of the role write; dashboard has the role read",
    404: "Nobody knows the vehicle vehicle-9999: it has sent no reading",
    405: "PATCH is not allowed at /v1/links; allowed: GET, HEAD, POST",
    408: "The body comes too slowly",
    409: "The link overlaps another: vehicle vehicle-0001 is linked with meter meter-0007",
    410: "vehicle-0001 has no open link any more; GET /v1/links?vehicleId=vehicle-0001 lists all of its links",
    413: "The body is too large; allowed: 67108864 bytes",
    415: "Content-Type is 'text/plain'; allowed: application/json",
    421: "Without tokens only this machine may ask, and only under the names localhost, 127.0.0.1 and [::1]",
    422: "`limit` is '0'; allowed: a whole number from 1 to 1000",
    431: "The head of the request is too large; allowed: 16384 bytes",
    500: f"Something went wrong here; the log has it under the request id {_ID}",
    503: "The database is away; nothing was lost, send the request again",
}
_PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": "how to send a token"},
    405: {"Allow": "the methods that are"},
    503: {"Retry-After": "seconds"},
}
_DESCRIPTION = f"""Readings of smart meters and electric vehicles, which vehicle charges at which meter, and how much
energy is lost between the two.

Everything is served below `{ALIAS}` too. Times are RFC 3339 with an offset, windows are half-open, lists are paged by
`next` and `cursor`. Errors are problem documents (RFC 9457) with the same shape everywhere, unknown routes (404) and
methods (405) included; `requestId` is what the log knows them by.

Tokens have the roles `read`, `write` and `admin`; each includes those before it. Without a tokens file the sidecar
listens on the loopback interface only, and asks for none."""


def document() -> dict[str, Any]:
    """The whole of it."""
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.full_path, {})[operation.method.lower()] = _operation(operation, schemas)
    schemas.of(Problem)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fleetwatt", "version": "1", "description": _DESCRIPTION},
        "servers": [{"url": "/"}, {"url": ALIAS}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": {**schemas.found, **SCHEMAS},
            "responses": {slug: _problem_response(status) for status, (slug, _) in TITLES.items()},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "made by `python -m api token`"},
                "browser": {"type": "http", "scheme": "basic", "description": "the token as the password"},
            },
        },
    }


class _Schemas:
    """JSON Schemas of types; Structs go to the components."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def of(self, annotation: Any) -> dict[str, Any]:
        """The schema of a type."""
        (schema,), components = msgspec.json.schema_components([annotation], ref_template=_REF)
        self.found.update({name: _portable(component) for name, component in components.items()})
        found: dict[str, Any] = _portable(schema)
        return found

    def of_body(self, struct: type[Struct]) -> dict[str, Any]:
        """The schema of a body: unknown fields are refused, and so is what the sentence would quote."""
        ref = self.of(struct)
        self.found[struct.__name__]["additionalProperties"] = False
        return ref


def _portable(schema: Any) -> Any:
    """`\\Z` is how Python says what `$` says in a JSON Schema."""
    if isinstance(schema, dict):
        return {
            key: re.sub(r"\\Z$", "$", value) if key == "pattern" else _portable(value)
            for key, value in schema.items()
            if not (key == "default" and value is None)
        }
    return [_portable(value) for value in schema] if isinstance(schema, list) else schema


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    found: dict[str, Any] = {"operationId": operation.id, "tags": [operation.tag], "summary": operation.summary}
    description = [operation.description] if operation.description else []
    if operation.role:
        description.append(f"Needs the role `{operation.role.name}`, where there are tokens.")
    found["description"] = "\n\n".join(description)
    found["security"] = _security(operation)
    if parameters := [
        *_parameters(operation.path_type, "path", schemas),
        *_parameters(operation.query, "query", schemas),
    ]:
        found["parameters"] = parameters
    if body := _body(operation, schemas):
        found["requestBody"] = {"required": True, "content": body}
    found["responses"] = {
        **{str(status): _answer(answer, schemas) for status, answer in operation.answers.items()},
        **{
            str(status): {"$ref": f"#/components/responses/{TITLES[status][0]}"}
            for status in operation.problem_statuses
        },
    }
    return found


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    if operation.role is None:
        return []
    return [{"token": []}, {"browser": []}] if operation.from_browser else [{"token": []}]


def _parameters(struct: type[Struct], where: str, schemas: _Schemas) -> list[dict[str, Any]]:
    types = params.field_types(struct)
    found = []
    for info in msgspec.structs.fields(struct):
        schema = schemas.of(types[info.encode_name])
        parameter: dict[str, Any] = {
            "name": info.encode_name,
            "in": where,
            "required": where == "path" or info.required,
        }
        if "description" in schema:
            parameter["description"] = schema.pop("description")
        if "examples" in schema:
            parameter["example"] = schema.pop("examples")[0]
        if not info.required and info.default not in (None, msgspec.NODEFAULT):
            schema["default"] = info.default
        found.append({**parameter, "schema": schema})
    return found


def _body(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    if operation.body is None:
        return operation.body_media
    example = {key: value for key, value in msgspec.to_builtins(operation.body_example).items() if value is not None}
    return {JSON: {"schema": schemas.of_body(operation.body), "examples": {"example": {"value": example}}}}


def _answer(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        found["headers"] = _headers(answer.headers)
    content: dict[str, Any] = {}
    for media_type in answer.media_types if answer.type or answer.media_types != (JSON,) else ():
        schema = schemas.of(answer.type) if media_type == JSON else {"type": "string"}
        content[media_type] = {"schema": schema}
        if media_type in answer.examples:
            content[media_type]["examples"] = {"example": {"value": msgspec.to_builtins(answer.examples[media_type])}}
    if content:
        found["content"] = content
    return found


def _problem_response(status: int) -> dict[str, Any]:
    example = msgspec.json.decode(problem_document(ProblemError(status, _DETAILS[status]), _ID))
    found: dict[str, Any] = {
        "description": TITLES[status][1],
        "content": {
            MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}, "examples": {"example": {"value": example}}}
        },
    }
    if status in _PROBLEM_HEADERS:
        found["headers"] = _headers(_PROBLEM_HEADERS[status])
    return found


def _headers(headers: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}
