"""How a device's kWh are to be read."""

from datetime import UTC, datetime

from msgspec import Struct
from starlette.responses import Response

from api.auth import Role
from api.contract import JSON, Answer, Call, Operation, answer
from api.errors import ProblemError
from api.params import DeviceId, Kind, NoQuery
from sql import devices
from sql.devices import Device, EnergyMode
from sql.store import METER, VEHICLE

KINDS = {"meter": METER, "vehicle": VEHICLE}


class DevicePath(Struct, frozen=True):
    """A device in the path."""

    kind: Kind
    id: DeviceId


class DeviceSettings(Struct, frozen=True, rename="camel"):
    """What can be set of a device."""

    energy_mode: EnergyMode


async def get_device(call: Call[DevicePath, NoQuery, None]) -> Response:
    """What is known of a device."""
    async with call.sidecar.database.connection() as connection:
        device = await devices.get_device(connection, KINDS[call.path.kind], call.path.id)
    if device is None:
        raise ProblemError(404, f"Nobody knows the {call.path.kind} {call.path.id}: it has sent no reading")
    return answer(device)


async def put_device(call: Call[DevicePath, NoQuery, DeviceSettings]) -> Response:
    """Say how its kWh are to be read."""
    kind = KINDS[call.path.kind]
    async with call.sidecar.database.connection() as connection:
        device = await devices.set_energy_mode(connection, kind, call.path.id, call.body.energy_mode)
    call.sidecar.cache.clear()
    return answer(device)


_EXAMPLE = Device(
    "meter",
    "meter-0001",
    "interval",
    "register",
    datetime(2026, 1, 2, 9, 30, tzinfo=UTC),
    datetime(2026, 3, 14, 15, tzinfo=UTC),
)
_MODES = (
    "`energyMode` says what the device's kWh count: an amount per reading (`interval`, the default), all of its life "
    "(`register`), or since it was plugged in (`session`). `suspectedEnergyMode` is a hint that the readings look "
    "otherwise."
)

OPERATIONS = (
    Operation(
        id="getDevice",
        method="GET",
        path="/devices/{kind}/{id}",
        tag="Devices",
        summary="A device and its energy mode",
        description=_MODES,
        handler=get_device,
        path_type=DevicePath,
        answers={200: Answer("The device", Device, {JSON: _EXAMPLE})},
        problems=(404,),
    ),
    Operation(
        id="putDevice",
        method="PUT",
        path="/devices/{kind}/{id}",
        tag="Devices",
        summary="Set a device's energy mode, for its past too",
        description=f"{_MODES} The device need not have been seen yet.",
        handler=put_device,
        role=Role.admin,
        path_type=DevicePath,
        body=DeviceSettings,
        body_example=DeviceSettings("register"),
        answers={200: Answer("The device", Device, {JSON: _EXAMPLE})},
    ),
)
