"""Several front ends for one engine process: to a client they are one server, whichever of them it
has reached."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from service.refusals import OutcomeUnknown, QueueFull
from service.workers.front_end import MAX_KEPT_BYTES
from tests.service.conftest import Server, running
from tests.service.sockets import answers, connected, exchange
from tests.service.test_http_operations import value

FILM = {"inputs": "it is a good film"}
PAIR = {"text": "somebody eats", "text_pair": "it was not very good"}
LONG = "the film is not very good and the plot was awful but it is great in red and blue " * 12
LARGE = 16 << 20
MANY = {"inputs": ["good " * 50] * 64}  # most of a second's work
TENSOR = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "naïve 电影"]}
BINARY = {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}


def front_ends(server: Server) -> list[psutil.Process]:
    """The processes that speak HTTP."""
    return [
        process
        for process in psutil.Process(server.process.pid).children()
        if process.status() != "zombie"
    ]


def holds(front_end: psutil.Process, port: int) -> bool:
    """Whether that front end has the connection from this port."""
    return any(
        connection.raddr and connection.raddr.port == port
        for connection in front_end.net_connections("tcp")
    )


@contextlib.contextmanager
def client_of(server: Server, front_end: psutil.Process) -> Iterator[httpx2.Client]:
    """A client with one connection, to that front end: it connects until the kernel gives it to
    that one."""
    for _ in range(200):
        with server.client(limits=httpx2.Limits(max_connections=1)) as client:
            with client.stream("GET", "/static/icon.svg") as answer:
                assert answer.status_code == 200
                _, port = answer.extensions["network_stream"].get_extra_info("client_addr")
                answer.read()
            if holds(front_end, port):
                yield client
                return
    raise AssertionError(f"200 connections, and none to {front_end}")


@pytest.fixture(scope="module")
def workers(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same as the one process of `server`, with two front ends and a store of its own."""
    store = tmp_path_factory.mktemp("workers") / "store"
    shutil.copytree(filled_store, store)
    with running(store, max_inputs=64, workers=2) as server:
        yield server


@pytest.fixture
def clients(workers: Server) -> Iterator[list[httpx2.Client]]:
    """One of each front end."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(client_of(workers, front_end)) for front_end in front_ends(workers)
        ]


def told(answer: httpx2.Response) -> tuple[int, bytes, dict[str, str]]:
    """What an answer says, without what differs from one to the next."""
    own = ("date", "server-timing", "x-request-id")
    return (
        answer.status_code,
        answer.content,
        {name: value for name, value in answer.headers.items() if name not in own},
    )


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


def test_memory(workers: Server, clients: list[httpx2.Client]) -> None:
    """A front end that has answered takes less than the backbone, its pages that others share
    counted in part."""
    assert clients
    backbone = clients[0].get("/storage").json()["backbone_bytes"]
    for front_end in front_ends(workers):
        assert front_end.memory_full_info().pss < backbone


def replacement_of(workers: Server, ended: psutil.Process, other: psutil.Process) -> psutil.Process:
    """The front end that was started for one that has ended; the other one answers meanwhile."""
    with client_of(workers, other) as client:
        for _ in range(20_000):
            assert client.post("/predict?task=sst2", json=FILM).status_code == 200
            now = front_ends(workers)
            if len(now) == 2 and ended not in now and ended_lines(workers, ended):
                break
    (new,) = set(now) - {other}
    return new


def ended_lines(workers: Server, front_end: psutil.Process) -> list[dict[str, Any]]:
    """What the log has of a front end's end."""
    return [
        line
        for line in list(workers.lines)
        if line["event"] == "a front end ended; another one is started"
        and line["pid"] == front_end.pid
    ]


def test_a_front_end_that_dies_is_replaced(workers: Server) -> None:
    """The others answer meanwhile, the log says so, and then there are as many as before."""
    killed, other = front_ends(workers)
    killed.kill()
    with client_of(workers, replacement_of(workers, killed, other)) as client:
        assert client.post("/predict?task=sst2", json=FILM).status_code == 200
    (line,) = ended_lines(workers, killed)
    assert line["exit_code"] == -signal.SIGKILL


