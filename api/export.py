"""Readings as CSV or NDJSON, sent while they come from the table: the answer's length does not matter."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.contract import CSV, JSON, NDJSON
from api.database import Database
from sql.devices import HISTORY_TYPES, MeterHistory, VehicleHistory, stream_readings
from sql.store import Kind

EXPORT_TIMEOUT_S = 900.0
"""An export holds a connection; it may not do so for ever."""

FORMATS = {"json": JSON, "csv": CSV, "ndjson": NDJSON}
_ENCODER = msgspec.json.Encoder()

Reading: TypeAlias = MeterHistory | VehicleHistory


def wanted_format(asked: str | None, accept: str) -> str:
    """`json`, `csv` or `ndjson`: what `format` says, else what Accept likes best, JSON where it does not care."""
    if asked:
        return asked
    best, best_quality = "json", 0.0
    for name, media_type in FORMATS.items():
        if (quality := _quality(media_type, accept)) > best_quality:
            best, best_quality = name, quality
    return best


class Export(Response):
    """A streamed answer that lets go of the database as soon as the client is gone."""

    def __init__(
        self, database: Database, kind: Kind, device_id: str, start: datetime, end: datetime, file_format: str
    ) -> None:
        file_name = f"{device_id.replace(':', '_')}_{start:%Y%m%dT%H%M%SZ}_{end:%Y%m%dT%H%M%SZ}.{file_format}"
        media_type = f"{CSV}; charset=utf-8; header=present" if file_format == "csv" else FORMATS[file_format]
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers(
            {"Content-Disposition": f'attachment; filename="{file_name}"', "Vary": "Accept, Authorization"}
        )
        del self.headers["content-length"]
        self._pieces = _pieces(database, kind, device_id, start, end, file_format)
        self._first = b""

    async def begin(self) -> "Export":
        """Fetch the first piece, so that a database that is away is a problem document and no broken file."""
        self._first = await anext(self._pieces)
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        gone = asyncio.create_task(_until_gone(receive), name="client gone")
        try:
            async with aclosing(self._pieces):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if scope["method"] == "HEAD":
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                await send({"type": "http.response.body", "body": self._first, "more_body": True})
                async for piece in self._pieces:
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pieces(
    database: Database, kind: Kind, device_id: str, start: datetime, end: datetime, file_format: str
) -> AsyncGenerator[bytes, None]:
    """The file. Its first piece comes once the database has answered."""
    write = _write_csv if file_format == "csv" else _write_ndjson
    async with database.long_connection(EXPORT_TIMEOUT_S) as connection:
        readings = stream_readings(connection, kind, device_id, start, end)
        async with aclosing(readings) as chunks:
            first: Sequence[Reading] = await anext(chunks, [])
            yield (_csv_head(HISTORY_TYPES[kind]) if file_format == "csv" else b"") + write(first)
            async for chunk in chunks:
                yield write(chunk)


def _csv_head(struct: type[Struct]) -> bytes:
    return ",".join(info.encode_name for info in msgspec.structs.fields(struct)).encode() + b"\r\n"


def _write_csv(readings: Sequence[Reading]) -> bytes:
    lines = [",".join(map(_cell, msgspec.structs.astuple(reading))) + "\r\n" for reading in readings]
    return "".join(lines).encode()


def _cell(value: Any) -> str:
    """Times and numbers: nothing in them needs quotes."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return repr(value)


def _write_ndjson(readings: Sequence[Reading]) -> bytes:
    return _ENCODER.encode_lines(readings)


def _quality(media_type: str, accept: str) -> float:
    """How much a client likes a media type; what it names goes before what it covers by a wildcard."""
    qualities: dict[str, float] = {}
    for part in accept.split(","):
        name, _, parameters = part.strip().partition(";")
        qualities[name.strip().lower()] = _q(parameters)
    if media_type in qualities:
        return qualities[media_type]
    if media_type == NDJSON and "application/ndjson" in qualities:
        return qualities["application/ndjson"]
    wild = max(qualities.get(f"{media_type.partition('/')[0]}/*", 0.0), qualities.get("*/*", 0.0))
    return wild / 2 if media_type != JSON else wild


def _q(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return max(0.0, min(1.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
