"""Envoy, with the configuration that is shipped, in front of three real replicas on one bucket."""

from __future__ import annotations

import hashlib
import itertools
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adapters.backbone import Backbone
from tests.buckets import S3, Relay, free_ports, seaweedfs
from tests.envoy import CONFIGURATION, envoy, validate
from tests.service.conftest import Server, running, sample, until
from tests.tiny import random_adapter

pytestmark = pytest.mark.timeout(300)
TASKS = [f"task-{i}" for i in range(12)]
FILM = {"inputs": "it is a good film"}
V2 = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["it is a good film"]}]
}
CALLERS = 4
LAST = 2  # of the replicas
SWAPPED = TASKS[1]  # gets new versions under load


@dataclass
class Replicas:
    """The processes behind Envoy, each on a port of its own, and how to start one. The last one
    reaches the bucket through a relay."""

    bucket: S3
    relay: Relay
    settings: list[dict[str, Any]]
    servers: list[Server]
    stack: ExitStack

    def start(self, i: int) -> None:
        """Start one where it was."""
        with pytest.MonkeyPatch.context() as patch:
            if i == LAST:
                patch.setenv("AWS_ENDPOINT", f"http://{self.relay.address}")
            server = self.stack.enter_context(running(**self.settings[i]))
        self.servers[i : i + 1] = [server]

    def each(self) -> Iterator[httpx2.Client]:
        for server in self.servers:
            with server.client() as client:
                yield client


