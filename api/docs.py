"""The OpenAPI document, and a page for people made of it. Everything is served from here: no other host is asked."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.responses import FileResponse, Response

from api.contract import JSON, Answer, Call, Operation
from api.params import NoQuery

FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}


def _find_files() -> Path:
    """The folder of Swagger UI in the package swagger-ui-py, which is found and not imported: its code is not used."""
    package = find_spec("swagger_ui")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package swagger-ui-py is not installed")
    return Path(package.origin).parent / "static"


_FOLDER = _find_files()
_SECURITY = {
    # Swagger UI shows its icons as data. It sets styles by script, element by element, which takes no exception.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "private, max-age=3600",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fleetwatt</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  tryItOutEnabled: true,
  persistAuthorization: false,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


FileName = Annotated[
    Literal["swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "start.js"],
    Meta(description="swagger-ui.css, swagger-ui-bundle.js, favicon-32x32.png or start.js", examples=["start.js"]),
]


class DocsFile(Struct, frozen=True):
    """A file of the page."""

    file: FileName


async def openapi(call: Call[NoQuery, NoQuery, None]) -> Response:
    """The OpenAPI document."""
    return Response(call.sidecar.openapi, media_type=JSON)


async def page(_: Call[NoQuery, NoQuery, None]) -> Response:
    """The page."""
    return Response(_PAGE, media_type="text/html", headers=_SECURITY)


async def file(call: Call[DocsFile, NoQuery, None]) -> Response:
    """What the page is made of."""
    name = call.path.file
    if name == "start.js":
        return Response(_START, media_type="text/javascript", headers=_SECURITY)
    return FileResponse(_FOLDER / name, media_type=FILES[name], headers=_SECURITY)


_COMMON: dict[str, Any] = {"method": "GET", "tag": "Operations", "is_versioned": False, "from_browser": True}
OPERATIONS = (
    Operation(
        id="openapi",
        path="/openapi.json",
        summary="This document",
        handler=openapi,
        answers={200: Answer("OpenAPI 3.1", dict[str, Any])},
        **_COMMON,
    ),
    Operation(
        id="docs",
        path="/docs",
        summary="This document as a page for people",
        handler=page,
        answers={200: Answer("A page", str, media_types=("text/html",))},
        **_COMMON,
    ),
    Operation(
        id="docsFile",
        path="/docs/{file}",
        summary="What the page is made of",
        handler=file,
        path_type=DocsFile,
        answers={200: Answer("A file", media_types=("text/css", "text/javascript", "image/png"))},
        problems=(404,),
        **_COMMON,
    ),
)
