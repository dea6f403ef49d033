"""The plots of docs/scale.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.scale.setup import POLICIES


def draw(result: dict[str, Any], folder: Path) -> None:
    """scale-policies.svg and scale-changes.svg."""
    policies(result["policies"], folder / "scale-policies.svg")
    changes(result, folder / "scale-changes.svg")


def policies(rows: list[dict[str, Any]], file: Path) -> None:
    """Device hits, p99 and the hottest replica's load over Zipf's exponent."""
    figure, (hits, latency, hottest) = plot.figure(3, (11, 3.6))
    for name in POLICIES:
        mine = [row for row in rows if row["policy"] == name]
        exponents = [row["exponent"] for row in mine]
        for axes, what in (
            (hits, "device_hit_rate"),
            (latency, "p99_ms"),
            (hottest, "hottest_load"),
        ):
            axes.plot(exponents, [row[what] for row in mine], "o-", label=name)
    for axes, title in (
        (hits, "device hit rate"),
        (latency, "p99 in ms"),
        (hottest, "load of the hottest replica"),
    ):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("Zipf's exponent")
    hits.set_ylim(0, 1)
    for axes, ticks in ((latency, (50, 100, 200, 400, 800)), (hottest, (1, 2, 5, 10))):
        axes.set_yscale("log")
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    hits.legend(fontsize="x-small")
    plot.save(figure, file)


def changes(result: dict[str, Any], file: Path) -> None:
    """What each second's requests met while the cluster changed."""
    figure, (misses, latency) = plot.figure(2, (11, 3.6))
    runs = [
        *(("one more replica", run) for run in result["scale_out"][1:]),
        *(("all replaced, a tenth at once", run) for run in result["rolling"][1:]),
        *((f"a zone lost ({run['how']}), load {run['load']}", run) for run in result["zone"]),
    ]
    for name, run in runs:
        seconds = run["seconds"]
        misses.plot(seconds["read"], label=name)
        latency.plot([value or float("nan") for value in seconds["p99_ms"]], label=name)
    misses.set_title("requests that missed in memory", fontsize="medium")
    latency.set_title("p99 in ms", fontsize="medium")
    latency.set_yscale("log")
    for axes in (misses, latency):
        axes.set_xlabel("second of arrival")
    misses.legend(fontsize="x-small")
    plot.save(figure, file)
