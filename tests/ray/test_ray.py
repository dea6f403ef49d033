"""Two real replicas under Ray Serve, behind its HAProxy, on one bucket (`make test-ray`)."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest

from adapters.backbone import Backbone
from tests.buckets import S3, free_ports, seaweedfs
from tests.service.conftest import running, until
from tests.tiny import random_adapter

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
pytestmark = pytest.mark.timeout(600)
FILM = {"inputs": "it is a good film"}
CALLERS = 4
START_SECONDS = 400  # of replicas, on a machine that others use
REPLICA = "ray::ServeReplica"  # begins the title of its process


@dataclass
class Cluster:
    """A running `python -m service.ray`. Its processes are those that have its cache in their
    environment."""

    process: subprocess.Popen[str]
    url: str
    cache: Path
    statistics: set[int]

    def processes(self) -> list[psutil.Process]:
        return [each for each in psutil.process_iter() if self._is_ours(each)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("ADAMIX_CACHE") == str(self.cache)
        except psutil.Error:
            return False

    def replicas(self) -> dict[psutil.Process, str]:
        """Each replica that listens, and its own address."""
        return {
            process: f"http://127.0.0.1:{place.laddr.port}"
            for process in self.processes()
            if title(process).startswith(REPLICA)
            for place in process.net_connections("tcp")
            if place.status == psutil.CONN_LISTEN and place.laddr.ip == "127.0.0.1"
        }

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    def kill(self) -> None:
        """`kill -9` of each of its processes; none is left."""
        while found := self.processes():
            for each in found:
                each.kill()
            psutil.wait_procs(found, timeout=10)
        self.process.wait()


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    folder = tmp_path_factory.mktemp("seaweedfs")
    with seaweedfs(folder) as server, pytest.MonkeyPatch.context() as patch:
        server.export(patch)
        yield server


@pytest.fixture(scope="module")
def cluster(
    bucket: S3, bert_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    cache = tmp_path_factory.mktemp("cache")
    port, *statistics = free_ports(3)
    names = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
    environment = {
        **os.environ,
        **dict(zip(names, map(str, statistics), strict=True)),
        "ADAMIX_STORE": bucket.url("ray"),
        "ADAMIX_SEED": "none",
        "ADAMIX_BACKBONE": str(bert_folder),
        "ADAMIX_CACHE": str(cache),
        "ADAMIX_LOG_FORMAT": "json",
        "ADAMIX_MAX_WAIT_SECONDS": "100",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service.ray", "--replicas", "2", "--port", str(port)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    found = Cluster(process, f"http://127.0.0.1:{port}", cache, set(statistics))
    said: list[str] = []
    listening: queue.Queue[bool] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, said, listening), daemon=True)
    reader.start()
    try:
        assert listening.get(timeout=START_SECONDS), "".join(said)
        yield found
    finally:
        found.kill()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def _read(process: subprocess.Popen[str], said: list[str], listening: queue.Queue[bool]) -> None:
    """Keep what it says, and tell whether it listens."""
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if line.startswith("{") and json.loads(line)["event"] == "listening":
            listening.put(True)
    listening.put(False)


def predict(client: httpx2.Client, task: str = "sst2") -> httpx2.Response:
    return client.post("/predict", params={"task": task}, json=FILM)


def test_two_replicas_answer_as_the_service_does(
    cluster: Cluster, bucket: S3, bert: Backbone, bert_folder: Path, tmp_path: Path
) -> None:
    """An adapter that was uploaded through Ray is answered by both replicas at once, by the version
    that was acknowledged, as a service without Ray on the same bucket answers."""
    data = random_adapter(bert, "sst2", ["no", "yes"])[2]
    with cluster.client() as client:
        done = client.post("/adapters", files={"file": data})
        assert done.status_code == 201, done.text
        wanted = f"sst2@{done.json()['version']}"
        answers = [predict(client)]
        assert len(cluster.replicas()) == 2
        for url in cluster.replicas().values():
            with httpx2.Client(base_url=url, timeout=60) as alone:
                answers.append(predict(alone))
    settings = {"backbone": bert_folder, "cache": tmp_path}
    with running(bucket.url("ray"), **settings) as server, server.client() as client:
        expected = predict(client)
    for answer in (expected, *answers):
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-Adapter-Version"] == wanted
    labels = [[each["label"] for each in answer.json()] for answer in (expected, *answers)]
    assert labels == [labels[0]] * 4
    for answer in answers:
        for ours, theirs in zip(answer.json(), expected.json(), strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)


def test_a_replica_that_is_killed_loses_no_request(cluster: Cluster) -> None:
    """When a replica is killed under load, each prediction is answered, and another replica takes
    its place and answers."""
    over = threading.Event()
    statuses: list[int] = []

    def call() -> None:
        with cluster.client() as client:
            while not over.is_set():
                statuses.append(predict(client).status_code)

    killed, kept = cluster.replicas()
    with ThreadPoolExecutor(CALLERS) as pool:
        done = [pool.submit(call) for _ in range(CALLERS)]
        try:
            until(lambda: len(statuses) > 100)
            killed.kill()
            so_far = len(statuses)
            until(lambda: len(statuses) > so_far + 300)
            until(lambda: len(cluster.replicas()) == 2, START_SECONDS)
        finally:
            over.set()
    for each in done:
        each.result()
    assert set(statuses) == {200}
    ((_, url),) = ((each, url) for each, url in cluster.replicas().items() if each != kept)
    with httpx2.Client(base_url=url, timeout=60) as new:
        assert predict(new).status_code == 200


def test_only_what_is_documented_listens_elsewhere(cluster: Cluster) -> None:
    """On other addresses than loopback listen HAProxy's statistics, and a port of each replica, and
    nobody but them; that of a replica refuses whoever has not the token of this run."""
    import grpc

    elsewhere = {
        place.laddr.port: title(process)
        for process in cluster.processes()
        for place in process.net_connections("tcp")
        if place.status == psutil.CONN_LISTEN
        and place.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"
    }
    of_replicas = {port for port, name in elsewhere.items() if name.startswith(REPLICA)}
    assert len(of_replicas) == 2
    assert elsewhere.keys() == cluster.statistics | of_replicas
    for port in of_replicas:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                ask(b"", timeout=30)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_it_ends_when_it_is_asked_to(cluster: Cluster) -> None:
    """After SIGTERM it ends with code 0, and no process of it is left."""
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(timeout=120) == 0
    until(lambda: not cluster.processes())


REFUSED = {
    "a folder": ({"ADAMIX_STORE": "var/store"}, "expected a bucket, which the replicas share"),
    "an address": ({"ADAMIX_HOST": "127.0.0.2"}, "expected 127.0.0.1 or 0.0.0.0"),
    "front ends": ({"ADAMIX_WORKERS": "2"}, "expected 1: each replica speaks HTTP itself"),
    "a GPU": ({"ADAMIX_DEVICE": "cuda"}, "replicas under Ray are given no GPU"),
    "any port": ({"ADAMIX_PORT": "0"}, "expected a port, which HAProxy is given"),
    "statistics": ({"RAY_SERVE_HAPROXY_STATS_PORT": "x"}, "in RAY_SERVE_HAPROXY_STATS_PORT"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_ray_cannot_keep(what: str) -> None:
    """What replicas under Ray cannot run with is refused with a sentence and code 2."""
    given, sentence = REFUSED[what]
    environment = {**os.environ, "ADAMIX_STORE": "s3://bucket/prefix", **given}
    done = subprocess.run(
        [sys.executable, "-m", "service.ray"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]
