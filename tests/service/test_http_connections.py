"""Connections over time: clients that wait, leave, stop reading, or are too many, and a server that
stops."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import resource
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fastapi import FastAPI, Request

from adapters.backbone import Backbone
from service.http import answers as errors
from service.http.addresses import bound
from service.http.connections import ConnectionSettings
from service.http.middleware import RequestContext
from service.http.server import Config
from service.http.server import Server as HttpServer
from service.settings import Settings
from tests.service.conftest import Server, running, until
from tests.service.sockets import answers, connected, exchange, first_answer, seen
from tests.tiny import random_adapter

BODY = json.dumps({"inputs": "good"}).encode()
PREDICT = b"POST /predict?task=sst2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
REQUEST = PREDICT % len(BODY) + BODY
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
IMPATIENCE = {"header_seconds": 1, "body_seconds": 1, "keep_alive_seconds": 2}


@pytest.fixture(scope="module")
def impatient(filled_store: Path) -> Iterator[Server]:
    """A server that waits for nobody for longer than two seconds."""
    with running(filled_store, **IMPATIENCE) as server:
        yield server


@contextlib.contextmanager
def serving(app: Any, **settings: Any) -> Iterator[Server]:
    """The HTTP server in this process, with an app of the test's own."""
    listening = threading.Event()
    place = bound("127.0.0.1", 0)
    url = f"http://127.0.0.1:{place.getsockname()[1]}"
    server = HttpServer(Config(app, 1, ConnectionSettings(**settings)), listening.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        assert listening.wait(20)
        yield Server(None, url, Path())  # type: ignore[arg-type]  # it has no process
    finally:
        server.should_exit = True
        thread.join()


def tracebacks(server: Server) -> list[Any]:
    return [line for line in list(server.lines) if "exception" in line or "Traceback" in str(line)]


def test_clients_that_do_not_go_on(impatient: Server) -> None:
    """A head, a body, or a next request that does not come is waited for as long as the settings
    say; a request that has begun is answered with 408."""
    waits = {
        b"": [],
        HEALTH: [200],
        b"GET /health HTT": [408],
        b"GET /health HTTP/1.1\r\nHost: a": [408],
        HEALTH + b"GET /hea": [200, 408],
        PREDICT % 100: [408],
        PREDICT % 100 + b"abc": [408],
        PREDICT.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"3\r\n{": [408],
        REQUEST + PREDICT % 5 + b"abc": [200, 408],
        b"\r\n": [],
    }
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(impatient)) for _ in waits]
        for connection, request in zip(connections, waits, strict=True):
            connection.sendall(request)
        for connection, (request, statuses) in zip(connections, waits.items(), strict=True):
            found = answers(connection)
            assert [answer.status for answer in found] == statuses, request
            if statuses[-1:] == [408]:
                assert found[-1].error_type == "RequestTooSlow"
                assert found[-1].headers["connection"] == "close"


def test_a_body_that_goes_on(impatient: Server) -> None:
    """A body that is larger than a second's worth has more time than one that stands still."""
    body = json.dumps({"inputs": "good " * 60_000, "truncate": True}).encode()
    with connected(impatient) as slow, connected(impatient) as steady:
        slow.sendall(PREDICT % 100)
        steady.sendall(PREDICT % len(body) + body[:-1])
        assert [answer.status for answer in answers(slow)] == [408]
        steady.sendall(body[-1:])
        assert first_answer(steady).status == 200


def test_a_client_that_does_not_read(impatient: Server) -> None:
    """Answers that their client does not read are dropped with its connection."""
    with connected(impatient, receive_bytes=4096) as connection:
        port = connection.getsockname()[1]
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(OSError):
            for _ in range(60):
                connection.sendall(request)
        for _ in range(2000):  # each asks the server, whose clock goes on
            seen(impatient)
            if port not in clients(impatient):
                break
        assert port not in clients(impatient)


def clients(server: Server) -> set[int]:
    """The ports of those that it has a connection with."""
    process = psutil.Process(server.process.pid)
    connections = [
        connection
        for each in [process, *process.children()]
        for connection in each.net_connections("tcp")
    ]
    return {
        c.raddr.port
        for c in connections
        if c.raddr and c.status in (psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT)
    }


