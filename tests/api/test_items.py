"""Bodies are cut into readings the same way wherever the pieces of the body end."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import items
from api.items import Cutter, Lines, Values

junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


def cut(cutter: Cutter, body: bytes, size: int) -> list[bytes]:
    found = []
    for start in range(0, len(body), size):
        found += cutter.feed(body[start : start + size])
        assert not cutter.dead
    return found + cutter.finish()


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for items after each piece, however small."""
    monkeypatch.setattr(items, "SCAN_BYTES", 1)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(junk, max_size=6), size=st.integers(1, 40), indent=st.sampled_from([None, 0, 2]))
def test_an_array_is_cut_into_its_elements(values: list[Any], size: int, indent: int | None) -> None:
    cutter = Values()
    found = cut(cutter, json.dumps(values, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass"), size)
    assert [json.loads(item) for item in found] == values
    assert not cutter.dead


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.dictionaries(st.text(max_size=5), junk, max_size=3), max_size=6), size=st.integers(1, 40))
def test_objects_one_after_another_are_cut(values: list[Any], size: int) -> None:
    for separator in ("", "\n", " \r\n\t"):
        found = cut(Values(), separator.join(map(json.dumps, values)).encode(), size)
        assert [json.loads(item) for item in found] == values


@settings(max_examples=200, deadline=None)
@given(values=st.lists(junk, max_size=6), size=st.integers(1, 40))
def test_lines_are_cut(values: list[Any], size: int) -> None:
    found = cut(Lines(), "\n".join(map(json.dumps, values)).encode(), size)
    assert [json.loads(item) for item in found] == values


@settings(max_examples=500, deadline=None)
@given(body=st.text(alphabet='[]{},": \\\n1a', max_size=60), size=st.integers(1, 60), array=st.booleans())
def test_rubbish_is_cut_the_same_however_it_comes(body: str, size: int, array: bool) -> None:
    text = (f"[{body}" if array else body).encode()
    for kind in (Values, Lines):
        whole, pieces = kind(), kind()
        assert cut(whole, text, len(text) or 1) == cut(pieces, text, size)
        assert bool(whole.dead) == bool(pieces.dead)
