"""Bodies of requests, read a piece at a time: not more than is allowed and not slower than is bearable."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from api.errors import ProblemError

SMALL_BYTES_MAX = 64 * 1024
"""For bodies that are read as a whole."""
WAIT_S = 15.0
"""How long a client may keep us waiting for its body, all waits together ..."""
BYTES_PER_S_MIN = 4096
"""... and a second more for so many bytes that came."""


def media_type_of(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media_type(request: Request, allowed: tuple[str, ...]) -> str:
    """The media type, if it is one of `allowed`; raises ProblemError 415."""
    media_type = media_type_of(request)
    if media_type not in allowed:
        given = ascii(media_type) if media_type else "missing"
        detail = f"Content-Type is {given}; allowed: {', '.join(allowed)}"
        raise ProblemError(415, detail, {"Accept": ", ".join(allowed)})
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ProblemError(415, f"Content-Encoding is {encoding!a}; allowed: identity", {"Accept-Encoding": "identity"})
    return media_type


async def pieces(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    """The body as it comes; raises ProblemError 413 or 408, or ClientDisconnect."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > bytes_max:
        raise _too_large(bytes_max)
    clock = asyncio.get_running_loop().time
    received, waited_s = 0, 0.0
    more = True
    while more:
        began_s = clock()
        try:
            async with asyncio.timeout(WAIT_S + received / BYTES_PER_S_MIN - waited_s):
                message = await request.receive()
        except TimeoutError:
            raise ProblemError(408, "The body comes too slowly", {"Connection": "close"}) from None
        waited_s += clock() - began_s
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        received += len(piece)
        if received > bytes_max:
            raise _too_large(bytes_max)
        if piece:
            yield piece


async def whole(request: Request) -> bytes:
    """A small body."""
    return b"".join([piece async for piece in pieces(request, SMALL_BYTES_MAX)])


def _too_large(bytes_max: int) -> ProblemError:
    return ProblemError(413, f"The body is too large; allowed: {bytes_max} bytes")
