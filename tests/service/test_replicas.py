"""Three replicas on one bucket: real services, a real S3 server that is stopped and killed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adapters.backbone import Backbone
from adapters.file import serialize
from tests import forks
from tests.buckets import S3, rclone, seaweedfs
from tests.service import keys_files
from tests.service.conftest import Server, running, sample, until
from tests.tiny import random_adapter

pytestmark = pytest.mark.timeout(300)
LEASE = 0.3
STALE_TRIES = 60
SETTINGS: dict[str, Any] = {
    "store_lease_seconds": LEASE,
    "store_poll_seconds": 0.1,
    "store_timeout_seconds": 2,
    "wait_seconds": 1,
}
KEY = "a-key-to-read"
FILM = {"inputs": "it is a good film"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    folder = tmp_path_factory.mktemp("seaweedfs")
    with seaweedfs(folder) as server, pytest.MonkeyPatch.context() as patch:
        server.export(patch)
        yield server


@pytest.fixture(scope="module")
def files(bert: Backbone) -> list[bytes]:
    """Two versions of the task sst2."""
    return [random_adapter(bert, "sst2", ["no", "yes"], seed=seed)[2] for seed in range(2)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@contextlib.contextmanager
def replica(s3: S3, bert_folder: Path, cache: Path, **more: Any) -> Iterator[Server]:
    settings = {**SETTINGS, "backbone": bert_folder, "cache": cache, **more}
    with running(s3.url("replicas"), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def replicas(s3: S3, bert_folder: Path, cache: Path) -> Iterator[list[Server]]:
    """Three, the last one with front ends."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(replica(s3, bert_folder, cache / str(i), workers=workers))
            for i, workers in enumerate((1, 1, 2))
        ]


@pytest.fixture
def clients(replicas: list[Server]) -> Iterator[list[httpx2.Client]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(each.client()) for each in replicas]


def upload(client: httpx2.Client, data: bytes) -> str:
    """Upload and activate; the generation that the answer bears."""
    answer = client.post("/adapters", files={"file": data})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.headers["X-Adamix-Generation"])


def predict(client: httpx2.Client, task: str = "sst2", **headers: str) -> httpx2.Response:
    return client.post("/predict", params={"task": task}, json=FILM, headers=headers)


def version(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.headers["X-Adapter-Version"]).partition("@")[2]


def test_what_was_acknowledged_holds_on_every_replica(
    clients: list[httpx2.Client], files: list[bytes]
) -> None:
    """P1: of sixty activations, each acknowledged by one of three replicas in turn, no prediction
    of the others right after it is answered by the version before; a deletion holds likewise."""
    for data in files:
        upload(clients[0], data)
    versions = [found["version"] for found in clients[0].get("/adapters/sst2").json()["versions"]]
    stale = 0
    for i, client in zip(range(STALE_TRIES), itertools.cycle(clients), strict=False):
        wanted = versions[i % 2]
        done = client.post("/adapters/sst2/activate", json={"version": wanted})
        assert done.status_code == 200, done.text
        stale += sum(version(predict(other)) != wanted for other in clients if other is not client)
    assert stale == 0
    generation = int(clients[1].delete("/adapters/sst2").headers["X-Adamix-Generation"])
    assert [predict(client).status_code for client in clients] == [404] * 3
    assert [sample(client, "adamix_store_generation") for client in clients] == [generation] * 3


def test_a_generation_is_never_answered_by_older_state(
    clients: list[httpx2.Client], files: list[bytes]
) -> None:
    """P2: a request that bears the generation of a write is answered by it; one that bears a
    generation to come gets 503 and Retry-After; one that bears none, a sentence."""
    generation = upload(clients[0], files[0])
    for client in clients:
        assert predict(client, **{"X-Adamix-Generation": generation}).status_code == 200
        answer = predict(client, **{"X-Adamix-Generation": str(int(generation) + 5)})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json()["error_type"] == "BehindGeneration"
        answer = predict(client, **{"X-Adamix-Generation": "newest"})
        assert answer.status_code == 422
        assert answer.json()["error"].startswith("X-Adamix-Generation is 'newest'; expected")
        twice = [("X-Adamix-Generation", generation), ("X-Adamix-Generation", "99999")]
        answer = client.post("/predict?task=sst2", json=FILM, headers=twice)
        assert answer.status_code == 422


