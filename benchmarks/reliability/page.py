"""The figures of benchmarks/results/reliability/, as docs/reliability.md shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from benchmarks.http.server import ROOT
from benchmarks.reliability import replicas
from benchmarks.reliability.report import RESULTS

PAGE = ROOT / "docs/reliability.md"
END = "<!-- end -->\n"
Rows = list[tuple[str, str]]


def with_figures(page: str) -> str:
    """The page with today's figures between each pair of marks."""
    for name, rows in PARTS.items():
        start = f"<!-- made by `python -m benchmarks.reliability page`: {name} -->\n"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(END)
        page = f"{before}{start}\n{table(name, rows)}\n{END}{after}"
    return page


def figures(name: str) -> dict[str, Any]:
    """What one run wrote."""
    found: dict[str, Any] = json.loads((ROOT / RESULTS / f"{name}.json").read_text())
    return found


def table(name: str, rows: Callable[[dict[str, Any]], Rows]) -> str:
    """A run's figures, its command and its machine."""
    found = figures(name)
    wrong = sum(found["wrong"].values())
    kinds = ", ".join(f"{count} × {kind}" for kind, count in found["wrong"].items())
    cores = f"{found['cores']} core{'s' if found['cores'] > 1 else ''}"
    lines = [f"`{found['command']}`", "", "| what | found |", "|---|---|"]
    lines += [f"| {what} | {value} |" for what, value in rows(found)]
    lines += [f"| **wrong** | **{wrong or 'none'}**{f' ({kinds})' if wrong else ''} |"]
    lines += [f"| machine | {found['hardware'].partition(',')[0]}, {cores} |"]
    return "\n".join(lines) + "\n"


def soak(found: dict[str, Any]) -> Rows:
    rows = [
        ("backbone", found["backbone"]),
        ("requests", f"{found['requests']:,}"),
        ("swaps of an active version", f"{found['swaps']:,}"),
    ]
    for part in found["parts"]:
        after = part["after_warm_up"]
        workers = _workers(part)
        rows += [
            (
                f"{workers}: requests",
                f"{part['requests']:,} in {part['seconds']:,} s; {part['versions_that_answered']}"
                f" versions answered; {part['requests_for_a_task_just_deleted']:,} requests got 404"
                " while their task was deleted",
            ),
            (
                f"{workers}: after the warm-up",
                f"RSS {after['rss_mib'][0]:,} – {after['rss_mib'][1]:,} MiB, fitted growth"
                f" {after['rss_growth_mib']:+} MiB over {after['requests']:,} requests;"
                f" descriptors {_range(after['descriptors'])}, threads {_range(after['threads'])}",
            ),
        ]
    return rows


def crash(found: dict[str, Any]) -> Rows:
    kinds = ", ".join(f"{n:,} × {kind}" for kind, n in sorted(found["acknowledged"].items()))
    cut = ", ".join(f"{n:,} × {kind}" for kind, n in sorted(found["interrupted"].items()))
    return [
        ("`kill -9`", f"{found['kills']:,}"),
        ("writes acknowledged", f"{found['acknowledged_in_all']:,} ({kinds})"),
        ("writes interrupted", f"{found['interrupted_in_all']:,} ({cut})"),
        ("of them found done", f"{found['interrupted_and_done']:,}"),
        (
            "of them uploads that were stored but not yet active",
            f"{found['interrupted_and_stored_but_not_active']:,}",
        ),
        ("files compared to the bit", f"{found['files_compared']:,}"),
        ("predictions compared after a restart", f"{found['predictions_compared']:,}"),
    ]


def disk(found: dict[str, Any]) -> Rows:
    rows = []
    for name, scenario in found["scenarios"].items():
        parts = [scenario["how"]] if "how" in scenario else []
        if "damages" in scenario:
            damages = ", ".join(f"{n} × {how}" for how, n in sorted(scenario["damages"].items()))
            parts.append(f"{scenario['files']:,} files damaged ({damages})")
        if "second_writer" in scenario:
            parts.append(f"the second one says: `{scenario['second_writer']}`")
        if "answers" in scenario:
            answers = ", ".join(f"{n:,} × {s}" for s, n in sorted(scenario["answers"].items()))
            parts.append(f"answers: {answers}")
        rows.append((name, "; ".join(parts)))
    return rows


