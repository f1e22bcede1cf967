"""The page of rejections: why, what came, another try, and that nothing of what came is obeyed."""

import json
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from starlette.testclient import TestClient

from api.app import build_app
from api.web import rejections as page
from daemon.readings import MEANINGS
from sql.rejections import Rejection, insert
from tests.api.conftest import MINUTE, NOW, bearer, client_of, meter, settings
from tests.web.conftest import form_key, send, sign_in, words

THEN = NOW - 60 * MINUTE
MakeTokens = Callable[[], tuple[str, dict[str, str]]]


def rejected(
    value: Any, reason: str = "clock_ahead", topic: str = "meters/m-1/reading", detail: str = "it is ahead", n: int = 0
) -> Rejection:
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Rejection(THEN + n * MINUTE, topic, reason, detail, payload)


def test_nothing_was_rejected(client: TestClient) -> None:
    assert "Nothing was rejected" in words(client.get("/rejections"))
    assert "There are no such rejections: nothing of m-1 was rejected as too old" in words(
        client.get("/rejections?reason=too_old&device=m-1")
    )


async def test_they_are_grouped_by_reason_and_device_with_the_newest_of_each(
    client: TestClient, database: asyncpg.Connection
) -> None:
    ahead = [rejected(b"came %d" % n, n=n) for n in range(3)]
    await insert(database, [*ahead, rejected(b"old", "too_old", "vehicles/v-1/reading", "it is old")])
    found = client.get("/rejections")
    shown = words(found)
    assert "4 rejections of 2 sorts" in shown
    assert "When: more than CLOCK_AHEAD_MAX_S in the future." in shown
    assert "<code>CLOCK_AHEAD_MAX_S</code>" in found.text
    assert "When: older than RETENTION_DAYS" in shown
    assert "came 2" in shown
    assert "came 1" not in shown
    assert "It came on meters/m-1/reading and has 6 bytes:" in shown
    for query, seen, unseen in (
        ("reason=too_old&device=", "it is old", "it is ahead"),
        ("reason=&device=m-1", "it is ahead", "it is old"),
    ):
        few = words(client.get(f"/rejections?{query}"))
        assert seen in few
        assert unseen not in few
    assert client.get("/rejections?reason=because").status_code == 422
    assert client.get("/rejections?device=a b").status_code == 422


def test_every_reason_has_its_meaning_on_the_page(client: TestClient) -> None:
    options = client.get("/rejections").text
    for reason in MEANINGS:
        assert f'<option value="{reason}">' in options


async def test_of_many_groups_the_largest_are_shown_and_the_others_counted(
    client: TestClient, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "GROUPS_MAX", 2)
    await insert(database, [rejected(b"%d" % n, topic=f"meters/m-{n % 5}/reading") for n in range(12)])
    shown = words(client.get("/rejections"))
    assert "12 rejections of 5 sorts" in shown
    assert "And 3 more, each with fewer rejections." in shown


HOSTILE = '<script>alert(1)</script><img src=x onerror="x">{{ 7 * 7 }}'


async def test_what_came_is_text_and_every_character_of_it_can_be_seen(
    client: TestClient, database: asyncpg.Connection
) -> None:
    await insert(
        database,
        [
            rejected(HOSTILE.encode(), topic=f"meters/{HOSTILE}", detail=HOSTILE),
            rejected("a\n\u202eb\x1b[2J\u200b".encode(), "wrong_type", "vehicles/\x1b\u202ex/\u2066", "\x07 \u202e"),
            rejected(b"\x00\xff\x1b", "malformed_json"),
            rejected(b"", "missing_field"),
            rejected(b"x" * 1000, "too_large"),
        ],
    )
    found = client.get("/rejections").text
    assert "<script>" not in found
    assert "<img" not in found
    assert found.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3
    assert "{{ 7 * 7 }}" in found
    assert not [c for c in found if not c.isprintable() and c not in "\n\u00a0\u202f"]
    shown = words(client.get("/rejections"))
    assert "a \\u202eb\\x1b[2J\\u200b" in shown
    assert "vehicles/\\x1b\\u202ex/\\u2066" in shown
    assert "\\x07 \\u202e" in shown
    assert "00000000 00 ff 1b |...|" in shown
    assert "3 bytes, which are not UTF-8:" in shown
    assert "has 0 bytes." in shown
    assert "1 000 bytes" in shown
    assert "of which the first 400 are here" in shown
    assert "x" * 401 not in found


