"""The readings of the benchmark as whole PUBLISH packets, many in one buffer.

A packet of Python's own making costs more than the daemon takes to store it. So all packets of a kind have one width: a
template is repeated, and the digits that differ (device, values, time, packet id) are written into its columns.

Each device sends once a round, in an order that is drawn anew for each round. Its times never repeat: they are the
milliseconds of now, and a round begins at least one after the end of the last.
"""

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dev.publisher import encode

Digits = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

DEVICE_DIGITS = 7
PACKET_IDS = 65_535
PAIR = 2
"""Messages: a meter's and a vehicle's go out together."""
TIME_DIGITS = 13


class Field(Struct, frozen=True):
    """Digits in a packet that differ from one to the next."""

    mark: str
    """How the template writes them: a letter for each digit, with points in between left as they are."""
    least: int
    greatest: int


class Form(Struct, frozen=True):
    """The packets of one kind of device."""

    topic: str
    payload: str
    fields: tuple[Field, ...]


DEVICE, TIME, PACKET_ID = "D" * DEVICE_DIGITS, "T" * TIME_DIGITS, 0x4949  # the id as it stands in a packet: II
METER = Form(
    f"meters/m{DEVICE}/reading",
    f'{{"meterId":"m{DEVICE}","kwhConsumedAc":0.AAAAAA,"voltage":2BB.B,"timestamp":{TIME}}}',
    (Field("AAAAAA", 0, 999_999), Field("BB.B", 200, 449)),
)
VEHICLE = Form(
    f"vehicles/v{DEVICE}/reading",
    f'{{"vehicleId":"v{DEVICE}","soc":FF.F,"kwhDeliveredDc":0.AAAAAA,"batteryTemp":GG.G,"timestamp":{TIME}}}',
    (Field("FF.F", 100, 999), Field("AAAAAA", 0, 999_999), Field("GG.G", 100, 399)),
)
FORMS = (METER, VEHICLE)


class Fleet:
    """Half meters, half vehicles, and their readings in rounds without end."""

    def __init__(self, devices: int, seed: int = 1) -> None:
        """`devices` is an even number: meters and vehicles together."""
        if devices % 2 or not 2 <= devices <= 2 * 10**DEVICE_DIGITS:
            raise ValueError(f"{devices} devices cannot be halved into meters and vehicles of {DEVICE_DIGITS} digits")
        self.pairs = devices // 2
        self._random = np.random.default_rng(seed)
        self._orders = [np.arange(self.pairs) for _ in FORMS]
        self._position = self.pairs
        self._last_ms = 0
        self._round_from_ms = 0

    def take(self, messages_max: int, packet_id: int, now_ms: int) -> tuple[bytes, int]:
        """The packets of the next messages, and how many they are: an even number, from 2, and fewer at a round's end.

        The packet ids go up from `packet_id`, which is the count of messages before on the same connection.
        """
        if self._position == self.pairs:
            self._next_round()
        pairs = min(max(messages_max // PAIR, 1), self.pairs - self._position)
        part = slice(self._position, self._position + pairs)
        self._position += pairs
        self._last_ms = max(now_ms, self._round_from_ms)
        halves = [
            self._fill(form, order[part], packet_id + n, self._last_ms)
            for n, (form, order) in enumerate(zip(FORMS, self._orders, strict=True))
        ]
        return np.hstack(halves).tobytes(), pairs * PAIR

    def _next_round(self) -> None:
        for order in self._orders:
            self._random.shuffle(order)
        self._position = 0
        self._round_from_ms = self._last_ms + 1

    def _fill(self, form: Form, devices: Numbers, packet_id: int, now_ms: int) -> Digits:
        count = len(devices)
        rows = np.tile(_TEMPLATES[form], (count, 1))
        _write(rows, form, DEVICE, _digits(devices, DEVICE_DIGITS))
        _write(rows, form, TIME, _digits(np.array([now_ms]), TIME_DIGITS))
        for field in form.fields:
            numbers = self._random.integers(field.least, field.greatest, count, endpoint=True)
            _write(rows, form, field.mark, _digits(numbers, len(field.mark.replace(".", ""))))
        ids = (packet_id + PAIR * np.arange(count)) % PACKET_IDS + 1
        at = _packet_id_at(form)
        rows[:, at], rows[:, at + 1] = ids >> 8, ids & 0xFF
        return rows


def _template(form: Form) -> Digits:
    return np.frombuffer(encode(form.topic, form.payload.encode(), PACKET_ID), np.uint8)


def _columns(form: Form, mark: str) -> list[list[int]]:
    """Where the mark's digits stand in the packet, for each place where the mark is."""
    packet, found = _TEMPLATES[form].tobytes(), []
    at = packet.find(mark.encode())
    while at >= 0:
        found.append([at + n for n, letter in enumerate(mark) if letter != "."])
        at = packet.find(mark.encode(), at + 1)
    return found


def _packet_id_at(form: Form) -> int:
    return _TEMPLATES[form].tobytes().index(PACKET_ID.to_bytes(2, "big"))


def _write(rows: Digits, form: Form, mark: str, digits: Digits) -> None:
    for columns in _COLUMNS[form, mark]:
        rows[:, columns] = digits


def _digits(numbers: Numbers, width: int) -> Digits:
    return (numbers[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)


_TEMPLATES = {form: _template(form) for form in FORMS}
_COLUMNS = {
    (form, mark): _columns(form, mark)
    for form in FORMS
    for mark in (DEVICE, TIME, *(field.mark for field in form.fields))
}
