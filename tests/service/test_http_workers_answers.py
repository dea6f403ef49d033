"""Several front ends for one engine process answer, refuse and limit their clients as one process
does."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from service.workers.front_end import MAX_KEPT_BYTES
from tests.service.conftest import Server, running
from tests.service.front_ends import front_ends
from tests.service.sockets import connected, exchange

FILM = {"inputs": "it is a good film"}
PAIR = {"text": "somebody eats", "text_pair": "it was not very good"}
LONG = "the film is not very good and the plot was awful but it is great in red and blue " * 12
LARGE = 16 << 20
TENSOR = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "naïve 电影"]}
BINARY = {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}


def told(answer: httpx2.Response) -> tuple[int, bytes, dict[str, str]]:
    """What an answer says, without what differs from one to the next."""
    own = ("date", "server-timing", "x-request-id")
    return (
        answer.status_code,
        answer.content,
        {name: value for name, value in answer.headers.items() if name not in own},
    )


PREDICTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "a text": ("/predict?task=sst2", FILM),
    "a list": ("/predict?task=sst2", {"inputs": ["good", "naïve 电影", LONG], "truncate": True}),
    "a pair": ("/predict?task=mrpc", {"inputs": PAIR}),
    "pairs": ("/predict?task=mnli", {"inputs": [PAIR, ["a", "b"]], "parameters": {"top_k": 2}}),
    "a regression": ("/predict?task=stsb", {"inputs": PAIR}),
    "many labels": ("/predict?task=topics", {"inputs": "red and blue"}),
    "raw": ("/predict?task=sst2", FILM | {"raw_scores": True}),
    "several tasks": ("/predict?task=mrpc&task=stsb&task=mnli", {"inputs": [PAIR, PAIR]}),
    "windows": (
        "/predict?task=sst2",
        {"inputs": [LONG, "good"], "parameters": {"window": {"stride": 8}}},
    ),
    "windows of a pair": (
        "/predict?task=mrpc",
        {"inputs": [LONG, "good"], "parameters": {"window": {}}},
    ),
    "infer": ("/v2/models/sst2/infer", {"inputs": [TENSOR], "id": "7"}),
    "infer, binary": ("/v2/models/sst2/infer", BINARY),
}


@pytest.mark.parametrize("what", PREDICTIONS)
def test_predictions_are_those_of_one_process(
    what: str, client: httpx2.Client, clients: list[httpx2.Client]
) -> None:
    """Every front end answers every form of a request to the byte as one process does, the first
    time and again."""
    path, body = PREDICTIONS[what]
    expected = told(client.post(path, json=body))
    assert expected[0] == 200
    for _ in range(2):
        for each in clients:
            assert told(each.post(path, json=body)) == expected


REFUSALS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no task": ("POST", "/predict", {"json": FILM}),
    "an unknown task": ("POST", "/predict?task=sst", {"json": FILM}),
    "an unknown task, no JSON": ("POST", "/predict?task=sst", {"content": b"{"}),
    "an unknown version": ("POST", "/predict?task=sst2&version=beef", {"json": FILM}),
    "a version of two tasks": (
        "POST",
        "/predict?task=sst2&task=topics&version=beef",
        {"json": FILM},
    ),
    "no JSON": ("POST", "/predict?task=sst2", {"content": b"{"}),
    "no object": ("POST", "/predict?task=sst2", {"content": b"[]"}),
    "no inputs": ("POST", "/predict?task=sst2", {"json": {}}),
    "an empty text": ("POST", "/predict?task=sst2", {"json": {"inputs": ""}}),
    "a pair too much": ("POST", "/predict?task=sst2", {"json": {"inputs": PAIR}}),
    "a pair too few": ("POST", "/predict?task=mrpc", {"json": FILM}),
    "a control character": ("POST", "/predict?task=sst2", {"json": {"inputs": "a\u0001"}}),
    "a top_k": ("POST", "/predict?task=sst2", {"json": FILM | {"parameters": {"top_k": 0}}}),
    "too long": ("POST", "/predict?task=sst2", {"json": {"inputs": LONG}}),
    "too many": ("POST", "/predict?task=sst2", {"json": {"inputs": ["a"] * 65}}),
    "too many windows": (
        "POST",
        "/predict?task=sst2",
        {"json": {"inputs": LONG * 40, "parameters": {"window": {}}}},
    ),
    "a wide stride": (
        "POST",
        "/predict?task=sst2",
        {"json": {"inputs": LONG, "parameters": {"window": {"stride": 99}}}},
    ),
    "compressed": (
        "POST",
        "/predict?task=sst2",
        {"json": FILM, "headers": {"Content-Encoding": "gzip"}},
    ),
    "a large body": ("POST", "/predict?task=sst2", {"content": b" " * (3 << 20)}),
    "a method": ("GET", "/predict?task=sst2", {}),
    "a path": ("GET", "/nowhere", {}),
    "a slash": ("POST", "/predict/", {"json": FILM}),
    "no path": ("POST", "/", {"json": FILM}),
    "a tensor": ("POST", "/v2/models/sst2/infer", {"json": {"inputs": [TENSOR | {"shape": [3]}]}}),
    "a model": ("POST", "/v2/models/sst/infer", {"json": {"inputs": [TENSOR]}}),
    "a task that is no UTF-8": ("POST", "/predict?task=%ED%A0%80", {"json": FILM}),
    "a model that is no UTF-8": ("POST", "/v2/models/%ED%A0%80/infer", {"json": {}}),
    "a model's version": (
        "POST",
        "/v2/models/sst2/versions/beef/infer",
        {"json": {"inputs": [TENSOR]}},
    ),
    "a header": (
        "POST",
        "/v2/models/sst2/infer",
        {"content": b"{}", "headers": {"Inference-Header-Content-Length": "x"}},
    ),
    "no form": ("POST", "/adapters", {"content": b"nothing"}),
    "no adapter": ("POST", "/adapters", {"files": {"file": b"nothing"}}),
    "a page": (
        "POST",
        "/adapters",
        {"files": {"file": b"nothing"}, "headers": {"Origin": "https://example.com"}},
    ),
    "an active version": ("DELETE", "/adapters/sst2/versions/ACTIVE", {}),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_are_those_of_one_process(
    what: str, client: httpx2.Client, clients: list[httpx2.Client]
) -> None:
    """Every front end refuses with the status, the sentence and the headers of one process,
    whatever it remembers."""
    method, path, request = REFUSALS[what]
    path = path.replace("ACTIVE", client.get("/adapters/sst2").json()["version"])
    expected = told(client.request(method, path, **request))
    assert expected[0] >= 300
    for each in clients:
        found = told(each.request(method, path, **request))
        if "location" in expected[2]:  # it has the server's address, too
            found[2]["location"] = found[2]["location"].replace(
                str(each.base_url), str(client.base_url)
            )
        assert found == expected


def test_a_body_without_an_end(client: httpx2.Client, clients: list[httpx2.Client]) -> None:
    """A body in chunks that goes beyond its limit is refused as by one process, though it is read
    in part before."""
    refused = [
        each.post("/predict?task=sst2", content=iter([b" " * 60_000] * 50))
        for each in (client, *clients)
    ]
    assert {answer.status_code for answer in refused} == {413}
    assert {answer.json()["error_type"] for answer in refused} == {"BodyTooLarge"}


def test_a_body_announced_as_too_large(workers: Server) -> None:
    """A body that is announced as too large is refused unread: a client that waits to be told to go
    on never is."""
    with socket.create_connection(
        ("127.0.0.1", urlsplit(workers.url).port or 0), timeout=60
    ) as connection:
        head = (
            b"POST /predict?task=sst2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n"
        )
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_all_else_is_the_engine_process_s(
    client: httpx2.Client, clients: list[httpx2.Client]
) -> None:
    """The page, its parts, the documentation, V2's metadata and a file of many pieces come through
    every front end."""
    version = client.get("/adapters/sst2").json()["version"]
    file = f"/adapters/sst2/versions/{version}/file"
    paths = (
        "/",
        "/static/page.js",
        "/docs",
        "/docs/swagger-ui-bundle.js",
        "/openapi.json",
        "/v2",
        "/v2/models/sst2",
        file,
    )
    for path in paths:
        expected = told(client.get(path))
        assert expected[0] == 200
        for each in clients:
            assert told(each.get(path)) == expected
            assert told(each.head(path)) == told(client.head(path))


@pytest.fixture(scope="module")
def impatient(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two front ends that wait for nobody for longer than two seconds, and take large bodies."""
    store = tmp_path_factory.mktemp("impatient") / "store"
    shutil.copytree(filled_store, store)
    limits = {"header_seconds": 1, "body_seconds": 1, "keep_alive_seconds": 2}
    with running(store, workers=2, max_body_bytes=LARGE, **limits) as server:
        yield server


HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
SMUGGLED = b"DELETE /adapters/sst2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIMITED: dict[str, tuple[bytes, list[int]]] = {
    "half a head": (HEALTH, [408]),
    "half a body": (HEAD % (b"/predict?task=sst2", 100) + b"\r\nabc", [408]),
    "half a body that is relayed": (
        HEAD % (b"/adapters", 100) + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b",
        [408],
    ),
    "no next request": (HEALTH + b"\r\n", [200]),
    "a large header": (HEALTH + b"X: " + b"x" * (96 << 10), [431]),
    "many headers": (HEALTH + b"X: x\r\n" * 200 + b"\r\n", [431]),
    "a long URL": (b"GET /" + b"x" * (33 << 10), [414]),
    "an upgrade": (
        HEAD % (b"/predict?task=sst2", len(SMUGGLED))
        + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        + SMUGGLED,
        [400],
    ),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", [400]),
}


def test_limits_of_a_connection(impatient: Server) -> None:
    """A front end holds the limits of time and size of every connection, as one process does, be a
    request its own or relayed."""
    sent = [what for what in LIMITED for _ in range(4)]  # so that each front end has some
    with ThreadPoolExecutor(len(sent)) as pool:  # most wait for a time-out
        found = list(pool.map(lambda what: exchange(impatient, LIMITED[what][0]), sent))
    statuses = [
        (what, [each.status for each in answer]) for what, answer in zip(sent, found, strict=True)
    ]
    # On a busy machine the time of a head may be over before all of it is read: 408 too.
    assert all(found in (LIMITED[what][1], [408]) for what, found in statuses), statuses


