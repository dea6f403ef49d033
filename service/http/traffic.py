"""HTTP's models of a task's split traffic: as it is asked for, and as it is shown with what was
seen."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import BaseModel, Field, StrictBool, StrictInt

from adapters.adapter_store import AdapterStore
from adapters.traffic import Canary, Rollback, Shadow, Split
from service.http.schemas import Latency, Strict
from service.http.views import date_of
from service.service import Service
from service.traffic.rollouts import Rollout
from service.traffic.seen import Seen

MOST_LABELS = 20  # of a version, the most frequent ones


class Part(Strict):
    """One version's part of a task's traffic."""

    version: str = Field(
        min_length=1, max_length=64, description="A version or the beginning of one."
    )
    percent: float = Field(
        strict=True, ge=0, le=100, description="Of the keys; of a shadow, of the active's requests."
    )


class Rule(Strict):
    """When the canary leaves by itself: when one of the shares is exceeded."""

    disagreement: float | None = Field(
        None,
        strict=True,
        ge=0,
        le=1,
        description="Of the rows that were compared: those with other labels than the active's.",
    )
    errors: float | None = Field(
        None,
        strict=True,
        ge=0,
        le=1,
        description="Of the canary's requests: those that it could not answer.",
    )
    after: StrictInt = Field(
        200,
        ge=1,
        le=1_000_000_000,
        description="A share counts from so many compared rows, or requests, on.",
    )


class Traffic(Strict):
    """The body of PUT /adapters/{task}/traffic."""

    active: str = Field(
        min_length=1,
        max_length=64,
        description="The version that is active now, or its beginning. It gets what others do not.",
    )
    canary: Part | None = Field(None, description="A version that answers a part of the requests.")
    shadow: Part | None = Field(None, description="A version that is compared and never answers.")
    rollback: Rule | None = None
    labels_may_differ: StrictBool = Field(
        False, description="Let the canary answer with other labels than the active version."
    )


class SeenShown(BaseModel):
    """What one version did, in this process, since the split began or the process started."""

    requests: int
    errors: int = Field(description="Requests (of a shadow: rows) that it could not answer.")
    non_finite: int = Field(description="Those of the errors with NaN or infinite logits.")
    rows: int
    labels: dict[str, float] = Field(
        description=f"Each label's share of the rows, of the {MOST_LABELS} most frequent labels."
    )
    mean_score: float | None = Field(
        None, description="Of each row's best label; of a regression the mean value."
    )
    compared: int = Field(description="Rows that the active version ran too.")
    disagreement: float | None = Field(None, description="The share of them with other labels.")
    mean_difference: float | None = Field(
        None, description="Of a compared row's two scores: of a regression, of its two values."
    )
    dropped: int = Field(description="Rows that were not compared, for lack of time or length.")
    latency: Latency | None = Field(
        None,
        description="Seconds of the device a row: a batch's by its rows, of the last 256 requests.",
    )


class LeftShown(BaseModel):
    """A canary that left by its rule."""

    version: str
    reason: str
    at: str


class TrafficShown(BaseModel):
    """How a task's traffic is divided, and what each version was seen to do; `left` is the canary
    that the rule ended, until the next PUT, DELETE or activation."""

    active: str | None
    canary: Part | None = None
    shadow: Part | None = None
    rollback: Rule | None = None
    labels_may_differ: bool = False
    left: LeftShown | None = None
    since: Annotated[str | None, Field(description="When the counts of `seen` began.")] = None
    seen: Annotated[
        dict[str, SeenShown], Field(description="By role: active, canary, shadow.")
    ] = {}  # pydantic copies it


def split_of(store: AdapterStore, task: str, asked: Traffic) -> Split:
    """The split that was asked for. Raises as `Store.find`."""

    def digest(version: str) -> str:
        return store.find(task, version).digest

    canary, shadow, rule = asked.canary, asked.shadow, asked.rollback
    return Split(
        active=digest(asked.active),
        since=time.time(),
        canary=None if canary is None else Canary(digest(canary.version), canary.percent),
        shadow=None if shadow is None else Shadow(digest(shadow.version), shadow.percent),
        rollback=None if rule is None else Rollback(rule.disagreement, rule.errors, rule.after),
        labels_may_differ=asked.labels_may_differ,
    )


def traffic_of(service: Service, task: str) -> TrafficShown:
    """A task's traffic as it is now. Raises UnknownTask."""
    entry = service.store.entry(task)

    def name(digest: str) -> str:
        version = entry.version(digest)
        return digest[:12] if version is None else entry.shown(version)

    def part(of: Canary | Shadow | None) -> Part | None:
        return None if of is None else Part(version=name(of.digest), percent=of.percent)

    active = None if entry.active is None else name(entry.active)
    rollout = service.rollouts.of(task)
    if rollout is None:
        return TrafficShown(active=active)
    split, left = rollout.split, rollout.split.left
    rule = split.rollback
    return TrafficShown(
        active=active,
        canary=part(split.canary),
        shadow=part(split.shadow),
        rollback=None
        if rule is None
        else Rule(disagreement=rule.disagreement, errors=rule.errors, after=rule.after),
        labels_may_differ=split.labels_may_differ,
        left=None
        if left is None
        else LeftShown(version=name(left.digest), reason=left.reason, at=date_of(left.at)),
        since=date_of(rollout.began),
        seen={role: _seen(rollout, role, seen) for role, seen in rollout.seen.items()},
    )


def _seen(rollout: Rollout, role: str, seen: Seen) -> SeenShown:
    quantiles = rollout.latencies.quantiles(role, 0.5, 0.99)
    return SeenShown(
        requests=seen.requests,
        errors=seen.errors,
        non_finite=seen.non_finite,
        rows=seen.rows,
        labels={label: n / seen.rows for label, n in seen.labels.most_common(MOST_LABELS)},
        mean_score=seen.score / seen.rows if seen.rows else None,
        compared=seen.compared,
        disagreement=seen.disagreed / seen.compared if seen.compared else None,
        mean_difference=seen.difference / seen.compared if seen.compared else None,
        dropped=seen.dropped,
        latency=None if quantiles is None else Latency(p50=quantiles[0], p99=quantiles[1]),
    )
