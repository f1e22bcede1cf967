"""Every route there is. Starlette's routes and the OpenAPI document both come from this table."""

from api import analytics, completeness, devices, docs, health, ingest, links, live, rejections
from api.contract import Operation

OPERATIONS: tuple[Operation, ...] = (
    *analytics.OPERATIONS,
    *links.OPERATIONS,
    *live.OPERATIONS,
    *completeness.OPERATIONS,
    *devices.OPERATIONS,
    *ingest.OPERATIONS,
    *rejections.OPERATIONS,
    *health.OPERATIONS,
    *docs.OPERATIONS,
)

ALIAS = "/api"
"""Everything is served below this too: /api/v1/... is /v1/..."""


def by_path() -> dict[str, dict[str, Operation]]:
    """Path without the alias -> method -> operation."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.full_path, {})[operation.method] = operation
    return paths