def test_a_front_end_that_is_stopped_is_replaced(workers: Server) -> None:
    """A front end that does not answer pings is killed and replaced. So its clients do not wait for
    ever, and the log says why their connections broke."""
    stopped, other = front_ends(workers)
    with client_of(workers, stopped) as client:
        stopped.suspend()
        with pytest.raises(httpx2.NetworkError):
            client.post("/predict?task=sst2", json=FILM)
    with client_of(workers, replacement_of(workers, stopped, other)) as client:
        assert client.post("/predict?task=sst2", json=FILM).status_code == 200
    (line,) = ended_lines(workers, stopped)
    assert line["exit_code"] == -signal.SIGKILL
    (line,) = [
        line
        for line in workers.lines
        if line["event"] == "a front end does not answer; it is killed"
    ]
    assert (line["pid"], line["seconds"]) == (stopped.pid, 10)


def test_a_front_end_that_cannot_start(tmp_path: Path) -> None:
    """A front end that ends before it serves ends the service, which says so, with exit code 1 and
    no process left."""
    settings = {"ADAMIX_WORKERS": "2", "ADAMIX_STORE": str(tmp_path / "store"), "ADAMIX_PORT": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "service"],
        env={**os.environ, **settings},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        started: list[psutil.Process] = []
        while len(started) < 2:
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(
                    f"it ended with {process.wait(timeout=0.02)}; expected two front ends first"
                )
            started = psutil.Process(process.pid).children()
        started[0].kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a front end ended before it served; the service stops" in said
    assert "listening" not in said
    assert psutil.wait_procs(started, timeout=0)[1] == []


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


@contextlib.contextmanager
def under_way(store: Path) -> Iterator[tuple[Server, list[psutil.Process], list[Any]]]:
    """A server whose every front end has a request under way; what becomes of each is put into the
    list."""
    ends: list[Any] = []
    with running(store, workers=2, log_level="debug", max_batch_tokens=256) as server:

        def ask(client: httpx2.Client) -> None:
            try:
                ends.append(client.post("/predict?task=sst2", json=MANY).status_code)
            except httpx2.TransportError as error:
                ends.append(error)

        processes = front_ends(server)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(client_of(server, process)) for process in processes]
            threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
            for thread in threads:
                thread.start()
            with server.client() as client:
                while (
                    sum(
                        line["event"] == "accepted" and line["path"] == "/predict"
                        for line in server.lines
                    )
                    < 2
                ):
                    assert client.get("/health").status_code == 200
            yield server, processes, ends
            for thread in threads:
                thread.join(timeout=60)


def test_sigterm(filled_store: Path, tmp_path: Path) -> None:
    """SIGTERM lets every front end answer what it accepted, and leaves no process and exit code
    0."""
    shutil.copytree(filled_store, tmp_path / "store")
    with under_way(tmp_path / "store") as (server, processes, ends):
        assert server.stop() == 0
        gone, alive = psutil.wait_procs(processes, timeout=0)
        assert (len(gone), alive) == (2, [])
    assert ends == [200, 200]
    assert server.lines[-1]["event"] == "stopped"
    assert not [line for line in server.lines if line.get("level") == "error"]


def test_kill_9(filled_store: Path, tmp_path: Path) -> None:
    """When the engine process is killed its front ends tell their clients that the service stops,
    and end by themselves without waiting for who is still sending."""
    shutil.copytree(filled_store, tmp_path / "store")
    with (
        under_way(tmp_path / "store") as (server, processes, ends),
        contextlib.ExitStack() as stack,
    ):
        for _ in processes:
            address = ("127.0.0.1", urlsplit(server.url).port or 0)
            connection = stack.enter_context(socket.create_connection(address))
            connection.sendall(
                b"POST /predict?task=sst2 HTTP/1.1\r\nHost: localhost\r\nContent-Length:"
                b" 100\r\n\r\n{"
            )
        server.stop(signal.SIGKILL)
        _, alive = psutil.wait_procs(processes, timeout=15)  # half of what SIGTERM would wait
        assert alive == []
    assert ends == [503, 503]