def flipped(bert: Backbone) -> bytes:
    """The first version of sst2 with its labels the other way round."""
    spec, tensors, _ = random_adapter(bert, "sst2", ["no", "yes"])
    turned = {name: -t if name.startswith("head.out") else t for name, t in tensors.items()}
    logits = tuple(tuple(-value for value in row) for row in spec.probe.logits)
    probe = spec.probe.model_copy(update={"logits": logits})
    return serialize(spec.model_copy(update={"probe": probe}), turned)


def test_a_canary_on_every_replica(
    clients: list[httpx2.Client], files: list[bytes], bert: Backbone
) -> None:
    """A split that one replica acknowledged holds on all, which give a key the same version; a
    canary that breaks its rule on one of them leaves them all within two seconds."""
    path = "/adapters/sst2/traffic"
    data = {"activate": "false"}
    uploaded = clients[0].post("/adapters", files={"file": flipped(bert)}, data=data)
    assert uploaded.status_code in (200, 201), uploaded.text
    upload(clients[0], files[0])
    canary, active = (hashlib.sha256(file).hexdigest()[:12] for file in (flipped(bert), files[0]))
    split: dict[str, Any] = {"active": active, "canary": {"version": canary, "percent": 50}}
    assert clients[1].put(path, json=split).status_code == 200
    keys = [f"user-{i}" for i in range(12)]
    found = [[version(predict(each, **{"X-Request-Key": key})) for key in keys] for each in clients]
    assert set(found[0]) == {active, canary}
    assert found[0] == found[1] == found[2]
    split["rollback"] = {"disagreement": 0.2, "after": 5}
    assert clients[2].put(path, json=split).status_code == 200
    for key in keys:
        predict(clients[1], **{"X-Request-Key": key})

    def left(client: httpx2.Client) -> str:
        return str((client.get(path).json()["left"] or {}).get("version"))

    until(lambda: any(left(each) == canary for each in clients))
    since = time.monotonic()
    until(lambda: all(left(each) == canary for each in clients))
    assert time.monotonic() - since < 2
    for each in clients:
        assert {version(predict(each, **{"X-Request-Key": key})) for key in keys} == {active}
    assert clients[0].delete("/adapters/sst2").status_code == 204


def test_a_generation_needs_the_key(s3: S3, bert_folder: Path, cache: Path) -> None:
    """A request without the key is refused before its generation is looked at: it neither waits nor
    learns the newest one."""
    with (
        replica(s3, bert_folder, cache / "keyed", api_key=KEY, workers=2) as server,
        server.client() as client,
    ):
        ahead = {"X-Adamix-Generation": "99999"}
        for key, status in ((None, 401), ("wrong-key", 401), (KEY, 503)):
            bearer = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert predict(client, **ahead, **bearer).status_code == status
            assert client.get("/adapters", headers={**ahead, **bearer}).status_code == status


