"""The benchmark of training steps, through its door, at a size that measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks.glue.training_step import main


def test_a_measurement(tmp_path: Path, bert_folder: Path) -> None:
    """Every contestant runs, and the figures say how, on what and against what."""
    out = tmp_path / "results" / "steps.json"
    app = typer.Typer()
    app.command()(main)
    options = {"--backbone": bert_folder, "--batch": 2, "--steps": 2, "--repeats": 3, "--out": out}
    result = CliRunner().invoke(app, [str(part) for option in options.items() for part in option])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert set(found["milliseconds_per_step"]) == {
        "adapter",
        "routed",
        "consistent",
        "control",
        "corrected",
        "lora",
        "lora-routed",
        "lora-control",
        "lora-corrected",
    }
    assert set(found["tokens_per_second"]) == {"trainer", "longest", "maximum"}
    assert set(found["ratios"]) == {
        "routed / adapter",
        "consistent / adapter",
        "corrected / control",
        "lora-routed / lora",
        "lora-corrected / lora-control",
        "trainer / longest",
        "trainer / maximum",
    }
    assert all(
        0 < value["low"] <= value["median"] <= value["high"] for value in found["ratios"].values()
    )
    assert "thread" in found["hardware"]
    assert found["settings"]["repeats"] == 3
