"""The benchmark of the tiers, through its door, at a size that measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks.engine.tiers import main


def test_a_measurement(bert_folder: Path) -> None:
    """A store is filled, scanned and read, and every figure is there."""
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(
        app, ["--backbone", str(bert_folder), "--tasks", "8", "--read", "4"]
    )
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)) == {
        "tasks",
        "scan_ms",
        "get_ms",
        "memory / file",
        "acquire_ms",
    }