@pytest.fixture(scope="module")
def replicas(
    bert: Backbone, bert_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    """Three, with one task of each name."""
    folder = tmp_path_factory.mktemp("balancer")
    with seaweedfs(folder) as bucket, pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        bucket.export(patch)
        settings = [
            {
                "store": bucket.url("balanced"),
                "backbone": bert_folder,
                "port": port,
                "cache": folder / f"cache-{port}",
                "trusted_proxies": "*",
                "store_lease_seconds": 1,  # on a busy machine, too, a replica is fresh
                "store_poll_seconds": 0.1,
            }
            for port in free_ports(3)
        ]
        relay = Relay(bucket.address)
        stack.callback(relay.close)
        found = Replicas(bucket, relay, settings, [], stack)
        for i in range(3):
            found.start(i)
        files = [random_adapter(bert, task, ["no", "yes"])[2] for task in TASKS]
        with found.servers[0].client() as client, ThreadPoolExecutor(CALLERS) as pool:
            done = pool.map(lambda data: client.post("/adapters", files={"file": data}), files)
            assert {answer.status_code for answer in done} == {201}
        yield found


@pytest.fixture(scope="module")
def balanced(
    replicas: Replicas, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A client of Envoy's."""
    addresses = [server.url for server in replicas.servers]
    with (
        envoy(addresses, tmp_path_factory.mktemp("envoy")) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def predict(client: httpx2.Client, task: str, **headers: str) -> httpx2.Response:
    return client.post("/predict", params={"task": task}, json=FILM, headers=headers)


def counts(replicas: Replicas) -> list[list[float]]:
    """The predictions that each replica has answered for each task."""
    return [
        [sample(client, "adamix_requests_total", task=task, outcome="ok") for task in TASKS]
        for client in replicas.each()
    ]


def growth(replicas: Replicas, before: list[list[float]], total: int) -> list[list[float]]:
    """By how much the counts have grown, once so many predictions more are counted."""
    until(lambda: sum(map(sum, counts(replicas))) == sum(map(sum, before)) + total)
    return [
        [now - then for now, then in zip(*pair, strict=True)]
        for pair in zip(counts(replicas), before, strict=True)
    ]


@dataclass
class Load:
    """Predictions for all tasks, one after the other from each of several callers, while new
    versions of one task are uploaded: what was answered."""

    url: httpx2.URL
    pause: float  # seconds of each caller after an answer
    over: threading.Event = field(default_factory=threading.Event)
    statuses: list[int] = field(default_factory=list)
    # Of the swapped task: a version's number, the newest one acknowledged, and each prediction that
    # an older one answered than was acknowledged before it was sent.
    numbers: dict[str, int] = field(default_factory=dict)
    acknowledged: int = -1
    stale: list[str] = field(default_factory=list)

    def call(self, number: int) -> None:
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            for i in itertools.count(number):
                if self.over.wait(self.pause):
                    return
                task, oldest = TASKS[i % len(TASKS)], self.acknowledged
                answer = predict(client, task)
                self.statuses.append(answer.status_code)
                version = answer.headers.get("X-Adapter-Version", "").partition("@")[2]
                if task == SWAPPED and self.numbers.get(version, -1) < oldest:
                    self.stale.append(version)

    def swap(self, bert: Backbone) -> None:
        """Upload one version after the other; each again until it is answered, as a replica that
        ends may leave a write without an answer."""
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            for i in itertools.count():
                data = random_adapter(bert, SWAPPED, ["no", "yes"], seed=1000 + i)[2]
                self.numbers[hashlib.sha256(data).hexdigest()[:12]] = i
                status = 503
                while status == 503:
                    if self.over.is_set():
                        return
                    status = client.post("/adapters", files={"file": data}).status_code
                assert status in (200, 201)
                self.acknowledged = i


@contextmanager
def load(url: httpx2.URL, *, pause: float = 0, swapped: Backbone | None = None) -> Iterator[Load]:
    """The load, until the end of the context. Raises what a caller met."""
    found = Load(url, pause)
    with ThreadPoolExecutor(CALLERS + 1) as pool:
        done = [pool.submit(found.call, number) for number in range(CALLERS)]
        if swapped is not None:
            done.append(pool.submit(found.swap, swapped))
        try:
            yield found
        finally:
            found.over.set()
    for each in done:
        each.result()


def test_envoy_takes_what_is_shipped(tmp_path: Path) -> None:
    """Envoy starts with the configuration that is shipped and finds nothing in it that it will know
    no more; one with a field that it does not know is refused."""
    assert validate(CONFIGURATION) == f"configuration '{CONFIGURATION}' OK\n"
    spoilt = tmp_path / "envoy.yaml"
    spoilt.write_text(CONFIGURATION.read_text().replace("connect_timeout", "conect_timeout"))
    with pytest.raises(subprocess.CalledProcessError):
        validate(spoilt)


def test_a_task_has_a_home(balanced: httpx2.Client, replicas: Replicas) -> None:
    """Of requests for twelve tasks, by both protocols, at least 95 % are answered by the replica
    that answers most of their task's; each replica is some tasks' home."""

    before = counts(replicas)
    for _ in range(5):
        for task in TASKS:
            assert predict(balanced, task).status_code == 200
            answer = balanced.post(f"/v2/models/{task}/infer", json=V2)
            assert answer.status_code == 200, answer.text
    total = 10 * len(TASKS)
    grown = growth(replicas, before, total)
    at_home = sum(max(of_task) for of_task in zip(*grown, strict=True))
    assert at_home >= 0.95 * total
    assert all(sum(of_replica) for of_replica in grown)


def test_what_was_acknowledged_through_envoy_holds(
    balanced: httpx2.Client, replicas: Replicas, bert: Backbone
) -> None:
    """A version that was uploaded through Envoy answers the next requests for its task, wherever
    they go, and its generation is passed on."""
    data = random_adapter(bert, TASKS[0], ["no", "yes"], seed=7)[2]
    done = balanced.post("/adapters", files={"file": data})
    assert done.status_code == 201, done.text
    wanted = f"{TASKS[0]}@{done.json()['version']}"
    generation = done.headers["X-Adamix-Generation"]
    bearing = {"X-Adamix-Generation": generation}
    assert predict(balanced, TASKS[0], **bearing).headers["X-Adapter-Version"] == wanted
    for client in replicas.each():
        assert predict(client, TASKS[0], **bearing).headers["X-Adapter-Version"] == wanted


def test_what_a_client_says_of_itself_is_not_believed(
    balanced: httpx2.Client, replicas: Replicas
) -> None:
    """The replicas know a client by the address that Envoy sees, whatever its own header says; its
    id of the request comes back."""
    answer = predict(
        balanced, TASKS[0], **{"X-Forwarded-For": "203.0.113.9", "X-Request-ID": "from-outside"}
    )
    assert answer.headers["X-Request-ID"] == "from-outside"

    def logged() -> list[Any]:
        lines = [line for server in replicas.servers for line in server.lines]
        return [line["client"] for line in lines if line.get("request_id") == "from-outside"]

    until(lambda: bool(logged()))
    assert logged() == ["127.0.0.1"]


def test_what_is_of_one_replica_is_not_answered(balanced: httpx2.Client) -> None:
    """The metrics of a replica, which nobody named, are refused; lists of tasks are answered."""
    assert balanced.get("/metrics").status_code == 403
    assert balanced.get("/envoy/ready").status_code == 200
    assert len(balanced.get("/adapters").json()) == len(TASKS)


def test_a_replica_that_is_killed_loses_no_request(
    balanced: httpx2.Client, replicas: Replicas
) -> None:
    """When a replica is killed under load, and while it is missed, each request is answered; when
    it is back, it answers its tasks again."""
    with load(balanced.base_url) as found:
        until(lambda: len(found.statuses) > 100)
        replicas.servers[0].stop(signal.SIGKILL)
        so_far = len(found.statuses)
        until(lambda: len(found.statuses) > so_far + 300)
    assert set(found.statuses) == {200}
    replicas.start(0)
    with replicas.servers[0].client() as back:

        def answers() -> bool:
            for task in TASKS:
                predict(balanced, task)
            return sample(back, "adamix_requests_total", outcome="ok") > 0

        until(answers)


def test_replicas_restarted_one_after_the_other_lose_no_request(
    balanced: httpx2.Client, replicas: Replicas, bert: Backbone
) -> None:
    """While the replicas are restarted under load, each once the one before answers again, every
    prediction is answered, and none by an older version than was acknowledged before it was
    sent."""
    with load(balanced.base_url, pause=0.05, swapped=bert) as found:
        for i in range(len(replicas.servers)):
            until(lambda: found.acknowledged >= 0)
            assert replicas.servers[i].stop(signal.SIGTERM) == 0
            replicas.start(i)
            with replicas.servers[i].client() as back:
                until(lambda: back.get("/fresh").status_code == 200)
                until(lambda: sample(back, "adamix_requests_total", outcome="ok") > 0)
        newest = found.acknowledged
        until(lambda: found.acknowledged > newest)
    assert set(found.statuses) == {200}
    assert found.stale == []


def test_a_replica_that_is_not_fresh_gets_no_predictions(
    balanced: httpx2.Client, replicas: Replicas
) -> None:
    """A replica alone that does not reach the bucket is not fresh once its lease has run out, and
    Envoy sends its tasks to the others, which are; when it reaches the bucket again, it gets its
    tasks again."""

    def answered() -> list[float]:
        before = counts(replicas)
        for task in TASKS:
            assert predict(balanced, task).status_code == 200
        return [sum(of_replica) for of_replica in growth(replicas, before, len(TASKS))]

    until(lambda: all(answered()))
    replicas.relay.cut()
    with replicas.servers[LAST].client() as away:
        until(lambda: away.get("/fresh").status_code == 503)
    until(lambda: answered()[LAST] == 0)
    assert answered()[LAST] == 0
    fresh = [client.get("/fresh").status_code for client in replicas.each()]
    assert fresh == [200, 200, 503]
    replicas.relay.mend()
    until(lambda: all(answered()))


def test_without_the_bucket_all_are_asked(balanced: httpx2.Client, replicas: Replicas) -> None:
    """Where no replica is fresh, since the bucket is away, predictions are answered all the same,
    and a write is refused with the reason."""
    replicas.bucket.kill()
    try:
        until(lambda: all(client.get("/fresh").status_code == 503 for client in replicas.each()))
        for task in TASKS:
            assert predict(balanced, task).status_code == 200
        assert balanced.delete(f"/adapters/{TASKS[1]}").json()["error_type"] == "StoreUnreachable"
    finally:
        replicas.bucket.start()
