"""The store under a service: given its adapters once, written by one service, read by more."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.file import parse
from adapters.store import Store
from tests import forks
from tests.service.conftest import running

FILM = {"inputs": "a good film"}


@pytest.fixture
def store(tmp_path: Path, adapter_bytes: Callable[..., bytes]) -> Path:
    """A store with one task, that no process has open."""
    with Store(tmp_path / "store") as store:
        store.put(parse(adapter_bytes("sst2")))
    return tmp_path / "store"


def test_deleted_seeds_stay_deleted(tmp_path: Path, adapter_bytes: Callable[..., bytes]) -> None:
    """Adapters that a new store was given do not come back once they are deleted."""
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "sst2.safetensors").write_bytes(adapter_bytes("sst2"))
    with running(tmp_path / "store", seed=seed) as server, server.client() as client:
        assert client.delete("/adapters/sst2").status_code == 204
    with running(tmp_path / "store", seed=seed) as server, server.client() as client:
        assert client.get("/adapters").json() == []


def test_a_second_service(store: Path) -> None:
    """A second service on the same store does not start, with one sentence and exit code 2, unless
    it is read-only: then it answers predictions, and writes with 503."""
    with running(store) as server, server.client() as client:
        settings = {"ADAMIX_STORE": str(store), "ADAMIX_PORT": "0"}
        done = forks.run(["service"], {**os.environ, **settings})
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: the store {store} is in use by another process")
        assert done.stderr.count("\n") == 1
        with running(store, read_only=True) as second, second.client() as reader:
            assert reader.post("/predict?task=sst2", json=FILM).status_code == 200
            answer = reader.delete("/adapters/sst2")
            assert (answer.status_code, answer.json()["error_type"]) == (503, "StoreError")
            assert "is read-only" in answer.json()["error"]
        assert client.post("/predict?task=sst2", json=FILM).status_code == 200


def test_faults_are_logged_and_the_rest_is_served(
    store: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """A service with a task that cannot be read starts, says so in its log, and serves the others;
    the task answers 503."""
    with Store(store) as opened:
        opened.put(parse(adapter_bytes("topics")))
    (store / "topics" / "active").unlink()
    (store / "topics" / "active").mkdir()
    with running(store) as server, server.client() as client:
        assert client.post("/predict?task=sst2", json=FILM).status_code == 200
        answer = client.post("/predict?task=topics", json=FILM)
        assert (answer.status_code, answer.json()["error_type"]) == (503, "DamagedAdapter")
        assert [entry["task"] for entry in client.get("/adapters").json()] == ["sst2"]
        reasons = [line["reason"] for line in server.lines if "fault" in line["event"]]
        assert reasons == ["task 'topics' cannot be read, and is left out: Is a directory"]
