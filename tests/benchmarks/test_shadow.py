"""The benchmark of shadows, through its door, at a size that measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.http.shadow import CALLERS, main


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("forked")
def test_a_measurement(tmp_path: Path) -> None:
    """A real server is asked with a shadow and without, and every figure is there."""
    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "shadow.json"
    result = CliRunner().invoke(app, ["--rounds", "1", "--seconds", "0.5", "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["loads"]
    assert [load["callers"] for load in found] == list(CALLERS)
    for load in found:
        assert load["with"]["median"] > 0
        assert load["ratio"]["median"] > 0
        assert 0 <= load["compared"] <= 1
