"""What many ask for and one looks up."""

import asyncio

import pytest

from api.cache import Cache
from api.web import overview
from api.web.overview import Kept


class Lookup:
    """Finds 1, 2, 3 …, each when it is told to."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.count += 1
        count = self.count
        await self.may_end.wait()
        if self.fails:
            raise LookupError(count)
        return count


@pytest.fixture
def cache() -> Cache:
    """What is cleared when links change."""
    return Cache(10.0, lambda _: None)


async def some(kept: Kept[int], waiting: int) -> list[asyncio.Task[int]]:
    """That many who ask at the same time."""
    tasks = [asyncio.create_task(kept.get()) for _ in range(waiting)]
    await asyncio.sleep(0)
    return tasks


async def test_those_who_ask_at_the_same_time_wait_for_one_look(cache: Cache) -> None:
    lookup = Lookup()
    kept = Kept(3600.0, lookup, cache)
    tasks = await some(kept, 20)
    lookup.may_end.set()
    assert await asyncio.gather(*tasks) == [1] * 20
    assert await kept.get() == 1
    assert lookup.count == 1


async def test_what_is_too_old_is_looked_up_anew(cache: Cache) -> None:
    lookup = Lookup()
    lookup.may_end.set()
    kept = Kept(0.0, lookup, cache)
    assert [await kept.get(), await kept.get()] == [1, 2]


async def test_one_who_goes_away_takes_nothing_from_the_others(cache: Cache) -> None:
    lookup = Lookup()
    first, second = await some(kept := Kept(3600.0, lookup, cache), 2)
    first.cancel()
    await asyncio.wait([first])
    lookup.may_end.set()
    assert await second == await kept.get() == 1


async def test_a_failure_is_told_to_all_and_not_repeated_by_each(cache: Cache) -> None:
    lookup = Lookup()
    lookup.fails = True
    kept = Kept(0.0, lookup, cache)
    tasks = await some(kept, 20)
    lookup.may_end.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert {str(error) for error in found} == {"1"}
    with pytest.raises(LookupError):
        await kept.get()
    assert lookup.count == 1


async def test_what_failed_is_tried_again_later(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "FAILED_S", 0.0)
    lookup = Lookup()
    lookup.fails = True
    lookup.may_end.set()
    kept = Kept(3600.0, lookup, cache)
    with pytest.raises(LookupError):
        await kept.get()
    lookup.fails = False
    assert await kept.get() == 2


async def test_the_latest_is_had_at_once_while_a_newer_is_looked_up(cache: Cache) -> None:
    lookup = Lookup()
    lookup.may_end.set()
    kept = Kept(0.0, lookup, cache)
    assert await kept.latest() == 1
    lookup.may_end.clear()
    assert await kept.latest() == 1
    for _ in range(3):
        await asyncio.sleep(0)
    assert lookup.count == 2
    await kept.close()


async def test_what_is_cleared_while_it_is_looked_up_is_looked_up_again(cache: Cache) -> None:
    lookup = Lookup()
    kept = Kept(3600.0, lookup, cache)
    (before,) = await some(kept, 1)
    cache.clear()
    (after,) = await some(kept, 1)
    lookup.may_end.set()
    assert [await before, await after, await kept.get()] == [1, 2, 2]


async def test_the_latest_is_waited_for_where_the_last_is_too_old(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "STALE_S_MAX", 0.0)
    lookup = Lookup()
    lookup.may_end.set()
    kept = Kept(0.0, lookup, cache)
    assert [await kept.latest(), await kept.latest()] == [1, 2]
