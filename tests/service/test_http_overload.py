"""More than the service can do: who is refused and how, who is not, and what becomes of it when the
service is asked to stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx2

from tests.service.conftest import Server, running, sample, until

LONG = "good " * 60  # a row of its own in a batch of 64 tokens
FLOOD_CLIENTS = 24
SECONDS = 2.0
# a batch, and one that waits: whatever the machine, two dozen clients are more than it can do
OVERLOADED = {"max_batch_tokens": 64, "max_wait_seconds": 0.001, "threads": 1}


def repeated(ask: Callable[[], httpx2.Response]) -> list[int]:
    """The statuses of one request after the other, for some seconds, but of five at least."""
    ends, statuses = time.monotonic() + SECONDS, list[int]()
    while time.monotonic() < ends or len(statuses) < 5:
        statuses.append(ask().status_code)
    return statuses


def test_a_flood_is_refused_in_order_and_no_other_task_with_it(filled_store: Path) -> None:
    """Beyond what the service can do a task's requests are answered with 200, or with 429 and whole
    seconds to wait, and at a stop with 503; another task's lone requests are all answered, and so
    is /health."""
    answers: list[httpx2.Response] = []
    with running(filled_store, read_only=True, **OVERLOADED) as server:

        def flood() -> None:
            with server.client() as client:
                while True:
                    try:
                        answers.append(client.post("/predict?task=sst2", json={"inputs": LONG}))
                    except httpx2.TransportError:  # the service listens no more
                        return

        with ThreadPoolExecutor(FLOOD_CLIENTS + 2) as pool, server.client() as client:
            try:
                clients = [pool.submit(flood) for _ in range(FLOOD_CLIENTS)]
                lone = pool.submit(
                    repeated, lambda: client.post("/predict?task=topics", json={"inputs": "law"})
                )
                health = pool.submit(repeated, lambda: client.get("/health"))
                assert set(lone.result(timeout=120)) == {200}
                assert set(health.result(timeout=120)) == {200}
            finally:
                code = server.stop()
            for ended in clients:
                ended.result(timeout=60)
    assert code == 0
    statuses = {answer.status_code for answer in answers}
    assert {200, 429} <= statuses <= {200, 429, 503}
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.json()["error_type"] for answer in refused} <= {"QueueFull", "Stopping"}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)


def test_a_stop_leaves_nobody_without_an_answer(filled_store: Path) -> None:
    """SIGTERM with more queued than can be done in the drain time: what was accepted is answered
    with 200, or when the time ends with 503 and Retry-After; the exit code is 0."""
    rows = 1600  # of 64 tokens: more than a second of work for any CPU's one core
    settings: dict[str, Any] = {"max_inputs": rows, "drain_seconds": 1, "threads": 1}
    settings |= {"max_batch_tokens": 64, "read_only": True, "log_level": "debug"}
    with running(filled_store, **settings) as server, server.client() as client:

        def ask(task: str, inputs: Any) -> httpx2.Response:
            return client.post(f"/predict?task={task}", json={"inputs": inputs})

        with ThreadPoolExecutor(2) as pool:
            much = pool.submit(ask, "sst2", [LONG] * rows)
            wait_until(lambda: sample(client, "adamix_queue_rows") > 100, much)
            little = pool.submit(ask, "topics", "law and money")
            wait_until(lambda: len(accepted(server)) == 2, much)
            assert server.stop() == 0
            answers = [much.result(timeout=60), little.result(timeout=60)]
    assert answers[0].status_code == 503
    assert answers[1].status_code in (200, 503)  # of the next batch, if the drain time has one
    assert answers[0].json()["error_type"] == "Stopping"
    assert answers[0].headers["Retry-After"] == "1"
    assert not any("Traceback" in str(line) for line in server.lines)


def accepted(server: Server) -> list[dict[str, Any]]:
    lines = [line for line in server.lines if line["event"] == "accepted"]
    return [line for line in lines if line["path"] == "/predict"]


def wait_until(true: Callable[[], bool], still: Future[httpx2.Response]) -> None:
    """Look again and again, while a request is under way."""
    while not true():
        assert not still.done(), still.result().text
        wait([still], timeout=0.05)


def test_long_texts_of_clients_that_left_are_not_tokenised(filled_store: Path) -> None:
    """Twenty bodies of two megabytes whose clients leave at once: what nobody waits for is not
    tokenised, and a text that needs the same threads is answered."""
    body = {"inputs": ["good film " * 800] * 250, "truncate": True}
    with running(filled_store, read_only=True) as server, ThreadPoolExecutor(20) as pool:

        def leave(_: int) -> None:
            with server.client() as client, contextlib.suppress(httpx2.ReadTimeout):
                answer = client.post(
                    "/predict?task=sst2", json=body, timeout=httpx2.Timeout(60, read=0.2)
                )
                assert answer.status_code == 429, answer.text

        list(pool.map(leave, range(20)))
        with server.client() as client:
            answer = client.post(
                "/predict?task=sst2", json={"inputs": "good " * 1000, "truncate": True}
            )
            assert answer.status_code == 200, answer.text

            def ended(outcome: str) -> float:
                return sample(client, "adamix_requests_total", task="sst2", outcome=outcome)

            # Where tokenising is faster than leaving, the queue is full for those that come next.
            until(lambda: ended("cancelled") + ended("overloaded") == 20)
            assert ended("ok") == 1
            tokenised = sample(client, "adamix_tokenization_duration_seconds_count")
    assert tokenised < 20