def test_a_write_under_way_when_the_engine_process_dies(
    filled_store: Path, tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """A write that the engine process has begun to read when it is killed is answered with a
    sentence that says that its outcome is unknown, and how to see it. What changes nothing is
    answered that the service stops. So it is also under a prefix."""
    shutil.copytree(filled_store, tmp_path / "store")
    upload = httpx2.Request(
        "POST", "http://localhost/adapters", files={"file": adapter_bytes("new")}
    )
    body = upload.read()
    asked = {
        "OutcomeUnknown": (b"/ml/adapters", upload.headers["Content-Type"]),
        "Stopping": (b"/ml/v2/repository/index", "application/json"),
    }
    with (
        running(tmp_path / "store", workers=2, root_path="/ml") as server,
        contextlib.ExitStack() as stack,
    ):
        waiting = {}
        for error_type, (path, content_type) in asked.items():
            connection = waiting[error_type] = stack.enter_context(connected(server))
            connection.sendall(
                b"POST %b HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                b"Content-Type: %b\r\nContent-Length: %d\r\n\r\n"
                % (path, content_type.encode(), len(body))
            )
            # the engine process's app asks for the body
            assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(body[: len(body) // 2])
        server.stop(signal.SIGKILL)
        found = {error_type: answers(connection) for error_type, connection in waiting.items()}
    for error_type, (answer,) in found.items():
        assert (answer.status, answer.error_type) == (503, error_type)
    (unknown,) = found["OutcomeUnknown"]
    assert json.loads(unknown.body)["error"] == str(OutcomeUnknown())
    assert "GET /adapters/{task}" in str(OutcomeUnknown())


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


def test_traces_want_one_process(tmp_path: Path) -> None:
    """Tracing with front ends ends the start with one sentence that names both settings, and exit
    code 2."""
    environment = {
        **os.environ,
        "ADAMIX_WORKERS": "2",
        "ADAMIX_TRACING": "true",
        "ADAMIX_STORE": str(tmp_path / "store"),
    }
    command = [sys.executable, "-m", "service"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    expected = (
        "setting ADAMIX_TRACING is true, but ADAMIX_WORKERS is 2; expected 1 worker where it is"
        " true"
    )
    assert (done.returncode, done.stderr) == (2, f"error: {expected}\n")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A service that cannot have its address says so, ends with exit code 2, and has started no
    front end."""
    environment = {**os.environ, "ADAMIX_WORKERS": "2", "ADAMIX_STORE": str(tmp_path / "store")}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "service", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: setting ADAMIX_PORT is ")
    assert "address already in use" in line


def test_a_host_that_is_none(tmp_path: Path) -> None:
    """A name that cannot be resolved is told as the host's setting, not the port's."""
    environment = {**os.environ, "ADAMIX_WORKERS": "2", "ADAMIX_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "service", "--host", "nowhere.invalid"]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()  # an admin key is made before, for others than this machine
    assert line.startswith("error: setting ADAMIX_HOST is 'nowhere.invalid', which is no address: ")


def test_the_admin_key_is_not_handed_on(filled_store: Path, tmp_path: Path) -> None:
    """A front end has no use for the admin key, and does not have it in its environment."""
    shutil.copytree(filled_store, tmp_path / "store")
    with running(tmp_path / "store", workers=2, admin_key="a-long-admin-key-0123456789") as server:
        assert "ADAMIX_ADMIN_KEY" in psutil.Process(server.process.pid).environ()
        for front_end in front_ends(server):
            assert "ADAMIX_ADMIN_KEY" not in front_end.environ()