def test_bodies_that_do_not_end(impatient: Server) -> None:
    """However many bodies clients begin to send, a front end keeps at most MAX_KEPT_BYTES of them,
    and answers others meanwhile."""
    before = [front_end.memory_info().rss for front_end in front_ends(impatient)]
    port = urlsplit(impatient.url).port or 0
    with contextlib.ExitStack() as stack:
        for _ in range(5 * MAX_KEPT_BYTES // LARGE):
            connection = stack.enter_context(connected(impatient))
            connection.sendall(HEAD % (b"/predict?task=sst2", LARGE) + b"\r\n" + b"x" * (LARGE - 1))
        while unread(port):  # a front end has not read what the kernel has
            pass
        after = [front_end.memory_info().rss for front_end in front_ends(impatient)]
        for _ in range(8):
            with impatient.client() as client:
                assert client.post("/predict?task=sst2", json=FILM).status_code == 200
    grown = [now - then for now, then in zip(after, before, strict=True)]
    # all bodies together are 5 times as much: one front end has at least 2.5 times
    assert max(grown) < 1.5 * MAX_KEPT_BYTES


def unread(port: int) -> int:
    """The bytes that have come to a port of this machine and that no process has read."""
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, _, queues, *_ = line.split()
        if int(local.partition(":")[2], 16) == port:
            found += int(queues.partition(":")[2], 16)
    return found
