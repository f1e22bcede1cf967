"""UTC hours and days, in which the rollups count. No session's time zone touches them."""

from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def hour_floor(moment: datetime) -> datetime:
    """The beginning of the UTC hour in which the moment lies."""
    return moment - (moment - _EPOCH) % HOUR


def hour_ceiling(moment: datetime) -> datetime:
    """The first beginning of a UTC hour that is not before the moment."""
    return moment + (_EPOCH - moment) % HOUR


def day_floor(moment: datetime) -> datetime:
    """The beginning of the UTC day in which the moment lies."""
    return moment - (moment - _EPOCH) % DAY


def day_ceiling(moment: datetime) -> datetime:
    """The first beginning of a UTC day that is not before the moment."""
    return moment + (_EPOCH - moment) % DAY
