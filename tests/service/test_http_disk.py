"""A disk that rots, or that is slow: what it costs whom, on a real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from adapters.file import parse
from adapters.store import Store
from tests.service.conftest import running

FILM = {"inputs": "good"}
PAIR = {"inputs": {"text": "good", "text_pair": "bad"}}
WAITING = 40  # requests for one file: more than any pool of threads in the server has


def status(client: httpx2.Client, task: str) -> int:
    return client.post(f"/predict?task={task}", json=FILM).status_code


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
        path.unlink()
        os.mkfifo(path)
        with ThreadPoolExecutor(WAITING) as pool:
            waiting = [pool.submit(status, slow, "sst2") for _ in range(WAITING)]
            with path.open("wb") as file:  # opens once the server has begun to read
                assert status(client, "topics") == 200
                assert client.post("/predict?task=mrpc", json=PAIR).status_code == 200
                assert (
                    client.post("/adapters", files={"file": adapter_bytes("topics")}).status_code
                    == 200
                )
                assert not any(answer.done() for answer in waiting)
                file.write(data)
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
        path.unlink()
        os.mkfifo(path)
        with ThreadPoolExecutor(1) as pool:
            # compares the file that is there
            upload = pool.submit(other.post, "/adapters", files={"file": data})
            with path.open("wb") as file:
                assert len(client.post("/v2/repository/index").json()) == 2
                assert [
                    client.get(f"/{what}").status_code for what in ("metrics", "storage", "ready")
                ] == [200] * 3
                assert [status(client, task) for task in ("sst2", "topics")] == [200, 200]
                assert not upload.done()
                file.write(data)
            assert upload.result(timeout=60).status_code == 200
