"""The benchmark of the front end, through its door, at a size that measures nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.front_end import main


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs Debian's wrk")
def test_a_measurement(tmp_path: Path, bert_folder: Path) -> None:
    """A real server whose device answers at once is asked by wrk, and every figure is there."""
    out = tmp_path / "front_end.json"
    app = typer.Typer()
    app.command()(main)
    options = {"--backbone": bert_folder, "--repeats": 1, "--seconds": 1, "--connections": 4, "--out": out}
    result = CliRunner().invoke(app, [str(part) for option in options.items() for part in option])
    assert result.exit_code == 0, result.output
    kinds = json.loads(out.read_text())["kinds"]
    assert set(kinds) == {"predict, 4 connections", "predict, 1 connection", "health, 4 connections"}
    for name, found in kinds.items():
        assert found["cpu_us"]["median"] > 0
        assert (found["tokenize_us"]["median"] > 0) == name.startswith("predict")
