"""How completely a device reported: the same route for both kinds. What a number means is in sql/completeness.py."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import Response

from api.contract import JSON, Answer, Call, Operation, answer
from api.live import DeviceOnPath, unknown
from api.params import Window, window
from sql.completeness import HOUR, Completeness, Gap, Hour, completeness
from sql.store import METER, VEHICLE, Kind

SPAN_MAX = timedelta(days=31)


def _completeness(kind: Kind) -> Callable[[Call[Any, Any, Any]], Awaitable[Response]]:
    async def get_completeness(call: Call[DeviceOnPath, Window, None]) -> Response:
        now = datetime.now(UTC)
        start, end = window(call.query, now, SPAN_MAX)
        async with call.sidecar.database.connection() as connection:
            found = await completeness(connection, kind, call.path.id, start, end, now)
        if found is None:
            raise unknown(kind, call.path.id)
        return answer(found)

    return get_completeness


_FROM = datetime(2026, 3, 14, 12, tzinfo=UTC)
_SILENT = _FROM + timedelta(minutes=80)
_BACK = _FROM + timedelta(minutes=120)


def _operation(kind: Kind) -> Operation:
    example = Completeness(
        id=f"{kind.name}-0001",
        start=_FROM,
        end=_FROM + 3 * HOUR,
        came=141,
        expected=180,
        completeness=0.783333,
        cadence_s=60.0,
        last_reading_at=_FROM + 3 * HOUR,
        hours=[
            Hour(_FROM, _FROM + HOUR, 60, 60, 60.0),
            Hour(_FROM + HOUR, _FROM + 2 * HOUR, 21, 60, 60.0),
            Hour(_FROM + 2 * HOUR, _FROM + 3 * HOUR, 60, 60, 60.0),
        ],
        gaps=[Gap(_SILENT, _BACK, 39)],
        gaps_omitted=0,
    )
    return Operation(
        id=f"get{kind.name.title()}Completeness",
        method="GET",
        path=f"/{kind.name}s/{{id}}/completeness",
        tag="Live and history",
        summary=f"How completely a {kind.name} reported",
        description=(
            "For each UTC hour of the window how many readings came, how many were expected from the device's own "
            "cadence, and the gaps: the longest, in the order of time. Over the last 24 hours, or `from` (included) to "
            f"`to` (excluded) on the readings' own time, at most {SPAN_MAX.days} days. `expected`, `completeness` and "
            "`cadenceS` are null where the device sent too little, or too irregularly, to have a cadence."
        ),
        handler=_completeness(kind),
        path_type=DeviceOnPath,
        query=Window,
        answers={200: Answer("What came, what was expected, and the gaps", Completeness, {JSON: example})},
        problems=(404,),
    )


OPERATIONS = (_operation(METER), _operation(VEHICLE))
