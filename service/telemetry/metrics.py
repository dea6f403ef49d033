"""Prometheus metrics, on a registry passed in. Histograms carry no task label: 10,000 tasks must
not make 10,000 × buckets series; and only tasks that exist get series at all."""

from __future__ import annotations

import collections
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.spec import Kind
from service.batcher import BatchReport
from service.telemetry.latency import Latencies

# From half a millisecond: a short text on a GPU takes about one.
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SHORT_SECONDS = (
    0.00002,
    0.00005,
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

OUTCOMES = ("ok", "invalid", "overloaded", "unavailable", "cancelled", "error")


def outcome(status: int) -> str:
    """The `outcome` label of an HTTP status."""
    if status < 400:
        return "ok"
    special = {429: "overloaded", 499: "cancelled", 503: "unavailable"}
    return special.get(status, "invalid" if status < 500 else "error")


class Metrics:
    """What the service counts and times as it goes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` beside every series would double them
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"adamix_{name}", text, buckets=buckets, registry=registry)

        self._requests = Counter(
            "adamix_requests",
            "Predict requests by task and outcome.",
            ["task", "outcome"],
            registry=registry,
        )
        # By task, for the list of tasks: the counter's own are not readable one by one, and
        # latencies are no metric.
        self.requests_of: collections.Counter[str] = collections.Counter()
        self.latencies = Latencies()
        self._request = histogram(
            "request_duration_seconds", "A predict request, from its body to its answer.", SECONDS
        )
        self._queue = histogram("queue_duration_seconds", "A row's time in the queue.", SECONDS)
        self.tokenization = histogram(
            "tokenization_duration_seconds", "Tokenising one request.", SHORT_SECONDS
        )
        self._inference = histogram(
            "inference_duration_seconds", "One batch on the device.", SECONDS
        )
        self._batch_rows = histogram("batch_rows", "Rows in a batch.", ROWS)
        self._batch_tokens = histogram(
            "batch_tokens",
            "Tokens of a batch's rows; a text that several tasks share counts for each.",
            TOKENS,
        )
        self._batch_tasks = histogram("batch_tasks", "Distinct tasks in a batch.", ROWS)
        self.loads = Counter(
            "adamix_adapter_loads", "Adapters put into a device slot.", registry=registry
        )
        self.evictions = Counter(
            "adamix_adapter_evictions", "Adapters that made room for another.", registry=registry
        )
        self.load_failures = Counter(
            "adamix_adapter_load_failures",
            "Loads that failed: of a file that cannot be read, for another backbone, or that the"
            " device does not take.",
            registry=registry,
        )
        self.out_of_memory = Counter(
            "adamix_out_of_memory",
            "Batches that the device lacked memory for, run in parts.",
            registry=registry,
        )
        self.load = histogram(
            "adapter_load_duration_seconds", "Putting one adapter into a slot.", SHORT_SECONDS
        )
        self.store_errors = Counter(
            "adamix_store_errors",
            "Reads and writes of the store's bucket that failed.",
            registry=registry,
        )
        self.fetch = histogram(
            "adapter_fetch_duration_seconds", "Fetching one file from the bucket.", SECONDS
        )
        self.rollbacks = Counter(
            "adamix_canary_rollbacks",
            "Canaries that this process ended by their rules.",
            registry=registry,
        )
        self.audit_failures = Counter(
            "adamix_audit_failures",
            "Lines of the audit log that could not be written.",
            registry=registry,
        )
        versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
        Info(
            "adamix_build", "Versions of this service and what it runs on.", registry=registry
        ).info(
            {"version": version("adamix-serve"), "python": platform.python_version(), **versions}
        )

    def request(self, tasks: Iterable[str], status: int, seconds: float) -> None:
        """One predict request for tasks that exist."""
        for task in tasks:
            self._requests.labels(task, outcome(status)).inc()
            self.requests_of[task] += 1
            if status < 400:  # a refusal is quick, and no answer
                self.latencies.add(task, seconds)
        self._request.observe(seconds)

    def batch(self, report: BatchReport) -> None:
        """One batch that ran."""
        self._inference.observe(report.seconds)
        self._batch_rows.observe(report.rows)
        self._batch_tokens.observe(report.tokens)
        self._batch_tasks.observe(report.tasks)
        for wait in report.waits:
            self._queue.observe(wait)

    def loaded(self, seconds: float) -> None:
        """One adapter was put into a slot."""
        self.loads.inc()
        self.load.observe(seconds)

    def forget(self, task: str) -> None:
        """Drop the series of a task that was deleted."""
        for name in OUTCOMES:
            self._requests.remove(task, name)
        del self.requests_of[task]
        self.latencies.forget(task)


class State(NamedTuple):
    """What `StateCollector` shows: the plain gauges by name, (task, tier) of every task, and by
    kind the bytes of each adapter on the device."""

    gauges: Mapping[str, float]
    tiers: Iterable[tuple[str, str]]
    slots: Mapping[Kind, Sequence[int]]


class StateCollector(Collector):
    """Gauges that are read off the service when Prometheus asks, so that they are never stale."""

    def __init__(self, read: Callable[[], State]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """The names alone: whoever asks for other names does not make 10,000 tasks be read."""
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"adamix_{name}", text)
        for name, text, _ in LABELLED:
            yield GaugeMetricFamily(name, text)

    def collect(self) -> Iterable[Metric]:
        state = self._read()
        for name, value in state.gauges.items():
            yield GaugeMetricFamily(f"adamix_{name}", GAUGES[name], value=value)
        loaded, used, sizes = (GaugeMetricFamily(*each[:2], labels=each[2]) for each in LABELLED)
        for task, tier in state.tiers:
            loaded.add_metric([task, tier], 1)
        for kind, held in state.slots.items():
            used.add_metric([kind], len(held))
            sizes.add_metric([kind], sum(held))
        yield from (loaded, used, sizes)


GAUGES = {
    "queue_rows": "Rows waiting for a batch.",
    "queue_max_rows": "Rows that may wait; a request that would exceed them is refused.",
    "backbone_bytes": "The one frozen backbone.",
    "adapters_bytes": "All active adapters.",
    "full_copies_bytes": "What a full copy per task would take.",
    "saved_bytes": "What the single backbone saves.",
    "store_generation": "Changes of the store in a bucket that are known; 0 with a folder.",
    "keys_file_valid": "0 if the keys file as it is now cannot be used; else 1.",
    "store_age_seconds": "Since the bucket was last read to its end; 0 with a folder.",
}
LABELLED = (
    (
        "adamix_adapter_loaded",
        "Where a task's active adapter is: device, host or disk.",
        ("task", "tier"),
    ),
    ("adamix_slots_used", "Adapters on the device, by kind.", ("kind",)),
    ("adamix_slots_bytes", "What the adapters on the device take there, by kind.", ("kind",)),
)
