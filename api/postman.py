"""A Postman collection (format 2.1), made from the OpenAPI document."""

import re
from typing import Any

import msgspec

SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"


def collection(document: dict[str, Any]) -> dict[str, Any]:
    """A folder for each tag, with a request for each operation."""
    folders: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            folders[operation["tags"][0]].append(_request(path, method.upper(), operation))
    return {
        "info": {
            "name": document["info"]["title"],
            "description": document["info"]["description"],
            "schema": SCHEMA,
        },
        "auth": {"type": "bearer", "bearer": [{"key": "token", "value": "{{token}}", "type": "string"}]},
        "variable": [{"key": "baseUrl", "value": "http://127.0.0.1:8080"}, {"key": "token", "value": ""}],
        "item": [{"name": name, "item": items} for name, items in folders.items()],
    }


def _request(path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    parameters = operation.get("parameters", [])
    names = re.sub(r"\{(\w+)\}", r":\1", path)
    query = [
        _entry(parameter, disabled=not parameter["required"]) for parameter in parameters if parameter["in"] == "query"
    ]
    shown = "&".join(f"{entry['key']}={entry['value']}" for entry in query if not entry["disabled"])
    request: dict[str, Any] = {
        "method": method,
        "description": operation["description"],
        "header": [],
        "url": {
            "raw": f"{{{{baseUrl}}}}{names}" + (f"?{shown}" if shown else ""),
            "host": ["{{baseUrl}}"],
            "path": names.strip("/").split("/"),
            "query": query,
            "variable": [_entry(parameter) for parameter in parameters if parameter["in"] == "path"],
        },
    }
    if not operation["security"]:
        request["auth"] = {"type": "noauth"}
    if "requestBody" in operation:
        request["header"] = [{"key": "Content-Type", "value": "application/json"}]
        request["body"] = {"mode": "raw", "raw": _body(operation), "options": {"raw": {"language": "json"}}}
    return {"name": operation["summary"], "request": request, "response": []}


def _entry(parameter: dict[str, Any], **more: bool) -> dict[str, Any]:
    schema = parameter["schema"]
    value = parameter.get("example", schema.get("default", next(iter(schema.get("enum", [])), "")))
    return {"key": parameter["name"], "value": str(value), "description": parameter.get("description", ""), **more}


def _body(operation: dict[str, Any]) -> str:
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    example = list(examples.values())[-1]["value"]
    return msgspec.json.format(msgspec.json.encode(example), indent=2).decode()
