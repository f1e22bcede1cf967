"""A body cut into readings while it is still coming. Pure: pieces of bytes in, the bytes of readings out.

Nothing is decoded here; `daemon.readings` judges each item. A piece of rubbish between good readings is an item like
any other, so that its neighbours are not lost; only where nobody can say where the next reading begins, the cutting
ends.
"""

import codecs
import re
from typing import Protocol

from msgspec import Struct

from daemon.readings import Reason

ITEM_BYTES_MAX = 1024 * 1024
SCAN_BYTES = 64 * 1024
"""Cutting waits for so much to have come, or a body that comes byte by byte would be looked at again for each."""

_WS = b" \t\r\n"
_SPACE = re.compile(rb"[ \t\r\n]*")
# An object without nesting, as nearly every reading is. Possessive, so that what does not match costs no more.
_FLAT = rb'\{[^{}\[\]"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^{}\[\]"]*+)*+\}'
_FLAT_OBJECT = re.compile(_FLAT, re.DOTALL)
_FLAT_ELEMENT = re.compile(rb"[ \t\r\n]*+(" + _FLAT + rb")[ \t\r\n]*+([,\]])", re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[\]{},]', re.DOTALL)
_RUBBISH = re.compile(rb"[^{\n]+|\{")


class Dead(Struct, frozen=True):
    """Why the rest of a body cannot be cut, and what of it had come."""

    reason: Reason
    detail: str
    payload: bytes


class Cutter(Protocol):
    """Cuts one body."""

    dead: Dead | None
    """Set where the cutting has ended before the body."""

    def feed(self, piece: bytes) -> list[bytes]:
        """The items that are complete now."""

    def finish(self) -> list[bytes]:
        """The last items."""


class Lines:
    """NDJSON: an item a line."""

    def __init__(self) -> None:
        self.dead: Dead | None = None
        self._rest = bytearray()
        self._searched = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that are complete now."""
        self._rest += piece
        end = self._rest.rfind(b"\n", self._searched)
        lines = bytes(self._rest[:end]).split(b"\n") if end >= 0 else []
        del self._rest[: end + 1]
        self._searched = len(self._rest)
        if len(self._rest) > ITEM_BYTES_MAX:
            self.dead = _too_large(bytes(self._rest))
        return _not_empty(lines)

    def finish(self) -> list[bytes]:
        """The last line need not end."""
        return _not_empty([bytes(self._rest)])


class Values:
    """JSON: the elements of an array, or objects one after another."""

    def __init__(self) -> None:
        self.dead: Dead | None = None
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._rest = b""
        self._is_array: bool | None = None
        self._is_ended = False
        self._after_comma = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The items that are complete now, if it is time to look."""
        self._pieces.append(piece)
        self._waiting += len(piece)
        return self._cut() if self._waiting >= SCAN_BYTES else []

    def finish(self) -> list[bytes]:
        """What is left."""
        items = self._cut()
        if self._is_array and not self._is_ended:
            self.dead = Dead("malformed_json", "the body ends within the array", self._rest)
        elif self._is_ended and self._rest:
            self.dead = Dead("malformed_json", "something follows the array", self._rest)
        elif rest := self._rest.strip(_WS):
            items.append(rest)
        return items

    def _cut(self) -> list[bytes]:
        text = b"".join([self._rest, *self._pieces])
        self._pieces.clear()
        self._waiting = 0
        items: list[bytes] = []
        position = self._open(text)
        if self._is_array:
            position = self._elements(text, position, items)
        elif self._is_array is False:
            position = self._values(text, position, items)
        self._rest = text[position:]
        if len(self._rest) > ITEM_BYTES_MAX:
            self.dead = _too_large(self._rest)
        return items

    def _open(self, text: bytes) -> int:
        """Find out once what the body is."""
        if self._is_array is not None:
            return 0
        start = len(codecs.BOM_UTF8) if text.startswith(codecs.BOM_UTF8) else 0
        start = _after_space(text, start)
        if start == len(text):
            return start
        self._is_array = text[start] == ord("[")
        return start + self._is_array

    def _elements(self, text: bytes, position: int, items: list[bytes]) -> int:
        while not self._is_ended:
            if flat := _FLAT_ELEMENT.match(text, position):
                items.append(flat[1])
                position = flat.end()
                self._is_ended = flat[2] == b"]"
                self._after_comma = not self._is_ended
                continue
            end = _end_of_element(text, position)
            if end is None:
                return position
            item = text[position:end].strip(_WS)
            self._is_ended = text[end] != ord(",")
            if item or self._after_comma or not self._is_ended:
                items.append(item)
            self._after_comma = not self._is_ended
            position = end + 1
        return _after_space(text, position)

    def _values(self, text: bytes, position: int, items: list[bytes]) -> int:
        while (position := _after_space(text, position)) < len(text):
            if flat := _FLAT_OBJECT.match(text, position):
                end: int | None = flat.end()
            elif text[position] == ord("{"):
                end = _end_of_object(text, position)
            else:
                end = _end_of_rubbish(text, position)
            if end is None:
                break
            items.append(text[position:end].strip(_WS))
            position = end
        return position


def _after_space(text: bytes, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _end_of_element(text: bytes, position: int) -> int | None:
    """Where the comma or bracket behind an element of the array is; None where it has not come yet."""
    depth = 0
    for token in _TOKEN.finditer(text, position):
        sign = token[0][:1]
        if sign == b'"':
            if not token[1]:
                return None
        elif sign in b"[{":
            depth += 1
        elif depth == 0:
            return token.start()
        elif sign in b"]}":
            depth -= 1
    return None


def _end_of_object(text: bytes, position: int) -> int | None:
    """Where the object that begins at `position` ends; None where its end has not come yet."""
    depth = 0
    for token in _TOKEN.finditer(text, position):
        sign = token[0][:1]
        if sign == b'"':
            if not token[1]:
                return None
        elif sign in b"[{":
            depth += 1
        elif sign in b"]}":
            depth -= 1
            if depth == 0:
                return token.end()
    return None


def _end_of_rubbish(text: bytes, position: int) -> int | None:
    """Rubbish ends with its line, or where an object begins."""
    found = _RUBBISH.match(text, position)
    return found.end() if found and found.end() < len(text) else None


def _not_empty(lines: list[bytes]) -> list[bytes]:
    return [item for line in lines if (item := line.strip(_WS))]


def _too_large(payload: bytes) -> Dead:
    detail = f"a reading has more than {ITEM_BYTES_MAX} bytes, or does not end; what follows it was not read"
    return Dead("too_large", detail, payload[:ITEM_BYTES_MAX])