def test_the_defaults() -> None:
    """A connection may rest for longer than the minute that load balancers keep theirs."""
    settings = Settings()
    assert settings.keep_alive_seconds == 75
    assert vars(ConnectionSettings()).items() <= settings.model_dump().items()


def test_bodies_on_their_way_have_a_bound_together(filled_store: Path) -> None:
    """Where unfinished bodies hold more than they may together, the oldest of them are answered
    with 503 and a time to try again, and who sends a body at once is answered."""
    held = b"x" * 60_000
    with (
        running(filled_store, read_only=True, max_arriving_bytes=1 << 20) as server,
        contextlib.ExitStack() as stack,
    ):
        slow = [stack.enter_context(connected(server)) for _ in range(24)]
        for connection in slow:
            connection.sendall(PREDICT % (len(held) + 1) + held)
            seen(server)
        for connection in slow[: len(slow) - (1 << 20) // len(held)]:
            (answer,) = answers(connection)
            assert (answer.status, answer.error_type) == (503, "TooManyBodies")
            assert answer.headers["retry-after"] == "1"
        with connected(server) as quick:
            quick.sendall(REQUEST)
            assert first_answer(quick).status == 200
        slow[-1].sendall(b"x")  # it is no JSON, which somebody has read
        assert first_answer(slow[-1]).status == 400
    assert not tracebacks(server)


def test_answers_that_nobody_reads_have_a_bound_together(
    tmp_path: Path, embedded: Backbone
) -> None:
    """Where unread answers hold more than they may together, the connections of the oldest are
    closed, and who reads is answered."""
    data = random_adapter(embedded, "large", ["no", "yes"], bottleneck=256, dtype=torch.float32)[2]
    with (
        running(tmp_path / "store", max_unread_bytes=1 << 20) as server,
        server.client() as client,
        contextlib.ExitStack() as stack,
    ):
        version = client.post("/adapters", files={"file": data}).json()["version"]
        ask = b"GET /adapters/large/versions/%b/file HTTP/1.1\r\nHost: localhost\r\n\r\n"
        deaf = [stack.enter_context(connected(server, receive_bytes=4096)) for _ in range(3)]
        for connection in deaf:
            connection.sendall(ask % version.encode())
        ports = {connection.getsockname()[1] for connection in deaf}
        until(lambda: not ports & clients(server))
        assert client.get("/health").status_code == 200


@contextlib.contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """What is started here may open so many files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def crowded(store: Path, **settings: Any) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        with few_descriptors(256):
            # a forked one would not have this limit
            server = stack.enter_context(running(store, forked=False, read_only=True, **settings))
        yield server


def crowding(line: dict[str, Any]) -> bool:
    """Whether a line of the log says that there were too many connections."""
    return "too many connections" in line["event"]


def test_idle_connections_give_way(filled_store: Path) -> None:
    """More idle connections than the process may have files do not keep another client out: the
    oldest is closed, and the log says so once."""
    with crowded(filled_store) as server, contextlib.ExitStack() as stack:
        kept = []
        for number in range(600):
            connection = stack.enter_context(connected(server))
            if number % 3:
                connection.sendall((b"GET /hea", HEALTH)[number % 2])
            kept.append(connection)
            if number % 25 == 0:
                seen(server)
        with server.client() as client:
            for _ in range(20):
                assert client.get("/health").status_code == 200
        oldest = kept[0].recv(1)
        assert oldest == b""
        seen(server)
        until(lambda: any(crowding(line) for line in server.lines))
        told = [line for line in server.lines if crowding(line)]
        assert told[0]["closed_while_waiting"] > 0
        assert len(told) <= 2


def test_connections_that_are_busy_do_not_give_way(filled_store: Path) -> None:
    """Where each connection has a request under way, a new one is told 503 at once, and there is
    room again when their time is over."""
    with crowded(filled_store, body_seconds=3) as server, contextlib.ExitStack() as stack:
        busy = []
        for _ in range(300):  # more than there is room for
            connection = stack.enter_context(connected(server))
            with contextlib.suppress(OSError):
                connection.sendall(PREDICT % 100)
            busy.append(connection)
        (answer,) = exchange(server, HEALTH)
        assert (answer.status, answer.error_type) == (503, "TooManyConnections")
        assert [answer.status for answer in answers(busy[0])] == [408]
        seen(server)


def test_a_refusal_is_read_by_who_is_still_sending(server: Server) -> None:
    """Clients that read only when they have sent everything get the 413, and the 431."""
    for size in (3 << 20, 16 << 20):
        request = urllib.request.Request(f"{server.url}/predict?task=sst2", data=b"x" * size)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 413
        assert json.loads(refused.value.read())["error_type"] == "BodyTooLarge"
    address = server.url.removeprefix("http://")
    client = http.client.HTTPConnection(address, timeout=60)
    client.request("POST", "/predict?task=sst2", iter([b"x" * (1 << 20)] * 16), encode_chunked=True)
    assert client.getresponse().status == 413
    client.close()
    client = http.client.HTTPConnection(address, timeout=60)
    client.request("GET", "/health", headers={"X": "x" * (8 << 20)})
    assert client.getresponse().status == 431
    client.close()


def test_half_a_connection(server: Server) -> None:
    """A client that closes its side after its requests is answered, whichever version it speaks,
    and the connection is closed after the last answer."""
    long = json.dumps({"inputs": ["a long and winding road " * 12] * 60}).encode()
    for request, statuses in {
        REQUEST: [200],
        REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"): [200],
        REQUEST + HEALTH + REQUEST: [200, 200, 200],
        PREDICT % len(long) + long: [200],
        REQUEST + b"GET /hea": [200, 400],
        PREDICT % 100 + b"abc": [400],
        b"": [],
    }.items():
        with connected(server) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            found = answers(connection)
        assert [answer.status for answer in found] == statuses, request


def test_a_fault_of_ours_keeps_the_connection() -> None:
    """After a 500 of ours the connection is used for the next request; after an answer that broke
    off it is closed."""
    app = FastAPI()
    errors.install(app)

    @app.get("/fault")
    async def fault() -> None:
        raise RuntimeError("secret")

    @app.get("/health")
    async def health() -> str:
        return "fine"

    with serving(app) as server, connected(server) as connection:
        for path, status in (("fault", 500), ("health", 200), ("fault", 500), ("health", 200)):
            connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = first_answer(connection)
            assert answer.status == status
            assert "connection" not in answer.headers


def test_an_app_that_does_not_answer() -> None:
    """An app that fails before it answers, or never answers, is a 500 in our form; one that stops
    within its answer ends the connection there."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        if scope["path"] == "/raises":
            raise RuntimeError("secret")
        if scope["path"] == "/stops":
            headers = [(b"content-length", b"9")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})

    with serving(app) as server:
        for path in ("raises", "nothing"):
            (answer,) = exchange(server, f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert (answer.status, answer.error_type) == (500, "InternalError")
            assert answer.headers["connection"] == "close"
        with connected(server) as connection:
            connection.sendall(b"GET /stops HTTP/1.1\r\nHost: a\r\n\r\n")
            whole = b"".join(iter(lambda: connection.recv(4096), b""))
        assert whole.endswith(b"\r\n\r\nhalf")


def test_a_client_that_waits_for_leave_to_send(server: Server) -> None:
    """A client that expects 100 is told to go on, or refused and the connection closed: what comes
    next may be its body or its next request."""
    expect = b"Expect: 100-continue\r\nContent-Length"
    with connected(server) as connection:
        connection.sendall((PREDICT % len(BODY)).replace(b"Content-Length", expect))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        (answer,) = answers(connection)
        assert answer.status == 200
    with connected(server) as connection:
        connection.sendall((PREDICT % (1 << 30)).replace(b"Content-Length", expect))
        answer = first_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        connection.sendall(HEALTH)
        assert answers(connection) == []


def test_proxies_that_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """X-Forwarded-… of a trusted proxy is believed, of others not, whatever uvicorn's own variables
    say."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    app = FastAPI()

    @app.get("/")
    async def told(request: Request) -> list[str]:
        assert request.client is not None
        return [request.url.scheme, request.client.host]

    request = (
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.8.7.6\r\nX-Forwarded-Proto: https\r\n"
        b"Connection: close\r\n\r\n"
    )
    believed, doubted = [["https", "9.8.7.6"], ["http", "127.0.0.1"]]
    for trusted, expected in {
        "127.0.0.1,::1": believed,
        "127.0.0.0/8": believed,
        "*": believed,
        "10.0.0.0/8": doubted,
    }.items():
        with serving(app, trusted_proxies=trusted) as server:
            (answer,) = exchange(server, request)
        assert json.loads(answer.body) == expected, trusted


def stop_listening(server: Server) -> None:
    """Ask it to stop, and wait until it takes no more connections."""
    server.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(ConnectionError):
        while True:
            connected(server).close()


def test_a_server_that_stops(filled_store: Path) -> None:
    """A body that comes while the server stops is answered; one that does not is told 503 when the
    time is over; no traceback is logged."""
    with running(filled_store, read_only=True, drain_seconds=2) as server:
        with contextlib.ExitStack() as stack:
            late, never, idle = (stack.enter_context(connected(server)) for _ in range(3))
            late.sendall(REQUEST[:-3])
            never.sendall(REQUEST[:-3])
            idle.sendall(HEALTH)
            assert first_answer(idle).status == 200
            seen(server)
            stop_listening(server)
            late.sendall(REQUEST[-3:])
            (answer,) = answers(late)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert idle.recv(1) == b""
            (answer,) = answers(never)
            assert (answer.status, answer.error_type) == (503, "Stopping")
        assert server.process.wait(timeout=30) == 0
        server.stopped.wait(10)
        assert not tracebacks(server)


def test_a_write_that_a_stop_cuts_off() -> None:
    """Whether a write was done that the time to stop is too short for is said to be unknown; a read
    or a prediction is sent to another replica."""
    begun = threading.Semaphore(0)

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        begun.release()
        await asyncio.Event().wait()

    requests = {
        b"DELETE /ml/adapters/sst2": "OutcomeUnknown",
        b"POST /adapters": "OutcomeUnknown",
        b"GET /adapters": "Stopping",
        b"POST /predict?task=adapters": "Stopping",
    }
    with contextlib.ExitStack() as stack:
        with serving(RequestContext(app)) as server:
            connections = [stack.enter_context(connected(server)) for _ in requests]
            for connection, request in zip(connections, requests, strict=True):
                connection.sendall(request + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
                assert begun.acquire(timeout=20)
        for connection, error_type in zip(connections, requests.values(), strict=True):
            (answer,) = answers(connection)
            assert (answer.status, answer.error_type) == (503, error_type)


def test_front_ends_have_the_same_door(filled_store: Path) -> None:
    """Two front ends decline upgrades, wait and stop as one process does."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    hidden = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = PREDICT.replace(b"Host", upgrade + b"Host")
    with running(
        filled_store, read_only=True, workers=2, drain_seconds=2, header_seconds=1
    ) as server:
        last = HEALTH.replace(b"Host", b"Connection: close\r\nHost")
        for _ in range(8):
            cut = head % len(hidden)
            assert [a.status for a in exchange(server, cut, hidden + last)] == [400, 200]
        assert exchange(server, head % len(BODY), BODY + last)[0].status == 200
        (answer,) = exchange(server, b"GET /health HTT")
        assert answer.status == 408
        with connected(server) as never:
            never.sendall(REQUEST[:-3])
            seen(server)
            stop_listening(server)
            (answer,) = answers(never)
            assert (answer.status, answer.error_type) == (503, "Stopping")
        assert server.process.wait(timeout=30) == 0
        server.stopped.wait(10)
        assert not tracebacks(server)
        requested = {line.get("path") for line in server.lines if line["event"] == "request"}
        assert "/smuggled" not in requested
