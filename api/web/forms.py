"""What people write into forms: into the Structs of the API, and with a sentence beside each field that is wrong."""

import re
from collections.abc import Mapping
from typing import TypeVar

from msgspec import Struct

from api import params
from api.errors import ProblemError
from api.web.pages import Visit
from sql.links import Link

T = TypeVar("T", bound=Struct)

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d(?:\.\d{1,6})?)?)? ?(Z|UTC|[+-]\d\d:\d\d)?", re.ASCII | re.IGNORECASE
)


class Form(Struct, frozen=True):
    """A form as it is shown."""

    values: Mapping[str, str] = {}
    faults: Mapping[str, str] = {}
    """Field -> what is wrong with it."""
    in_the_way: Link | None = None
    """The link that keeps it from being done."""


def asked(visit: Visit, struct: type[T]) -> T:
    """What a form asks for in the query, the fields left empty left out; raises ProblemError."""
    return params.query(struct, [(name, value) for name, value in visit.request.query_params.multi_items() if value])


def read(struct: type[T], fields: Mapping[str, str], times: tuple[str, ...] = ()) -> T:
    """The fields of a form as a Struct, those called `times` as people write times; raises ProblemError."""
    stripped = {name: value.strip() for name, value in fields.items()}
    values = {name: instant(value) if name in times else value for name, value in stripped.items() if value}
    return params.query(struct, values.items())


def instant(text: str) -> str:
    """A time as RFC 3339: UTC where it has no offset, midnight where it is a date. What is no time stays as it is."""
    found = _TIME.fullmatch(text)
    if not found:
        return text
    day, minute, second, offset = found.groups(default="")
    return f"{day}T{minute or '00:00'}{second or ':00'}{offset.upper().replace('UTC', '') or 'Z'}"


def faults(error: ProblemError, labels: Mapping[str, str]) -> dict[str, str]:
    """Field -> sentence, with the label of the field in place of its name; raises what is no fault of these fields."""
    found = {fault.name: fault.detail for fault in error.members.get("errors", ())}
    if not found or not set(found) <= set(labels):
        raise error
    return {name: detail.replace(f"`{name}`", labels[name], 1) for name, detail in found.items()}