def test_a_keys_file_on_every_replica(
    s3: S3, bert_folder: Path, tmp_path: Path, files: list[bytes]
) -> None:
    """Keys of a file hold on each replica of a bucket, each with an audit log of its own: what one
    team wrote on one replica is there for it on another, and does not exist for the other team,
    also where the bucket is gone or a generation is asked for."""
    keys = keys_files.write(
        tmp_path / "keys.toml",
        keys_files.key("team-a", ["predict", "write"], ["sst2"]),
        keys_files.key("team-b", ["predict", "write"], ["other-*"]),
    )
    settings = {**SETTINGS, "backbone": bert_folder, "keys_file": keys, "admin_key": KEY}
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                running(
                    s3.url("keys"),
                    **settings,
                    workers=workers,
                    cache=tmp_path / f"cache-{workers}",
                    audit_log=tmp_path / f"audit-{workers}",
                )
            )
            for workers in (1, 2)
        ]
        ours, others = (
            [
                stack.enter_context(server.client(headers=keys_files.bearing(team)))
                for server in servers
            ]
            for team in ("team-a", "team-b")
        )
        assert others[0].post("/adapters", files={"file": files[0]}).status_code == 404
        generation = upload(ours[0], files[0])
        for client in ours:
            assert predict(client, **{"X-Adamix-Generation": generation}).status_code == 200
        assert ours[1].delete("/adapters/other-x").status_code == 404
        lines = [json.loads((tmp_path / f"audit-{i}").read_text() or "null") for i in (1, 2)]
        assert (lines[0]["key"], lines[0]["task"], lines[0]["result"]) == ("team-a", "sst2", "done")
        assert lines[1] is None

        def hidden() -> None:
            for client in others:
                assert predict(client).status_code == 404
                assert client.get("/adapters/sst2").status_code == 404
                assert client.get("/adapters").json() == []

        hidden()
        strange = {"Authorization": "Bearer team-c.secret", "X-Adamix-Generation": "99999"}
        for server in servers:
            with server.client(headers=strange) as client:
                assert predict(client).status_code == 401
        s3.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: all(client.get("/fresh").status_code == 503 for client in ours))
            hidden()
            assert [predict(client).status_code for client in ours] == [200, 200]
            refused = ours[0].delete("/adapters/sst2")
            assert refused.status_code == 503
        finally:
            s3.process.send_signal(signal.SIGCONT)
        until(lambda: all(client.get("/fresh").status_code == 200 for client in ours))
        last = json.loads((tmp_path / "audit-1").read_text().splitlines()[-1])
        assert (last["what"], last["result"]) == ("delete task", "StoreUnreachable")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_without_the_bucket(
    how: str,
    s3: S3,
    bert_folder: Path,
    bert: Backbone,
    cache: Path,
    clients: list[httpx2.Client],
    files: list[bytes],
) -> None:
    """P4: while the bucket is stopped or killed, each replica predicts, lists what it has and is
    ready, but not fresh, and refuses writes; one that begins then serves what its disk holds; once
    the bucket is back, writes hold again."""
    upload(clients[0], files[0])
    assert [version(predict(client)) for client in clients]
    # the others know of it, and have no copy
    upload(clients[0], random_adapter(bert, "elsewhere", ["no", "yes"])[2])
    with replica(s3, bert_folder, cache / "late"):
        pass
    if how == "stopped":
        s3.process.send_signal(signal.SIGSTOP)
    else:
        s3.kill()
    try:
        until(lambda: all(client.get("/fresh").status_code == 503 for client in clients))
        for client in clients:
            assert predict(client).status_code == 200
            assert client.get("/ready").status_code == 200
            assert client.get("/fresh").json()["error_type"] == "Stale"
            listed = client.get("/adapters")
            assert listed.status_code == 200, listed.text
            assert "sst2" in {each["task"] for each in listed.json()}
            answer = predict(client, **{"X-Adamix-Generation": "99999"})
            assert answer.json()["error_type"] == "BehindGeneration"
            answer = client.post("/adapters", files={"file": files[1]})
            assert answer.status_code == 503, answer.text
            assert answer.json()["error_type"] == "StoreUnreachable"
            assert answer.headers["Retry-After"] == "1"
            assert s3.address not in answer.text
            assert sample(client, "adamix_store_errors_total") > 0
        if how == "killed":
            with replica(s3, bert_folder, cache / "late") as late, late.client() as client:
                assert client.get("/ready").json()["tasks"] == 2
                assert client.get("/fresh").status_code == 503
    finally:
        if how == "stopped":
            s3.process.send_signal(signal.SIGCONT)
        else:
            s3.start()
    until(lambda: all(client.get("/fresh").status_code == 200 for client in clients))
    upload(clients[1], files[1])
    assert len({version(predict(client)) for client in clients}) == 1


def refused(**settings: Any) -> tuple[int, str]:
    """Start a service that ends by itself: its exit code and what it said."""
    given = {f"ADAMIX_{name.upper()}": str(value) for name, value in settings.items()}
    done = forks.run(["service", "--port", "0"], {**os.environ, **given})
    return done.returncode, done.stderr


def test_a_bucket_that_ignores_conditions_ends_the_start(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: a service on rclone's S3 server, which ignores conditions, ends with code 2 and a
    sentence."""
    (tmp_path / "s3").mkdir()
    with rclone(tmp_path / "s3") as server:
        server.export(monkeypatch)
        code, said = refused(
            store=server.url("store"), backbone=bert_folder, cache=tmp_path, seed="none"
        )
    assert code == 2
    assert "ignores the condition of a write" in said.splitlines()[-1]


BAD = {
    "no scheme of a bucket": ({"store": "ftp://somewhere"}, "expected a folder, or a bucket as"),
    "a password": ({"store": "s3://k:secret@b/p"}, "STORE is not usable: the store's address, s3:"),
    "no admin key": ({"store": "s3://b/p", "host": "0.0.0.0"}, "ADAMIX_ADMIN_KEY is not set, but"),
    "a poll as long as the lease": ({"store_poll_seconds": 1}, "less than STORE_LEASE_SECONDS"),
}


@pytest.mark.parametrize("what", BAD)
def test_settings_that_no_replica_can_keep(what: str) -> None:
    """Settings of a bucket that do not go together are refused with what is expected."""
    settings, sentence = BAD[what]
    code, said = refused(**settings)
    assert code == 2
    assert sentence in said
    assert "secret" not in said
