"""The OpenAPI document says all that the routes do, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from api.app import build_app
from api.contract import Operation
from api.errors import TITLES
from api.openapi import document
from api.postman import collection
from api.routes import ALIAS, OPERATIONS
from api.web.site import PAGES
from tests.api.conftest import settings

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads(msgspec.json.encode(document()))


def test_every_route_but_the_pages_is_in_the_document_and_no_other() -> None:
    app = build_app(settings("postgresql://nobody@127.0.0.1/none"))
    routes = [route for route in app.routes if isinstance(route, Route)]
    served = {(route.path, method) for route in routes for method in (route.methods or set()) - {"HEAD"}}
    pages = {(page.path, page.method) for page in PAGES} | {("/static/{version}/{name}", "GET")}
    described = {
        (server["url"].rstrip("/") + path, method.upper())
        for server in DOCUMENT["servers"]
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
    }
    assert served - pages == described
    assert pages < served
    assert [server["url"] for server in DOCUMENT["servers"]] == ["/", ALIAS]


def test_every_error_is_in_the_document() -> None:
    assert {slug for slug, _ in TITLES.values()} == set(DOCUMENT["components"]["responses"])
    raised = set()
    for path in (ROOT / "api").glob("*.py"):
        raised |= {int(status) for status in re.findall(r"ProblemError\((\d{3})", path.read_text(encoding="utf-8"))}
    assert raised <= set(TITLES)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_an_operation_says_what_it_answers(operation: Operation) -> None:
    described = DOCUMENT["paths"][operation.full_path][operation.method.lower()]
    statuses = {int(status) for status in described["responses"]}
    assert statuses == {*operation.answers, *operation.problem_statuses}
    assert {400, 421, 422, 431, 500, 503} <= statuses
    assert ({401, 403} <= statuses) == bool(described["security"])
    assert ({408, 413, 415} <= statuses) == ("requestBody" in described)
    assert described["summary"]
    for parameter in described.get("parameters", []):
        assert parameter["description"], parameter["name"]


def test_operation_ids_are_unique() -> None:
    ids = [operation.id for operation in OPERATIONS]
    assert len(ids) == len(set(ids))


def validator(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]}, validate_formats=True)


def media(node: Any) -> Any:
    """Every place with a schema and examples."""
    if isinstance(node, dict):
        if "schema" in node and "examples" in node:
            yield node
        for value in node.values():
            yield from media(value)
    elif isinstance(node, list):
        for value in node:
            yield from media(value)


def test_every_example_is_valid() -> None:
    found = list(media(DOCUMENT))
    assert len(found) > 30
    for place in found:
        for example in place["examples"].values():
            validator(place["schema"]).validate(example["value"])


def test_the_document_is_valid_openapi_3_1() -> None:
    from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

    OPENAPI_31_VALIDATOR.validate(DOCUMENT)


def test_the_sidecar_serves_the_document_and_the_files_hold_it(shared: TestClient) -> None:
    assert shared.get("/openapi.json").json() == DOCUMENT
    assert json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")) == DOCUMENT, "run: make docs"
    made = json.loads(msgspec.json.encode(collection(document())))
    assert json.loads((ROOT / "docs" / "postman.json").read_text(encoding="utf-8")) == made, "run: make docs"


def test_the_collection_has_every_operation() -> None:
    made = collection(document())
    requests = [request["request"] for folder in made["item"] for request in folder["item"]]
    assert len(requests) == len(OPERATIONS)
    for request in requests:
        assert request["url"]["raw"].startswith("{{baseUrl}}/")
        if "body" in request:
            json.loads(request["body"]["raw"])


def test_every_route_is_in_the_page() -> None:
    page = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    for operation in OPERATIONS:
        assert f"`{operation.method} {operation.full_path}`" in page, f"docs/http.md lacks {operation.full_path}"
