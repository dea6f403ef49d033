"""Ten thousand tasks, as /storage and /adapters would answer them: so many files would be
gigabytes."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, Route

BACKBONE, ADAPTER = 90_852_864, 302_112
KINDS: list[dict[str, Any]] = [
    {"labels": ["billing", "technical", "sales", "other"], "text_pair": False},
    {"labels": ["relevant", "irrelevant"], "text_pair": True},
    {"labels": ["positive", "neutral", "negative"], "text_pair": False},
]


def answer_as_if(page: Page, tasks: int) -> None:
    """Let the page believe in so many tasks."""
    page.route("**/storage*", lambda route: route.fulfill(json=storage(tasks)))
    page.route(re.compile(r"/adapters\?"), lambda route: _list(route, tasks))


def storage(tasks: int) -> dict[str, Any]:
    adapters, copies = tasks * ADAPTER, tasks * BACKBONE
    return {
        "backbone": "embedded",
        "dtype": "float32",
        "tasks": tasks,
        "backbone_bytes": BACKBONE,
        "adapters_bytes": adapters,
        "total_bytes": BACKBONE + adapters,
        "full_copies_bytes": copies,
        "saved_bytes": copies - BACKBONE - adapters,
        "ratio": round(copies / (BACKBONE + adapters), 3),
        "adapters": [
            {"task": name(i), "version": f"{i:012x}", "bytes": ADAPTER} for i in range(tasks)
        ]
        if tasks <= 64
        else [],
    }


def name(i: int) -> str:
    return f"team-{i:05d}"


def _list(route: Route, tasks: int) -> None:
    query = {key: values[0] for key, values in parse_qs(urlsplit(route.request.url).query).items()}
    found = [i for i in range(tasks) if query.get("search", "") in name(i)]
    start = int(query["offset"])
    shown = [_adapter(i) for i in found[start : start + int(query["limit"])]]
    route.fulfill(json=shown, headers={"X-Total-Count": str(len(found))})


def _adapter(i: int) -> dict[str, Any]:
    return {
        "task": name(i),
        "version": f"{i * 2654435761 % 16**12:012x}",
        "problem_type": "single_label_classification",
        "bytes": ADAPTER,
        "parameters": 151_056,
        "created": "2026-11-24T06:00:00+00:00",
        "tier": ("device", "device", "host", "disk")[i % 4],
        "dev_scores": {"accuracy": 0.8 + i * 37 % 150 / 1000},
        "requests": i * 7919 % 20_011,
        "latency": {"p50": 0.004 + i * 31 % 17 / 1000, "p99": 0.022 + i * 53 % 97 / 1000}
        if i
        else None,
        **KINDS[i % len(KINDS)],
    }
