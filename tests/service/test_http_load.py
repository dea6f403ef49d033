"""Many clients at once: nobody gets another's answer, an old version's under a new one's name, or
none."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from adapters.store import Store
from tests.service.conftest import Server, running, sample, until

WORDS = [
    "it",
    "is",
    "a",
    "good",
    "bad",
    "great",
    "awful",
    "film",
    "plot",
    "not",
    "very",
    "and",
    "red",
    "blue",
]
FOUR_TASKS = ("sst2", "mrpc", "mnli", "stsb")


def some_inputs(rng: random.Random, task: str) -> Any:
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(2)]
    return texts[0] if task == "sst2" else {"text": texts[0], "text_pair": texts[1]}


def scores(answer: httpx2.Response) -> dict[str, float]:
    assert answer.status_code == 200, answer.text
    return {entry["label"]: entry["score"] for entry in answer.json()}


def test_two_hundred_clients_get_what_one_gets(server: Server) -> None:
    """200 concurrent clients over four tasks get the labels and scores (within 1e-4) that one at a
    time gets."""
    rng = random.Random(0)
    calls = [(task, some_inputs(rng, task)) for task in FOUR_TASKS * 50]
    with server.client(limits=httpx2.Limits(max_connections=200)) as client:

        def call(of: tuple[str, Any]) -> httpx2.Response:
            return client.post("/predict", params={"task": of[0]}, json={"inputs": of[1]})

        together = threading.Barrier(200)

        def call_together(of: tuple[str, Any]) -> httpx2.Response:
            together.wait(timeout=60)
            return call(of)

        with ThreadPoolExecutor(200) as pool:
            crowd = list(pool.map(call_together, calls))
        for of, answer in zip(calls, crowd, strict=True):
            alone = call(of)
            assert scores(answer) == pytest.approx(scores(alone), abs=1e-4)
            assert answer.json()[0]["label"] == alone.json()[0]["label"]


@pytest.mark.parametrize("kinds", [(None, None), (None, {"query": 8, "down": 16})], ids=str)
def test_replacing_under_load_is_never_half_done(
    kinds: tuple[Any, Any], server: Server, adapter_bytes: Callable[..., bytes]
) -> None:
    """While a task's versions, of one kind or of both, replace each other, every answer is the old
    or the new one's, and its header says which."""
    versions: dict[str, float] = {}
    with server.client() as client:
        for seed, ranks in enumerate(kinds, start=1):
            body = {"file": adapter_bytes("swapped", seed=seed, ranks=ranks)}
            version = client.post("/adapters", files=body).json()["version"]
            versions[version] = scores(
                client.post("/predict?task=swapped", json={"inputs": "it is a good film"})
            )["yes"]
    first, second = versions.values()
    assert abs(first - second) > 0.01  # so that the two can be told apart
    done = threading.Event()

    def call_until_done(_: int) -> set[str]:
        seen = set()
        with server.client() as client:
            while not done.is_set():
                answer = client.post("/predict?task=swapped", json={"inputs": "it is a good film"})
                version = answer.headers["X-Adapter-Version"].removeprefix("swapped@")
                assert scores(answer)["yes"] == pytest.approx(versions[version], abs=1e-4)
                seen.add(version)
        return seen

    with ThreadPoolExecutor(8) as pool, server.client() as client:
        callers = [pool.submit(call_until_done, i) for i in range(8)]
        try:
            for i in range(30):
                version = list(versions)[i % 2]
                assert (
                    client.post("/adapters/swapped/activate", json={"version": version}).status_code
                    == 200
                )
        finally:
            done.set()
        assert set().union(*(caller.result(timeout=60) for caller in callers)) == set(versions)
        assert client.delete("/adapters/swapped").status_code == 204


@pytest.mark.parametrize("slots", [1, 2])
def test_more_tasks_than_slots_still_answer(slots: int, filled_store: Path, server: Server) -> None:
    """With fewer slots than tasks every row of interleaved requests, fan-outs too, gets the answer
    that many slots give."""
    rng = random.Random(slots)
    pairs = {
        f"?{'&'.join(f'task={task}' for task in order)}"
        for order in itertools.permutations(FOUR_TASKS[1:])
    }
    calls = [(query, some_inputs(rng, "mrpc")) for query in sorted(pairs)] * 3
    calls += [("?task=sst2", [some_inputs(rng, "sst2") for _ in range(8)]) for _ in range(9)]
    rng.shuffle(calls)
    with (
        running(filled_store, read_only=True, slots=slots) as few,
        few.client() as crowded,
        server.client() as roomy,
    ):

        def call(client: httpx2.Client, of: tuple[str, Any]) -> list[float]:
            answer = client.post(f"/predict{of[0]}", json={"inputs": of[1]})
            assert answer.status_code == 200, answer.text
            groups = answer.json().values() if isinstance(answer.json(), dict) else answer.json()
            assert len(groups) == (3 if isinstance(answer.json(), dict) else 8)
            return [
                score["score"]
                for group in groups
                for score in sorted(group, key=lambda score: str(score["label"]))
            ]

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda of: call(crowded, of), calls))
        for of, scores_of in zip(calls, answers, strict=True):
            assert scores_of == pytest.approx(call(roomy, of), abs=1e-4)
        metrics = crowded.get("/metrics").text
    assert metrics.count(',tier="device"} 1.0') <= slots
    rows = dict(
        line.rsplit(" ", 1)
        for line in metrics.splitlines()
        if line.startswith("adamix_batch_tasks")
    )
    assert rows[f'adamix_batch_tasks_bucket{{le="{slots}.0"}}'] == rows["adamix_batch_tasks_count"]


