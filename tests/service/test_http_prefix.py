"""Behind a proxy that offers the service under a path, and paths that end in a slash."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2
import pytest

from adapters.file import parse
from adapters.store import Store
from tests.service.conftest import Server, running

FILM = {"inputs": "it is a good film"}


@pytest.fixture(scope="module")
def prefixed(
    tmp_path_factory: pytest.TempPathFactory, adapter_bytes: Callable[..., bytes]
) -> Iterator[Server]:
    """A server that is told of its prefix."""
    folder = tmp_path_factory.mktemp("prefixed") / "store"
    Store(folder).put(parse(adapter_bytes("sst2")))
    with running(folder, root_path="/a/ml/") as server:
        yield server


@pytest.mark.parametrize("prefix", ["", "/a/ml"])
def test_a_prefix_is_known(
    prefix: str, prefixed: Server, adapter_bytes: Callable[..., bytes]
) -> None:
    """Whether the proxy leaves the prefix on or takes it off, every path is found, and what the
    service says of its own addresses has the prefix."""
    with prefixed.client() as client:
        assert client.post(f"{prefix}/predict?task=sst2", json=FILM).status_code == 200
        for path in ("/", "/docs", "/static/page.js", "/health", "/v2/models/sst2"):
            assert client.get(f"{prefix}{path}").status_code == 200, path
        stored = client.post(f"{prefix}/adapters", files={"file": adapter_bytes("sst2")})
        assert stored.headers["Location"].startswith("/a/ml/adapters/sst2/versions/")
        assert client.get(stored.headers["Location"]).content == adapter_bytes("sst2")
        document = client.get(f"{prefix}/openapi.json").json()
        assert document["servers"] == [{"url": "/a/ml"}]
        assert "/predict" in document["paths"]
        assert client.get(f"{prefix}/a/mlx").status_code == 404


def test_a_large_body_under_a_prefix_has_its_path_s_limit(prefixed: Server) -> None:
    """The limit of a body is that of the path without the prefix."""
    with prefixed.client() as client:
        refused = client.post("/a/ml/adapters", files={"file": b"x" * (3 << 20)})
        assert refused.status_code == 422  # read whole, and no adapter
        assert client.post("/a/ml/predict?task=sst2", content=b"x" * (3 << 20)).status_code == 413


def test_the_page_names_no_absolute_path(client: httpx2.Client) -> None:
    """The page, its scripts and the documentation ask for addresses relative to their own."""
    parts = [client.get(path).text for path in ("/", "/docs")]
    parts += [
        client.get(f"/static/{name}.js").text
        for name in ("docs", "page", "tasks", "try", "traffic", "upload", "server")
    ]
    for part in parts:
        for path in ("static", "adapters", "predict", "storage", "metrics", "docs", "openapi.json"):
            assert f'"/{path}' not in part
            assert f"`/{path}" not in part


@pytest.mark.parametrize("path", ["/predict/", "/predict//"])
def test_a_post_is_never_redirected(path: str, client: httpx2.Client) -> None:
    """A POST whose path ends in a slash is answered: a client would repeat it elsewhere or
    without its body."""
    answer = client.post(f"{path}?task=sst2", json=FILM)
    assert answer.status_code == 200
    assert client.post("/nonesuch/", json=FILM).status_code == 404
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}
    assert client.post("/v2/models/sst2/infer/", json={"inputs": [tensor]}).status_code == 200


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/docs/", "../docs"),
        ("/adapters/?limit=1", "../adapters?limit=1"),
        ("/adapters/sst2//", "../../sst2"),
        ("/%3Aa%20b/", "../%3Aa%20b"),
    ],
)
def test_a_get_is_redirected_relative_to_its_own_address(
    path: str, address: str, client: httpx2.Client
) -> None:
    """A GET whose path ends in a slash is redirected to the one without it, by an address that is
    right under any prefix, host and scheme."""
    answer = client.get(path, follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (307, address)
    assert client.head(path, follow_redirects=False).status_code == 307
