"""Metrics of divided traffic, read off the rollouts when Prometheus asks. Only tasks whose traffic
is divided have series, of three roles at most; labels are counted where there are few."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.traffic.rollouts import Rollout
from service.traffic.seen import Seen

MOST_LABELS = 16  # of a version that has series by label

COUNTS: dict[str, tuple[str, Callable[[Seen], float]]] = {
    "requests": ("Requests that a version got.", lambda seen: seen.requests),
    "errors": ("Requests (of a shadow: rows) that it could not answer.", lambda seen: seen.errors),
    "non_finite": ("Those of them with NaN or infinite logits.", lambda seen: seen.non_finite),
    "rows": ("Rows that it ran.", lambda seen: seen.rows),
    "score": ("Sum of its rows' scores; by rows, their mean.", lambda seen: seen.score),
    "compared": ("Rows that the active version ran too.", lambda seen: seen.compared),
    "disagreed": ("Those of them with other labels.", lambda seen: seen.disagreed),
    "dropped": ("Rows that were not compared.", lambda seen: seen.dropped),
    "device_seconds": ("Seconds of the device for its rows.", lambda seen: seen.seconds),
}
ROLES = ("task", "role")


class TrafficCollector(Collector):
    """Counters of each version of each divided task since its split began; they begin anew with
    it, as after a restart."""

    def __init__(self, rollouts: Callable[[], list[Rollout]]) -> None:
        self._rollouts = rollouts

    def describe(self) -> Iterable[Metric]:
        """The names alone."""
        return self._families([])

    def collect(self) -> Iterable[Metric]:
        return self._families(self._rollouts())

    def _families(self, rollouts: list[Rollout]) -> Iterable[Metric]:
        seen = [(r.task, role, seen) for r in rollouts for role, seen in r.seen.items()]
        for name, (text, read) in COUNTS.items():
            counter = CounterMetricFamily(f"adamix_traffic_{name}", text, labels=ROLES)
            for task, role, counts in seen:
                counter.add_metric([task, role], read(counts))
            yield counter
        labels = CounterMetricFamily(
            "adamix_traffic_labels",
            f"Rows by label, of versions that gave {MOST_LABELS} labels or fewer.",
            labels=(*ROLES, "label"),
        )
        for task, role, counts in seen:
            found = dict(counts.labels)  # copied in one step: rows are counted meanwhile
            for label, rows in found.items() if len(found) <= MOST_LABELS else ():
                labels.add_metric([task, role, label], rows)
        yield labels
        percent = GaugeMetricFamily(
            "adamix_traffic_percent", "What a canary or a shadow is to get.", labels=ROLES
        )
        left = GaugeMetricFamily(
            "adamix_canary_left",
            "1 for a task whose canary left by its rule, until its traffic is divided anew.",
            labels=("task",),
        )
        for rollout in rollouts:
            split = rollout.split
            for role, part in (("canary", split.canary), ("shadow", split.shadow)):
                if part is not None:
                    percent.add_metric([rollout.task, role], part.percent)
            left.add_metric([rollout.task], float(split.left is not None))
        yield percent
        yield left
