"""The processes of a server with several front ends: how they start, how one that ends is replaced,
and what becomes of requests when the server stops or is killed."""

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
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from service.refusals import OutcomeUnknown
from tests.service.conftest import Server, running
from tests.service.front_ends import client_of, front_ends
from tests.service.sockets import answers, connected

FILM = {"inputs": "it is a good film"}
MANY = {"inputs": ["good " * 50] * 64}  # most of a second's work


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


def refused(folder: Path, *options: str) -> list[str]:
    """The lines that a service with two front ends ends with, at once, with exit code 2."""
    environment = {**os.environ, "ADAMIX_WORKERS": "2", "ADAMIX_STORE": str(folder / "store")}
    done = subprocess.run(
        [sys.executable, "-m", "service", *options],
        env=environment,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr.splitlines()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A service that cannot have its address says so, ends with exit code 2, and has started no
    front end."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (line,) = refused(tmp_path, "--port", str(taken.getsockname()[1]))
    assert line.startswith("error: setting ADAMIX_PORT is ")
    assert "address already in use" in line


def test_a_host_that_is_none(tmp_path: Path) -> None:
    """A name that cannot be resolved is told as the host's setting, not the port's."""
    # an admin key is made before, for others than this machine
    *_, line = refused(tmp_path, "--host", "nowhere.invalid")
    assert line.startswith("error: setting ADAMIX_HOST is 'nowhere.invalid', which is no address: ")


def test_the_admin_key_is_not_handed_on(filled_store: Path, tmp_path: Path) -> None:
    """A front end has no use for the admin key, and does not have it in its environment."""
    shutil.copytree(filled_store, tmp_path / "store")
    key = "a-long-admin-key-0123456789"
    with running(tmp_path / "store", forked=False, workers=2, admin_key=key) as server:
        assert "ADAMIX_ADMIN_KEY" in psutil.Process(server.process.pid).environ()
        for front_end in front_ends(server):
            assert "ADAMIX_ADMIN_KEY" not in front_end.environ()


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
