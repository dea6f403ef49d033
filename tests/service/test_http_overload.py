"""More than the service can do: who is refused and how, who is not, and what becomes of it when the
service is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import Server, running

LONG = "good " * 60  # a row of its own in a batch of 64 tokens
FLOOD_CLIENTS = 24
SECONDS = 2.0
# a batch, and one that waits: whatever the machine, two dozen clients are more than it can do
OVERLOADED = {"max_batch_tokens": 64, "max_wait_seconds": 0.001}


@contextmanager
def flooded(server: Server, task: str) -> Iterator[list[httpx2.Response]]:
    """Within, two dozen clients send one long text after the other; their answers are put into the
    list."""
    answers: list[httpx2.Response] = []
    over = threading.Event()

    def send() -> None:
        with server.client() as client:
            while not over.is_set():
                answers.append(client.post(f"/predict?task={task}", json={"inputs": LONG}))

    with ThreadPoolExecutor(FLOOD_CLIENTS) as pool:
        clients = [pool.submit(send) for _ in range(FLOOD_CLIENTS)]
        try:
            yield answers
        finally:
            over.set()
        for client in clients:
            client.result(timeout=60)


def repeated(ask: Callable[[], httpx2.Response]) -> list[int]:
    """The statuses of one request after the other, for some seconds, but of five at least."""
    ends, statuses = time.monotonic() + SECONDS, list[int]()
    while time.monotonic() < ends or len(statuses) < 5:
        statuses.append(ask().status_code)
    return statuses


def sample(client: httpx2.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return next(
        found.value
        for family in families
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    )


def test_a_flood_is_refused_in_order_and_no_other_task_with_it(filled_store: Path) -> None:
    """Beyond what the service can do a task's requests are answered with 200, or with 429 and whole
    seconds to wait; another task's lone requests are all answered, and so is /health."""
    with running(filled_store, **OVERLOADED) as server:
        with flooded(server, "sst2") as answers, server.client() as client:
            with ThreadPoolExecutor(2) as pool:
                lone = pool.submit(
                    repeated, lambda: client.post("/predict?task=topics", json={"inputs": "law"})
                )
                health = pool.submit(repeated, lambda: client.get("/health"))
            assert set(lone.result()) == {200}
            assert set(health.result()) == {200}
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert {answer.json()["error_type"] for answer in refused} == {"QueueFull"}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        with server.client() as client:
            after = client.post("/predict?task=sst2", json={"inputs": LONG})
            assert after.status_code == 200, "it recovers as soon as the flood is over"


def test_a_stop_leaves_nobody_without_an_answer(filled_store: Path) -> None:
    """SIGTERM with more queued than can be done in the drain time: what was accepted is answered
    with 200, or when the time ends with 503 and Retry-After; the exit code is 0."""
    rows = 1600  # of 64 tokens: seconds of work for any CPU, and more than one
    settings = {"max_inputs": rows, "drain_seconds": 1, "threads": 1, "dtype": "float32"}
    with running(filled_store, log_level="debug", **settings) as server, server.client() as client:

        def ask(task: str, inputs: Any) -> httpx2.Response:
            return client.post(f"/predict?task={task}", json={"inputs": inputs})

        with ThreadPoolExecutor(2) as pool:
            much = pool.submit(ask, "sst2", [LONG] * rows)
            while sample(client, "adamix_queue_rows") < 100:
                assert not much.done(), much.result().text
            little = pool.submit(ask, "topics", "law and money")
            while sum(line["event"] == "accepted" for line in accepted(server)) < 2:
                assert not much.done(), much.result().text
            assert server.stop() == 0
            answers = [much.result(timeout=60), little.result(timeout=60)]
    assert [answer.status_code for answer in answers] == [503, 200]
    assert answers[0].json()["error_type"] == "Stopping"
    assert answers[0].headers["Retry-After"] == "1"
    assert not any("Traceback" in str(line) for line in server.lines)


def accepted(server: Server) -> list[dict[str, Any]]:
    return [line for line in server.lines if line.get("path") == "/predict"]


def test_a_stop_under_a_flood_loses_no_accepted_request(filled_store: Path) -> None:
    """SIGTERM while a task floods the service: no answer is anything but 200, 429 or 503, and each
    refusal says when to come again."""
    statuses: list[tuple[int, str]] = []
    with running(filled_store, **OVERLOADED) as server:
        some = threading.Event()

        def send() -> None:
            with server.client() as client:
                while True:
                    try:
                        answer = client.post("/predict?task=sst2", json={"inputs": LONG})
                    except httpx2.TransportError:  # the service listens no more
                        return
                    statuses.append((answer.status_code, answer.headers.get("Retry-After", "")))
                    if len(statuses) >= 2 * FLOOD_CLIENTS:
                        some.set()

        with ThreadPoolExecutor(FLOOD_CLIENTS) as pool:
            clients = [pool.submit(send) for _ in range(FLOOD_CLIENTS)]
            assert some.wait(timeout=60)
            assert server.stop(signal.SIGTERM) == 0
            for client in clients:
                client.result(timeout=60)
    assert {status for status, _ in statuses} <= {200, 429, 503}
    assert all(int(after) >= 1 for status, after in statuses if status != 200)


def test_long_texts_of_clients_that_left_are_not_tokenised(filled_store: Path) -> None:
    """Twenty bodies of two megabytes whose clients leave at once: what nobody waits for is not
    tokenised, and a text that needs the same threads is answered."""
    body = {"inputs": ["good film " * 800] * 250, "truncate": True}
    with running(filled_store) as server, ThreadPoolExecutor(20) as pool:

        def leave(_: int) -> None:
            with server.client() as client, pytest.raises(httpx2.ReadTimeout):
                client.post("/predict?task=sst2", json=body, timeout=httpx2.Timeout(60, read=0.2))

        list(pool.map(leave, range(20)))
        with server.client() as client:
            answer = client.post(
                "/predict?task=sst2", json={"inputs": "good " * 1000, "truncate": True}
            )
            assert answer.status_code == 200, answer.text
            tokenised = sample(client, "adamix_tokenization_duration_seconds_count")
            cancelled = sample(client, "adamix_requests_total", task="sst2", outcome="cancelled")
    assert cancelled == 20
    assert tokenised < 20
