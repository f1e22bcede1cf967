"""Numbers and times as people read them: the unit with each, and only digits that mean something."""

from datetime import UTC, datetime, timedelta

from markupsafe import Markup

NOTHING = "–"


def number(value: float | None, digits: int = 0) -> str:
    """With a thin space between thousands."""
    # Adding zero takes the sign from what is rounded to nothing.
    return NOTHING if value is None else f"{round(value, digits) + 0.0:,.{digits}f}".replace(",", "\u202f")


def significant(value: float | None) -> str:
    """About three digits that mean something: 0.042, 4.21, 42.1, 421, 4 210."""
    if value is None:
        return NOTHING
    for digits, least in ((0, 100), (1, 10), (2, 1)):
        if round(abs(value), digits) >= least:
            return number(value, digits)
    return number(value, 3) if value else "0"


def kwh(value: float | None) -> str:
    """Energy."""
    return NOTHING if value is None else f"{significant(value)}\u00a0kWh"


def percent(value: float | None) -> str:
    """A ratio in percent, with one digit behind the point."""
    return NOTHING if value is None else f"{number(100 * value, 1)}\u00a0%"


def celsius(value: float | None) -> str:
    """A temperature."""
    return NOTHING if value is None else f"{number(value, 1)}\u00a0°C"


def volt(value: float | None) -> str:
    """A voltage."""
    return NOTHING if value is None else f"{number(value, 1)}\u00a0V"


def count(value: int, noun: str) -> str:
    """How many there are: 1 reading, 2 readings, 2 glitches."""
    nouns = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number(value)} {noun if value == 1 else nouns}"


def duration(seconds: float | None) -> str:
    """How long, in the largest unit that leaves at least one of it: 42 s, 3 min, 5 h, 12 d."""
    if seconds is None:
        return NOTHING
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{int(seconds // size_s)}\u00a0{unit}"
    return f"{max(0, int(seconds))}\u00a0s"


def moment(value: datetime | None) -> Markup:
    """A time as an element: in UTC as it comes, in the viewer's zone once the script has seen it."""
    if value is None:
        return Markup.escape(NOTHING)
    at = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC">{} UTC</time>').format(
        exact(at), f"{at:%Y-%m-%d %H:%M:%S}", f"{at:%Y-%m-%d %H:%M}"
    )


def exact(value: datetime | None) -> str:
    """A time to the microsecond, as forms and addresses carry it."""
    return "" if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def code(text: str) -> Markup:
    """A sentence of ours: what it has between backticks is code."""
    tag = Markup("<code>{}</code>")
    return Markup("").join(tag.format(part) if n % 2 else part for n, part in enumerate(text.split("`")))


def age(value: datetime | None, now: datetime) -> Markup:
    """How long ago, as an element that the script keeps counting."""
    if value is None:
        return Markup.escape(NOTHING)
    at = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC" data-age>{}</time>').format(
        exact(at), f"{at:%Y-%m-%d %H:%M:%S}", duration((now - at) / timedelta(seconds=1))
    )
