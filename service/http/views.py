"""HTTP's models of the service's data: a task in the list, with details, or by itself; storage."""

from __future__ import annotations

import contextlib
import datetime
import math
from typing import Any

from adapters.entry import Entry, Version
from adapters.file import Summary
from adapters.spec import AdapterSpec, shortened
from service.http.schemas import (
    AdapterBytes,
    AdapterDetail,
    AdapterInfo,
    AdapterListed,
    Latency,
    ProbeShown,
    SpecShown,
    Storage,
    VersionInfo,
)
from service.service import Service
from service.service import Storage as Stored

MAX_SCORES, MAX_SCORE_CHARACTERS = 32, 64  # dev scores of a task in a list, and of their names
FIRST_DATE = datetime.datetime.min.replace(tzinfo=datetime.UTC).timestamp()
LAST_DATE = datetime.datetime.max.replace(tzinfo=datetime.UTC).timestamp() - 1


def info(service: Service, entry: Entry) -> AdapterInfo:
    """As listed. Raises as `Store.summary`."""
    return AdapterInfo(**_fields(service, entry))


def listed(service: Service, entry: Entry) -> AdapterListed:
    """As listed with details. Raises as `Store.summary`."""
    spec = _summary(service, entry).spec
    metrics, split = service.metrics, entry.split
    quantiles = metrics.latencies.quantiles(entry.task, 0.5, 0.99)
    return AdapterListed(
        **_fields(service, entry),
        dev_scores=_dev_scores(spec),
        requests=metrics.requests_of[entry.task],
        latency=None if quantiles is None else Latency(p50=quantiles[0], p99=quantiles[1]),
        canary=None if split is None or split.canary is None else split.canary.percent,
    )


def detailed(service: Service, entry: Entry) -> AdapterDetail:
    """By itself, with its spec and all its versions. Raises as `Store.summary`."""
    versions = [
        VersionInfo(
            version=name, bytes=v.bytes, created=date_of(v.created), active=v.digest == entry.active
        )
        for name, v in zip(entry.names(), entry.versions, strict=True)
    ]
    return AdapterDetail(
        **_fields(service, entry), spec=_spec(_summary(service, entry).spec), versions=versions
    )


def stored(storage: Stored) -> Storage:
    """What one backbone saves."""
    sizes = [AdapterBytes(**vars(size)) for size in storage.adapters]
    return Storage(**{**vars(storage), "adapters": sizes})


def _fields(service: Service, entry: Entry) -> dict[str, Any]:
    shown = _shown_version(entry)
    summary = _summary(service, entry)
    spec = summary.spec
    return {
        "task": entry.task,
        "kind": spec.kind,
        "version": entry.shown(entry.active_version) if entry.active_version else None,
        "labels": list(spec.labels),
        "problem_type": spec.problem_type,
        "text_pair": spec.text_pair,
        "bytes": shown.bytes,
        "parameters": summary.parameters,
        "created": date_of(shown.created),
        "tier": service.tier(entry),
    }


def _spec(spec: AdapterSpec) -> SpecShown:
    fields = {name: getattr(spec, name) for name in type(spec).model_fields}
    probe = ProbeShown(rows=len(spec.probe.inputs), logits=[list(row) for row in spec.probe.logits])
    return SpecShown.model_construct(**{**fields, "probe": probe})


def _dev_scores(spec: AdapterSpec) -> dict[str, float]:
    """What the trainer wrote into the file, as far as it is finite numbers: to the format,
    `training` is any JSON."""
    scores = spec.training.get("dev_scores")
    found: dict[str, float] = {}
    # Each list and each page repeats them: a file's header has room for 50,000.
    for name, value in scores.items() if isinstance(scores, dict) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # an integer of 400 digits
                if math.isfinite(value):
                    found[shortened(name, MAX_SCORE_CHARACTERS)] = float(value)
        if len(found) == MAX_SCORES:
            break
    return found


def _summary(service: Service, entry: Entry) -> Summary:
    digest = _shown_version(entry).digest
    return entry.summaries.get(digest) or service.store.summary(entry.task, digest)


def _shown_version(entry: Entry) -> Version:
    """The active version, or the newest where none is."""
    return entry.active_version or entry.versions[-1]


def date_of(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601, in UTC. File systems and other clusters' logs have times
    that the calendar here has not: they become its first or its last."""
    seconds = max(FIRST_DATE, min(LAST_DATE, seconds))
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