def hostile(found: dict[str, Any]) -> Rows:
    files = found["files"]
    rows = [
        (
            "adapter files",
            f"{files['files']:,}: {files['refused']:,} refused, {files['valid_all_the_same']:,}"
            f" still valid; the slowest took {files['slowest_ms']:,} ms; memory"
            f" {files['memory_growth_mib']:+} MiB",
        ),
        ("requests", f"{found['requests']:,}"),
    ]
    for part in found["parts"]:
        statuses = ", ".join(f"{n:,} × {status}" for status, n in part["statuses"].items())
        rows += [
            (
                f"{_workers(part)}: answers",
                f"{statuses}; {part['answered_503_with_retry_after']:,} × 503 of a full server;"
                f" {part['closed_without_an_answer']:,} streams closed without an answer,"
                f" {part['reset']:,} reset",
            ),
            (
                f"{_workers(part)}: meanwhile",
                f"{part['honest_requests_between']:,} well-formed requests, the slowest"
                f" {part['slowest_honest_ms']:,} ms; memory {part['memory_growth_mib']:+} MiB",
            ),
        ]
    return rows


def overload(found: dict[str, Any]) -> Rows:
    rows = [
        ("backbone", found["backbone"]),
        ("capacity, 32 callers at once", f"{found['capacity_per_second']:,} requests/s"),
    ]
    for name, phase in found["phases"].items():
        waits = ", ".join(f"{n:,} × {s} s" for s, n in phase["retry_after_seconds"].items())
        refused = f"{phase['refused_429']:,} got 429{f' (Retry-After {waits})' if waits else ''}"
        rows.append(
            (
                f"{name}, {phase['seconds']:,} s",
                f"{phase['sent']:,} sent, {phase['accepted']:,} answered 200, {refused}; of those"
                f" answered 200 p50 {phase['accepted_p50_ms']:,} ms, p99"
                f" {phase['accepted_p99_ms']:,} ms",
            )
        )
        rows.append(
            (
                f"{name}: /health",
                f"p50 {phase['health_p50_ms']} ms, p99 {phase['health_p99_ms']} ms, at most"
                f" {phase['health_max_ms']} ms",
            )
        )
    fair = found["fairness"]
    return [
        *rows,
        (
            "p99 at 300 % / at 80 %",
            f"**{found['p99_ratio']}** (goal: at most {found['p99_ratio_goal']})",
        ),
        (
            "/health in all phases",
            f"at most **{found['slowest_health_ms']} ms** (goal: {found['health_goal_ms']} ms)",
        ),
        (
            "one task during a flood of another one",
            f"{fair['lone_requests']:,} requests, none refused; p50 {fair['lone_p50_ms']:,} ms, p99"
            f" {fair['lone_p99_ms']:,} ms; in the queue for {fair['lone_queued_p50_in_batches']}"
            f" batches (p50), {fair['lone_queued_max_in_batches']} at most; a batch takes"
            f" {fair['mean_batch_ms']:,} ms",
        ),
    ]


PARTS: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "soak": soak,
    "soak-embedded": soak,
    "crash": crash,
    "disk": disk,
    "hostile": hostile,
    "overload": overload,
    "replicas": replicas.rows,
}


def figures_outside(page: str) -> list[str]:
    """Numbers with a unit or of four digits that stand outside of the marks: nothing holds them."""
    made = re.compile(r"<!-- made by .*?<!-- end -->", re.DOTALL)
    return re.findall(
        r"\d[\d,.]*\s?(?:ms|MiB|requests/s)\b|\b\d{1,3}(?:,\d{3})+\b", made.sub("", page)
    )


def _workers(part: dict[str, Any]) -> str:
    return "one process" if part["workers"] == 1 else f"{part['workers']} front ends"


def _range(values: list[float]) -> str:
    low, high = (f"{value:g}" for value in values)
    return low if low == high else f"{low} – {high}"
