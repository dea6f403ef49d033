"""What a run found: its figures as JSON and as a table, and what was wrong as sentences."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import typer
from rich.console import Console
from rich.table import Table

from training.hardware import hardware

RESULTS = Path("benchmarks/results/reliability")
MOST_SENTENCES = 20  # of one kind that are kept; all are counted
# What a log must not hold, whatever was sent.
TRACES = ("Traceback (most recent call last)", "internal error", "exception was never retrieved")


class Logged(Protocol):
    """A server with a log."""

    def said(self) -> str: ...


class Findings:
    """What was wrong, by kind: how often, and the first cases as sentences."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sentences: list[str] = []

    def wrong(self, kind: str, sentence: str) -> None:
        """Count a fault."""
        self.counts[kind] += 1
        if self.counts[kind] <= MOST_SENTENCES:
            self.sentences.append(f"{kind}: {sentence}")

    def check(self, true: object, kind: str, sentence: str) -> None:
        """Count a fault unless it is so."""
        if not true:
            self.wrong(kind, sentence)

    def check_log(self, server: Logged) -> None:
        """Count each traceback in a server's log."""
        for line in server.said().splitlines():
            if any(trace in line for trace in TRACES):
                self.wrong("a traceback", line[:1000])


def finish(
    word: str,
    figures: dict[str, Any],
    rows: Iterable[tuple[str, str]],
    findings: Findings,
    out: Path | None,
) -> None:
    """Write the JSON, print the table, and end with exit code 1 if something was wrong."""
    result = {
        "command": " ".join(["python", "-m", "benchmarks.reliability", *sys.argv[1:]]),
        **figures,
        "wrong": dict(findings.counts),
        "sentences": findings.sentences,
        "hardware": hardware(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "uvicorn", "tokenizers")},
        },
    }
    out = out or RESULTS / f"{word}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(word, "found")
    for name, found in rows:
        table.add_row(name, found)
    Console().print(table)
    Console().print(f"written to {out}")
    if findings.counts:
        for sentence in findings.sentences:
            typer.echo(sentence, err=True)
        total = sum(findings.counts.values())
        kinds = ", ".join(f"{count} × {kind}" for kind, count in findings.counts.items())
        typer.echo(f"error: {total} faults ({kinds}); expected none", err=True)
        raise typer.Exit(1)
