"""Scripts, styles and the icon: read once, compressed once, and kept by browsers for ever under a name that changes.

The folder in their address is a hash of all of them, so that modules find each other by relative names, and a new
version is a new address.
"""

import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from api.errors import ProblemError

FOLDER = Path(__file__).parent / "static"
CHART = "Chart.bundle.js"
"""Chart.js with its adapter for dates, of the package chartkick."""
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FOR_EVER = "public, max-age=31536000, immutable"


class Asset(Struct, frozen=True):
    """One file."""

    media_type: str
    body: bytes
    gzipped: bytes


class Assets:
    """All of them, in memory."""

    def __init__(self) -> None:
        self._assets = {path.name: _read(path) for path in [*sorted(FOLDER.iterdir()), _chart()]}
        together = hashlib.blake2b(digest_size=8)
        for name, asset in self._assets.items():
            together.update(name.encode() + asset.body)
        self.version = together.hexdigest()

    def url(self, name: str) -> str:
        """Where a file is; raises KeyError where there is none of that name."""
        if name not in self._assets:
            raise KeyError(name)
        return f"/static/{self.version}/{name}"

    def serve(self, request: Request) -> Response:
        """A file; one of another version is not there."""
        request.scope["state"]["route"] = "/static"
        asset = self._assets.get(request.path_params["name"])
        if asset is None or request.path_params["version"] != self.version:
            raise ProblemError(404, "There is no such file in this version; load the page again")
        headers = {"Cache-Control": FOR_EVER, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(asset.gzipped, media_type=asset.media_type, headers={**headers, "Content-Encoding": "gzip"})
        return Response(asset.body, media_type=asset.media_type, headers=headers)


def _read(path: Path) -> Asset:
    body = path.read_bytes()
    return Asset(MEDIA_TYPES[path.suffix], body, gzip.compress(body, 9, mtime=0))


def _chart() -> Path:
    """Of the package only this file is used; it is found and not imported."""
    package = find_spec("chartkick")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package chartkick is not installed")
    return Path(package.origin).parent / "django" / "static" / "chartkick" / CHART
