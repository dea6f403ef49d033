"""The latencies of tasks: how long their last answers took."""

from __future__ import annotations

import tracemalloc

from service.telemetry.latency import KEPT, Latencies


def test_quantiles_are_of_the_last_answers() -> None:
    """p50 and p99 are latencies that answers had, of the newest 256 alone."""
    latencies = Latencies()
    for i in range(10 * KEPT):
        latencies.add("sst2", i)
    first = 9 * KEPT
    assert latencies.quantiles("sst2", 0.5, 0.99, 1.0) == [
        first + KEPT / 2 - 1,
        first + KEPT - 3,
        first + KEPT - 1,
    ]


def test_a_single_answer_is_every_quantile() -> None:
    """One answer is the p50 and the p99; a task that has none, or was forgotten, has neither."""
    latencies = Latencies()
    latencies.add("sst2", 0.25)
    assert latencies.quantiles("sst2", 0.5, 0.99) == [0.25, 0.25]
    latencies.forget("sst2")
    latencies.forget("never")
    assert latencies.quantiles("sst2", 0.5) is None


def test_a_task_takes_little() -> None:
    """A thousand tasks take less than 400 bytes each after one answer, and less than 1.6 KB however
    many they get."""
    tracemalloc.start()
    latencies = Latencies()
    tasks = [f"team-{i}" for i in range(1000)]
    before, _ = tracemalloc.get_traced_memory()
    for answers, most in ((1, 400), (2 * KEPT, 1600)):
        for task in tasks:
            for _ in range(answers):
                latencies.add(task, 0.01)
        assert (tracemalloc.get_traced_memory()[0] - before) / len(tasks) < most
    tracemalloc.stop()
