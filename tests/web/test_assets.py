"""Scripts, styles and the icon: kept by browsers for ever, under an address that a new version changes."""

import gzip
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.web.assets import CHART, FOLDER, MEDIA_TYPES, Assets

ASSETS = Assets()
NAMES = sorted([*(path.name for path in FOLDER.iterdir()), CHART])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_served_under_its_version_for_ever(site: TestClient, name: str) -> None:
    answer = site.get(ASSETS.url(name), headers={"Accept-Encoding": "identity"})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"].startswith(MEDIA_TYPES[f".{name.rpartition('.')[2]}"])
    assert answer.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_same_when_it_comes_compressed(site: TestClient, name: str) -> None:
    plain = site.get(ASSETS.url(name), headers={"Accept-Encoding": "identity"})
    with site.stream("GET", ASSETS.url(name), headers={"Accept-Encoding": "gzip"}) as answer:
        compressed = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(compressed) == plain.content


@pytest.mark.parametrize(
    "path", ["/static/0123456789abcdef/page.js", "/static//page.js", f"/static/{ASSETS.version}/no.js"]
)
def test_a_file_of_another_version_or_name_is_not_there(site: TestClient, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 404
    assert "immutable" not in answer.headers["cache-control"]


@pytest.mark.parametrize("name", ["../assets.py", "..%2Fassets.py", "%2e%2e/assets.py"])
def test_nothing_outside_is_served(site: TestClient, name: str) -> None:
    assert site.get(f"/static/{ASSETS.version}/{name}").status_code == 404


def test_a_name_that_is_no_file_is_a_mistake_in_a_template() -> None:
    with pytest.raises(KeyError, match=r"no\.js"):
        ASSETS.url("no.js")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_modules_import_only_files_that_are_there_by_relative_names(path: Path) -> None:
    for target in re.findall(r'^import .*"(.*)";$', path.read_text(encoding="utf-8"), re.MULTILINE):
        assert target.startswith("./")
        assert ASSETS.url(target.removeprefix("./"))
