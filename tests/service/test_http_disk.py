"""A disk that rots, or that is slow: what it costs whom, on a real server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from adapters.file import parse
from adapters.store import Store
from tests.service.conftest import running, until

FILM = {"inputs": "good"}
PAIR = {"inputs": {"text": "good", "text_pair": "bad"}}
WAITING = 40  # requests for one file: more than any pool of threads in the server has


def status(client: httpx2.Client, task: str) -> int:
    return client.post(f"/predict?task={task}", json=FILM).status_code


@contextlib.contextmanager
def held(path: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A slow file: whoever opens it waits, by a lease, until the context that is given ends. That
    one begins when somebody waits."""
    descriptor = os.open(path, os.O_RDWR)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the kernel tells of it
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    @contextlib.contextmanager
    def begun() -> Iterator[None]:
        until(lambda: fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_WRLCK)
        try:
            yield
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    try:
        yield begun
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("damage", ["a bit", "gone"])
def test_a_task_recovers_from_its_rotten_file(
    damage: str, tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """A file that rots while the server runs is a 503 for its task alone, download too, until it is
    restored or uploaded."""
    store = Store(tmp_path / "store")
    data = adapter_bytes("sst2")
    version, _ = store.put(parse(data))
    store.put(parse(adapter_bytes("topics")))
    path = store.path("sst2", version.digest)
    store.close()
    with running(tmp_path / "store", host_cache_bytes=0) as server, server.client() as client:
        for recover in (
            lambda: path.write_bytes(data),
            lambda: client.post("/adapters", files={"file": data}),
        ):
            # now sst2 is not in memory
            assert [status(client, task) for task in ("sst2", "topics")] == [200, 200]
            path.unlink()
            if damage == "a bit":
                path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            for answer in (
                client.post("/predict?task=sst2", json=FILM),
                client.get(f"/adapters/sst2/versions/{version.short}/file"),
            ):
                assert (answer.status_code, answer.json()["error_type"]) == (503, "DamagedAdapter")
                assert version.short in answer.json()["error"]
            assert status(client, "topics") == 200
            recover()
            assert status(client, "sst2") == 200


def test_a_slow_file_holds_up_nobody_else(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """While a file is being read, for however many requests, all other tasks are answered, also
    those that must be read; then it is read once for all of them."""
    store = Store(tmp_path / "store")
    data = adapter_bytes("sst2")
    version, _ = store.put(parse(data))
    store.put(parse(adapter_bytes("topics")))
    store.put(parse(adapter_bytes("mrpc")))
    path = store.path("sst2", version.digest)
    store.close()
    many = httpx2.Limits(max_connections=WAITING)
    with (
        running(tmp_path / "store") as server,
        server.client(limits=many) as slow,
        server.client() as client,
    ):
        assert status(client, "topics") == 200
        with held(path) as begun, ThreadPoolExecutor(WAITING) as pool:
            waiting = [pool.submit(status, slow, "sst2") for _ in range(WAITING)]
            with begun():
                assert status(client, "topics") == 200
                assert client.post("/predict?task=mrpc", json=PAIR).status_code == 200
                assert (
                    client.post("/adapters", files={"file": adapter_bytes("topics")}).status_code
                    == 200
                )
                assert not any(answer.done() for answer in waiting)
            assert {answer.result(timeout=60) for answer in waiting} == {200}


def test_a_slow_write_holds_up_no_reader(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """While an upload waits for the disk, predictions, lists and metrics are answered."""
    store = Store(tmp_path / "store")
    data = adapter_bytes("sst2")
    version, _ = store.put(parse(data))
    store.put(parse(adapter_bytes("topics")))
    path = store.path("sst2", version.digest)
    store.close()
    with running(tmp_path / "store") as server, server.client() as client, server.client() as other:
        assert [status(client, task) for task in ("sst2", "topics")] == [200, 200]
        with held(path) as begun, ThreadPoolExecutor(1) as pool:
            # compares the file that is there
            upload = pool.submit(other.post, "/adapters", files={"file": data})
            with begun():
                assert len(client.post("/v2/repository/index").json()) == 2
                assert [
                    client.get(f"/{what}").status_code for what in ("metrics", "storage", "ready")
                ] == [200] * 3
                assert [status(client, task) for task in ("sst2", "topics")] == [200, 200]
                assert not upload.done()
            assert upload.result(timeout=60).status_code == 200


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a socket"])
def test_what_is_no_file_holds_up_nobody(
    kind: str, tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """A pipe, an endless device or a socket in place of an adapter's file is a 503 for its task at
    once, in a prediction, a download, a list and an activation; an upload mends it."""
    store = Store(tmp_path / "store")
    data = adapter_bytes("sst2")
    version, _ = store.put(parse(data))
    path = store.path("sst2", version.digest)
    store.close()
    with running(tmp_path / "store", host_cache_bytes=0) as server, server.client() as client:
        path.unlink()
        with contextlib.ExitStack() as stack:
            if kind == "a pipe":
                os.mkfifo(path)
            elif kind == "a device":
                path.symlink_to("/dev/zero")
            else:
                unix = stack.enter_context(socket.socket(socket.AF_UNIX))
                stack.enter_context(contextlib.chdir(path.parent))  # such a path must be short
                unix.bind(path.name)
            at = "/adapters/sst2"
            for answer in (
                client.post("/predict?task=sst2", json=FILM),
                client.get(f"{at}/versions/{version.short}/file"),
                client.get(at),
                client.post(f"{at}/activate", json={"version": version.short}),
            ):
                assert (answer.status_code, answer.json()["error_type"]) == (503, "DamagedAdapter")
            assert client.get("/adapters").json() == []
            assert client.post("/adapters", files={"file": data}).status_code == 200
            assert status(client, "sst2") == 200