def test_rows_of_clients_that_left_are_dropped(filled_store: Path) -> None:
    """A client that leaves, on /predict or on infer, frees its place in the queue and is counted as
    cancelled."""
    with running(filled_store, read_only=True, max_batch_tokens=64, max_inputs=512) as server:
        texts = ["good " * 60] * 400
        tensor = {"name": "text", "shape": [400], "datatype": "BYTES", "data": texts}
        bodies = {
            "/predict?task=sst2": {"inputs": texts},
            "/v2/models/sst2/infer": {"inputs": [tensor]},
        }
        with server.client() as client:

            def left() -> float:
                cancelled = {"task": "sst2", "outcome": "cancelled"}
                return sample(client, "adamix_requests_total", **cancelled)

            for before, (path, body) in enumerate(bodies.items()):
                with server.client() as leaving, pytest.raises(httpx2.ReadTimeout):
                    leaving.post(path, json=body, timeout=httpx2.Timeout(60, read=0.3))
                until(lambda wanted=before + 1: left() == wanted)
            assert scores(client.post("/predict?task=topics", json={"inputs": "good"}))
            assert sample(client, "adamix_queue_rows") == 0


def test_killing_the_server_during_uploads_leaves_the_store_whole(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """After `kill -9` in the middle of uploads every acknowledged version is there, whole, and
    served again."""
    files = [adapter_bytes("sst2", seed=seed) for seed in range(6)]
    acknowledged: set[str] = set()
    for offset in (0, 3):
        with running(tmp_path / "store") as server:
            some = threading.Event()
            rotated = files[offset:] + files[:offset]
            uploader = threading.Thread(
                target=_upload_until_killed, args=(server, rotated, acknowledged, some)
            )
            uploader.start()
            assert some.wait(timeout=60)
            server.stop(signal.SIGKILL)
            uploader.join(timeout=60)
        store = Store(tmp_path / "store", read_only=True)
        for version in acknowledged:
            assert store.get("sst2", version).version == version
        assert store.get("sst2").version == store.find("sst2").short
        assert not list((tmp_path / "store").rglob(".tmp-*"))
    with running(tmp_path / "store") as server, server.client() as client:
        answer = client.post("/predict?task=sst2", json={"inputs": "good"})
        assert (
            answer.headers["X-Adapter-Version"]
            == f"sst2@{Store(tmp_path / 'store', read_only=True).find('sst2').short}"
        )


def _upload_until_killed(
    server: Server, files: list[bytes], acknowledged: set[str], some: threading.Event
) -> None:
    with server.client() as client:
        for i, data in enumerate(itertools.cycle(files)):
            try:
                answer = client.post("/adapters", files={"file": data})
            except httpx2.TransportError:
                return
            if answer.status_code == 503:  # of a front end whose engine process was killed
                return
            acknowledged.add(answer.json()["version"])
            if i == 2:
                some.set()


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one core has no workers that wait for each other"
)
def test_the_engine_s_threads_do_not_sleep_in_a_batch(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """While a batch runs, its threads wait awake for each other, also after an upload: that is a
    fifth of the throughput."""
    with running(tmp_path / "store", threads=2) as server, server.client() as client:
        uploaded = client.post("/adapters", files={"file": adapter_bytes("sst2", bottleneck=64)})
        assert uploaded.status_code == 201, uploaded.text
        rng, slept = random.Random(0), []
        others, began = seconds_of_others(server), time.monotonic()
        for _ in range(15):
            before = times_slept(server)
            texts = [some_inputs(rng, "sst2") for _ in range(32)]
            assert (
                client.post("/predict", params={"task": "sst2"}, json={"inputs": texts}).status_code
                == 200
            )
            slept.append(times_slept(server) - before)
        busy = (seconds_of_others(server) - others) / (time.monotonic() - began)
        if min(slept) >= 150 and busy > 0.1:
            pytest.skip(f"other programs had {busy:.2f} cores: a thread without a core sleeps")
        assert min(slept) < 150, slept  # of some 500 times that they wait for each other


def seconds_of_others(server: Server) -> float:
    """Processor time of all but the server and this process."""
    every = psutil.cpu_times()
    ours = [psutil.Process(pid).cpu_times() for pid in (server.process.pid, os.getpid())]
    found: float = every.user + every.nice + every.system
    return found - sum(each.user + each.system for each in ours)


def times_slept(server: Server) -> int:
    """How often the server's threads have waited asleep so far."""
    found = 0
    for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
        status = (thread / "status").read_text()
        found += int(status.split("voluntary_ctxt_switches:")[1].split()[0])
    return found
