"""Readings as the OpenAPI document describes them.

The Structs of `daemon.readings` say what the strict decoder takes; this says all that is taken: text with a number in
it, times in three forms, an id that must be there. `tests/api` holds the two together by asking with what this allows.
"""

from typing import Any

from api.contract import JSON, NDJSON

_METER_EXAMPLE = {
    "meterId": "meter-0001",
    "kwhConsumedAc": 0.183,
    "voltage": 230.4,
    "timestamp": "2026-03-14T15:00:00Z",
}
_VEHICLE_EXAMPLE = {
    "vehicleId": "vehicle-0001",
    "soc": 61.5,
    "kwhDeliveredDc": 0.164,
    "batteryTemp": 24.1,
    "timestamp": "2026-03-14T15:00:00Z",
}


def _number(least: float, greatest: float, unit: str) -> dict[str, Any]:
    text = {"type": "string", "pattern": r"^[ \t]*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*$"}
    number = {"type": "number", "minimum": least, "maximum": greatest}
    return {"description": f"{unit}; text with a number in it is taken too", "anyOf": [number, text]}


def _reading(id_key: str, kind: str, values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    any_case = "".join(f"[{letter}{letter.upper()}]" for letter in kind)
    text = {"type": "string", "pattern": f"^{any_case}$"}
    times = [{"type": "string", "format": "date-time"}, {"type": "number"}, _number(0, 0, "")["anyOf"][1]]
    return {
        "type": "object",
        "required": [id_key, *values],
        "properties": {
            id_key: {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"},
            **values,
            "timestamp": {
                "description": "RFC 3339 with an offset, or Unix seconds or milliseconds; left out: time of receipt",
                "anyOf": [*times, {"type": "null"}],
            },
            "type": {"description": f"{kind}, in any case", "anyOf": [text, {"type": "null"}]},
        },
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "MeterReading": _reading(
        "meterId", "meter", {"kwhConsumedAc": _number(0, 1e9, "kWh"), "voltage": _number(0, 1000, "V")}
    ),
    "VehicleReading": _reading(
        "vehicleId",
        "vehicle",
        {
            "soc": _number(0, 100, "state of charge, percent"),
            "kwhDeliveredDc": _number(0, 1e9, "kWh"),
            "batteryTemp": _number(-60, 150, "degrees Celsius"),
        },
    ),
}
_ONE_READING = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in SCHEMAS]}
BODY_MEDIA: dict[str, dict[str, Any]] = {
    JSON: {
        "schema": {
            "anyOf": [
                *_ONE_READING["anyOf"],
                {
                    "type": "array",
                    "minItems": 1,
                    "description": "Readings. Each is judged by itself: the good are stored, the bad reported.",
                },
            ]
        },
        "examples": {
            "meter": {"value": _METER_EXAMPLE},
            "vehicle": {"value": _VEHICLE_EXAMPLE},
            "both": {"value": [_METER_EXAMPLE, _VEHICLE_EXAMPLE]},
        },
    },
    NDJSON: {"schema": {"type": "string", "description": "A reading a line"}},
}
