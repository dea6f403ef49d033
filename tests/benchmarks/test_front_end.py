"""The benchmark of the front end, through its door, at a size that measures nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.http.front_end import Kind, main, press
from benchmarks.http.load import Call
from benchmarks.http.server import front_end


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs Debian's wrk")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_measurement(tmp_path: Path, bert_folder: Path, workers: int) -> None:
    """A real server whose device answers at once is asked by wrk, and every figure is there, of
    workers the engine's own."""
    out = tmp_path / "front_end.json"
    app = typer.Typer()
    app.command()(main)
    options = {
        "--backbone": bert_folder,
        "--repeats": 1,
        "--seconds": 1,
        "--connections": 4,
        "--workers": workers,
    }
    options |= {"--device-ms": workers - 1, "--out": out}
    result = CliRunner().invoke(app, [str(part) for option in options.items() for part in option])
    assert result.exit_code == 0, result.output
    kinds = json.loads(out.read_text())["kinds"]
    assert set(kinds) == {
        "predict, 4 connections",
        "predict, 1 connection",
        "health, 4 connections",
    }
    for name, found in kinds.items():
        assert found["cpu_us"]["median"] > 0
        assert (0 < found["engine_us"]["median"] < found["cpu_us"]["median"]) == (workers > 1)
        assert (found["rows"]["median"] >= 1) == name.startswith("predict")
        assert (found["tokenize_us"]["median"] > 0) == name.startswith("predict")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs Debian's wrk")
def test_failed_requests(tmp_path: Path, bert_folder: Path) -> None:
    """Requests that the server refuses end the benchmark: their time would be no prediction's."""
    kind = Kind("no such task", Call("/predict?task=none", b'{"inputs": "good"}'), 1)
    with (
        front_end(tmp_path / "store", str(bert_folder)) as server,
        pytest.raises(RuntimeError) as failure,
    ):
        press(server, kind, 1, tmp_path / "ask.lua")
    assert re.match(r"no such task: (\d+) of \1 requests failed; expected none", str(failure.value))
