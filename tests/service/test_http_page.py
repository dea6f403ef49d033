"""What the page at / is made of, as it comes over HTTP; what it does is tested in a browser, in
tests/browser."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest

import service

STATIC = Path(service.__file__).parent / "http" / "static"


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css", "/static/icon.svg"])
def test_nothing_may_be_loaded_from_elsewhere(client: httpx2.Client, path: str) -> None:
    """Every part of the page forbids scripts, styles, pictures and requests of any other origin,
    and markup from strings."""
    policy = client.get(path).headers["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy


def test_every_part_is_there(client: httpx2.Client) -> None:
    """What the page and its scripts name is served with its type, and no part names another
    host."""
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    pages = client.get("/").text + client.get("/docs").text
    named = set(re.findall(r'"static/([^"]+)"', pages))
    assert named == {path.name for path in STATIC.iterdir()} - {"index.html", "docs.html"}
    for name in named:
        answer = client.get(f"/static/{name}")
        assert (answer.status_code, answer.text) == (200, (STATIC / name).read_text())
        assert answer.headers["Content-Type"].startswith(types[Path(name).suffix])
        assert set(re.findall(r'from "./([^"]+)"', answer.text)) <= named
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)


def test_the_documentation_names_no_other_origin(client: httpx2.Client) -> None:
    """/docs and what it names come from this server, are not written inline, and may load nothing
    from anywhere else."""
    page = client.get("/docs")
    assert not re.findall(r"(?:https?:)?//", page.text)
    assert not re.findall(r"<script>|<style|style=|onload=", page.text)
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert not re.findall(r"https?:|\*", policy)
    named = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert [client.get(path).status_code for path in named] == [200] * 4
    assert "openapi.json" in client.get("/static/docs.js").text
    assert client.get("/docs/main.py").status_code == client.get("/redoc").status_code == 404


@pytest.mark.parametrize(
    "name", ["nonesuch.js", "index.html", "..%2f__main__.py", "%2e%2e%2fapp.py", "page.py", ".js"]
)
def test_only_the_page_s_own_files_are_served(client: httpx2.Client, name: str) -> None:
    """Under /static there is nothing but the page's files: other names are 404 with a sentence."""
    answer = client.get(f"/static/{name}")
    assert (answer.status_code, answer.json()["error_type"]) == (404, "UnknownPath")


@pytest.mark.parametrize(
    "asked", ["bytes=0-3", "bytes=9-1", "bytes=99999999-", "words=0-3", "[::1"]
)
def test_a_part_of_a_file_is_the_whole(client: httpx2.Client, asked: str) -> None:
    """A Range of the page or of its files, whether it can be read or not, is answered with all of
    the file."""
    for path in ("/", "/static/page.js", "/docs", "/docs/swagger-ui.css"):
        answer = client.get(path, headers={"Range": asked})
        assert (answer.status_code, answer.headers["Accept-Ranges"]) == (200, "none")
        assert answer.content == client.get(path).content
