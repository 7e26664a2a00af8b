"""The files of the page over HTTP: types, versions, what a browser may load; and that a wheel holds them."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gpa.serve.page import ASSETS, TYPES


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[httpx.Client]:
    from gpa.models.gpa import GPA
    from serving import served

    with served(GPA.from_pretrained(tiny)) as server, httpx.Client(base_url=server.url) as asking:
        yield asking


def test_every_file_is_served_with_its_type_and_a_policy(client: httpx.Client) -> None:
    folder = Path(__file__).parent.parent / "gpa/serve/page"
    assert sorted(ASSETS) == sorted(p.name for p in folder.iterdir() if p.suffix not in (".py", ""))
    for path in ["/", *(f"/page/{name}" for name in ASSETS)]:
        answer = client.get(path)
        kind = TYPES["html" if path == "/" else path.rpartition(".")[2]]
        assert answer.status_code == 200 and answer.headers["content-type"].split(";")[0] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = dict(
            part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert client.head(path).headers["etag"] == answer.headers["etag"]


def test_a_browser_asks_again_and_gets_nothing_it_has(client: httpx.Client) -> None:
    first = client.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/page/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    other = client.get("/page/main.js", headers={"If-None-Match": '"another"'})
    assert other.status_code == 200 and other.content == first.content


@pytest.mark.parametrize("name", ["__init__.py", "..%2f__init__.py", "%2e%2e/app.py", "nothing.js"])
def test_nothing_else_is_opened(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    texts = {name: asset.data.decode() for name, asset in ASSETS.items()}
    foreign = [
        (name, url) for name, text in texts.items() for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)
    ]
    assert foreign == [("icon.svg", "http://www.w3.org")]
    assert not re.search(r"<style|<script(?![^>]*src=)| style=| on\w+=", texts["index.html"])
    imported = {m for text in texts.values() for m in re.findall(r'from "\./([\w.-]+)"', text)}
    assert imported and imported <= set(ASSETS)
