"""Several front ends for one engine process are one server: what one of them was told the others
answer, and there is one queue, one log and one /metrics."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from service.refusals import QueueFull
from tests.service.conftest import Server, running
from tests.service.front_ends import client_of, front_ends, holds
from tests.service.test_http_operations import value

FILM = {"inputs": "it is a good film"}
TENSOR = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "naïve 电影"]}


def test_connections_are_spread(workers: Server) -> None:
    """Of many connections opened before any front end wakes, each gets a part: not all the one that
    wakes first."""
    processes = front_ends(workers)
    address = ("127.0.0.1", urlsplit(workers.url).port or 0)
    with contextlib.ExitStack() as stack:
        for process in processes:
            process.suspend()
            stack.callback(process.resume)
        connections = [stack.enter_context(socket.create_connection(address)) for _ in range(64)]
        for process in processes:
            process.resume()
        for connection in connections:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert {connection.recv(12) for connection in connections} == {b"HTTP/1.1 200"}
        ports = [connection.getsockname()[1] for connection in connections]
        parts = [sum(holds(front_end, port) for port in ports) for front_end in processes]
    assert sum(parts) == 64
    assert min(parts) >= 8  # a fair coin would do that in all but one of some 10^10 times


def test_an_upload_is_everywhere_at_once(
    workers: Server, clients: list[httpx2.Client], adapter_bytes: Callable[..., bytes]
) -> None:
    """What one front end was told of a task, by upload, activation, rollback or deletion, the
    others and new connections answer from then on, though they remember what was before."""

    def served() -> set[str]:
        with contextlib.ExitStack() as stack:
            fresh = [stack.enter_context(workers.client()) for _ in range(8)]
            answers = [each.post("/predict?task=moving", json=FILM) for each in (*clients, *fresh)]
            answers += [
                each.post("/v2/models/moving/infer", json={"inputs": [TENSOR]}) for each in clients
            ]
        return {
            answer.headers.get("X-Adapter-Version") or answer.json()["error_type"]
            for answer in answers
        }

    versions = []
    for seed, each in enumerate(clients):
        answer = each.post("/adapters", files={"file": adapter_bytes("moving", seed=seed)})
        assert answer.status_code == 201, answer.text
        versions.append(answer.json()["version"])
        assert served() == {f"moving@{versions[-1]}"}
    first, second = versions
    one, other = clients
    assert other.post("/adapters/moving/activate", json={"version": first}).status_code == 200
    assert served() == {f"moving@{first}"}
    pinned = [
        each.post(f"/predict?task=moving&version={second[:6]}", json=FILM) for each in clients
    ]
    assert {answer.headers["X-Adapter-Version"] for answer in pinned} == {f"moving@{second}"}
    assert one.delete(f"/adapters/moving/versions/{second}").status_code == 204
    gone = [each.post(f"/predict?task=moving&version={second[:6]}", json=FILM) for each in clients]
    assert {answer.json()["error_type"] for answer in gone} == {"UnknownVersion"}
    assert other.delete("/adapters/moving").status_code == 204
    assert served() == {"UnknownTask"}
    wider = adapter_bytes("moving", seed=2, labels=["x", "y", "z"], max_length=96)
    assert one.post("/adapters", files={"file": wider}).status_code == 201
    longer = {"inputs": "good " * 80}  # more than either had before
    assert [len(each.post("/predict?task=moving", json=longer).json()) for each in clients] == [
        3,
        3,
    ]
    assert one.delete("/adapters/moving").status_code == 204


def test_metrics_are_of_all_front_ends(clients: list[httpx2.Client]) -> None:
    """The one /metrics counts and times every front end's requests, once each: the answered, the
    refused and the relayed."""
    names = {
        "ok": ("adamix_requests", "adamix_requests_total", {"task": "topics", "outcome": "ok"}),
        "invalid": (
            "adamix_requests",
            "adamix_requests_total",
            {"task": "topics", "outcome": "invalid"},
        ),
        "requests": (
            "adamix_request_duration_seconds",
            "adamix_request_duration_seconds_count",
            {},
        ),
        "tokenized": (
            "adamix_tokenization_duration_seconds",
            "adamix_tokenization_duration_seconds_count",
            {},
        ),
        "rows": ("adamix_batch_rows", "adamix_batch_rows_sum", {}),
    }

    def counts(client: httpx2.Client) -> dict[str, float]:
        return {
            what: value(client, family, sample, **labels)
            for what, (family, sample, labels) in names.items()
        }

    before = counts(clients[0])
    for each in clients:
        for _ in range(5):
            assert (
                each.post("/predict?task=topics", json={"inputs": ["good", "bad"]}).status_code
                == 200
            )
            assert each.post("/predict?task=topics", json={"inputs": 1}).status_code == 422
    expected = {"ok": 10, "invalid": 10, "requests": 20, "tokenized": 10, "rows": 20}
    for each in clients:
        for _ in range(200):  # what one front end tells may be read after what the other asks
            added = {what: count - before[what] for what, count in counts(each).items()}
            if added == expected:
                break
        assert added == expected
    (listed,) = clients[1].get("/adapters?details=true&search=topics").json()
    assert listed["requests"] >= 20
    assert listed["latency"]["p50"] > 0


def test_each_request_leaves_one_line(workers: Server, clients: list[httpx2.Client]) -> None:
    """A request's id stands in its answer and in one line of the log, be it answered, refused or
    relayed."""
    asked = {
        "answered": ("POST", "/predict?task=sst2"),
        "refused": ("POST", "/predict?task=sst"),
        "relayed": ("GET", "/v2"),
    }
    for i, each in enumerate(clients):
        for what, (method, path) in asked.items():
            answer = each.request(method, path, json=FILM, headers={"X-Request-ID": f"{what}-{i}"})
            assert answer.headers.get_list("X-Request-ID") == [f"{what}-{i}"]
    expected = {f"{what}-{i}": asked[what] for what in asked for i in range(len(clients))}

    def logged() -> list[dict[str, Any]]:
        return [
            line
            for line in list(workers.lines)
            if line["event"] == "request" and line["request_id"] in expected
        ]

    # an answer may be here before its line is: each asks the service once more
    for _ in range(2000):
        if len(logged()) >= len(expected):
            break
        assert clients[0].get("/health").status_code == 200
    assert sorted(line["request_id"] for line in logged()) == sorted(expected)
    for line in logged():
        method, path = expected[line["request_id"]]
        assert (line["method"], line["path"]) == (method, path.partition("?")[0])


def test_a_client_that_leaves(workers: Server, clients: list[httpx2.Client]) -> None:
    """The rows of a client that left its front end are dropped, and it is counted as cancelled."""
    wanted = 'adamix_requests_total{outcome="cancelled",task="mnli"} 2.0'
    pairs = {"inputs": [["good " * 50, "bad " * 50]] * 64, "truncate": True}
    for front_end in front_ends(workers):
        with client_of(workers, front_end) as leaving, pytest.raises(httpx2.ReadTimeout):
            leaving.post("/predict?task=mnli", json=pairs, timeout=httpx2.Timeout(60, read=0.1))
    # each asks the service, which learns of the closed connection on its own time
    for _ in range(2000):
        text = clients[0].get("/metrics").text
        if wanted in text:
            break
    assert wanted in text
    assert "adamix_queue_rows 0.0" in text


def test_keys_and_load(filled_store: Path, tmp_path: Path) -> None:
    """Without the API key there is a 401, beyond the queue a 429 that says when to come again; both
    in full, and counted."""
    shutil.copytree(filled_store, tmp_path / "store")
    key = {"Authorization": "Bearer predict-key"}
    settings = {
        "api_key": "predict-key",
        "max_queue_rows": 4,
        "max_inputs": 4,
        "max_batch_tokens": 16,
    }
    with running(tmp_path / "store", workers=2, **settings) as server, server.client() as client:
        refused = client.post("/predict?task=sst2", json=FILM)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert refused.json()["error"].startswith("this request bears no key; expected the API key")
        together = threading.Barrier(16)

        def call(_: int) -> httpx2.Response:
            together.wait(timeout=60)
            return client.post(
                "/predict?task=sst2", json={"inputs": ["good " * 12] * 4}, headers=key
            )

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(call, range(16)))
        assert {answer.status_code for answer in answers} == {200, 429}
        busy = [answer for answer in answers if answer.status_code == 429]
        for answer in busy:
            expected = str(QueueFull(int(answer.headers["Retry-After"])))
            assert answer.json() == {"error": expected, "error_type": "QueueFull"}
        overloaded = value(
            client, "adamix_requests", "adamix_requests_total", task="sst2", outcome="overloaded"
        )
        assert overloaded == len(busy)


def test_memory(workers: Server, clients: list[httpx2.Client]) -> None:
    """A front end that has answered takes less than the backbone, its pages that others share
    counted in part."""
    assert clients
    backbone = clients[0].get("/storage").json()["backbone_bytes"]
    for front_end in front_ends(workers):
        assert front_end.memory_full_info().pss < backbone