async def test_another_try_is_shown_first_and_then_done_and_the_group_is_gone(
    client: TestClient, database: asyncpg.Connection
) -> None:
    good = meter(THEN)
    await insert(
        database, [rejected(good), rejected(good, n=1), rejected({"voltage": "?"}, n=2), rejected(b"x", "too_old")]
    )
    group = {"reason": "clock_ahead", "device": "m-1"}

    dry = send(client, "/rejections/replay", group, page="/rejections")

    assert dry.status_code == 200
    assert (
        "3 rejections looked at, nothing changed yet: 1 reading would be stored, 1 is there already, "
        "1 would be rejected again." in words(dry)
    )
    assert "1 missing field" in words(dry)
    assert "Do it" in words(dry)
    assert client.get("/v1/meters/m-1").status_code == 404

    done = send(client, "/rejections/replay", {**group, "store": "yes"}, page="/rejections")

    assert "3 rejections tried again: 1 reading stored, 1 was there already, 1 rejected again." in words(done)
    assert client.get("/v1/meters/m-1").status_code == 200
    assert [one["rejections"] for one in client.get("/v1/rejections").json()["items"]] == [1, 1]

    await database.execute("DELETE FROM rejection WHERE reason = 'clock_ahead'")
    none = send(client, "/rejections/replay", {**group, "store": "yes"}, page="/rejections")
    assert "There are no such rejections any more." in words(none)


async def test_the_whole_filter_is_tried_a_part_at_a_time(
    client: TestClient, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "REPLAY_MAX", 2)
    await insert(database, [rejected(meter(THEN + n * MINUTE), n=n) for n in range(3)])
    first = send(client, "/rejections/replay", {"store": "yes"}, page="/rejections")
    assert "2 rejections tried again: 2 readings stored" in words(first)
    assert "These were the oldest 2; there are more." in words(first)
    cursor = first.text.split('name="cursor" value="')[1].split('"')[0]
    rest = send(client, "/rejections/replay", {"store": "yes", "cursor": cursor}, page="/rejections")
    assert "1 rejection tried again: 1 reading stored" in words(rest)
    assert "Nothing was rejected" in words(client.get("/rejections"))


async def test_a_replay_empties_the_cache_and_the_first_page_knows(
    database_url: str, database: asyncpg.Connection
) -> None:
    with client_of(build_app(settings(database_url, ANALYTICS_CACHE_TTL_S="3600"))) as client:
        await insert(database, [rejected(meter(THEN))])
        assert "Rejected: 1 clock ahead" in words(client.get("/"))
        before = client.get("/v1/analytics/fleet").json()["unlinkedAcKwh"]
        send(client, "/rejections/replay", {"store": "yes"}, page="/rejections")
        assert "Rejected: 1 clock ahead" not in words(client.get("/"))
        assert (before, client.get("/v1/analytics/fleet").json()["unlinkedAcKwh"]) == (0, 1.5)


async def test_who_is_no_admin_sees_why_but_not_what_came_and_may_not_try_again(
    database_url: str, database: asyncpg.Connection, tokens: MakeTokens
) -> None:
    path, made = tokens()
    await insert(database, [rejected(meter(THEN))])
    with client_of(build_app(settings(database_url, API_TOKENS_FILE=path))) as client:
        for role in ("read", "write"):
            client.cookies.clear()
            sign_in(client, made[role])
            shown = words(client.get("/rejections"))
            assert "Clock ahead" in shown
            assert "m-1" in shown
            assert "takes a token of the role admin" in shown
            for hidden in ("it is ahead", "kwhConsumedAc", "meters/m-1/reading", "Try again", "Try all"):
                assert hidden not in shown
            refused = send(client, "/rejections/replay", {"store": "yes"}, page="/rejections")
            assert refused.status_code == 403
            assert "takes a token of the role admin" in words(refused)
        client.cookies.clear()
        sign_in(client, made["admin"])
        key = form_key(client, "/rejections")
        for data, headers in (
            ({}, {}),
            ({"form_key": "x"}, {}),
            ({"form_key": key}, {"Sec-Fetch-Site": "cross-site"}),
        ):
            again = client.post("/rejections/replay", data={"store": "yes", **data}, headers=headers)
            assert again.status_code == 403
        assert client.get("/v1/rejections", headers=bearer(made["admin"])).json()["rejections"] == 1
        done = send(client, "/rejections/replay", {"store": "yes"}, page="/rejections")
        assert "1 reading stored" in words(done)


def test_a_wrong_try_is_refused(client: TestClient) -> None:
    for wrong in ({"reason": "because"}, {"device": "a b"}, {"cursor": "x"}, {"store": "no"}, {"limit": "1"}):
        assert send(client, "/rejections/replay", wrong, page="/links").status_code == 422, wrong
