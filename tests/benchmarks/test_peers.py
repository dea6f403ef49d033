"""The benchmark beside the peers, through its door, at a size that measures nothing and without
what must be installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.contest import difference
from benchmarks.peers.__main__ import main


@pytest.mark.timeout(600)
def test_a_measurement(tmp_path: Path, bert_folder: Path) -> None:
    """Every contestant that needs no environment of its own runs, answers as it must, and is held
    against the others."""
    out, image = tmp_path / "peers.json", tmp_path / "peers.svg"
    app = typer.Typer()
    app.command()(main)
    options = {
        "--backbone": bert_folder,
        "--tasks": 3,
        "--batch": 4,
        "--batches": 1,
        "--repeats": 1,
        "--seconds": 0.3,
    }
    options |= {"--concurrency": 4, "--out": out, "--image": image}
    arguments = [str(part) for option in options.items() for part in option]
    result = CliRunner().invoke(
        app, [*arguments, "--without", "adapterhub", "--without", "infinity"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert set(found["texts_per_second"]["mnli, batches of 4"]) == {
        "mixed",
        "bare",
        "copies",
        "peft",
    }
    assert set(found["texts_per_second"]["over HTTP"]) == {"service", "pipelines"}
    assert set(found["ratios"]["sst2, one at a time"]) == {
        "mixed / bare",
        "mixed / copies",
        "mixed / peft",
    }
    assert len(found["greatest_difference_of_answers"]) == 4
    assert "adapterhub" not in found["versions"]
    assert image.read_text().startswith("<?xml")


def test_answers_that_differ() -> None:
    """Contestants whose answers differ are not compared: they do not do the same work."""
    assert difference("them", [[1.0, 2.0]], [[1.0, 2.0]]) == 0
    with pytest.raises(RuntimeError, match="the answers of them differ by 0"):
        difference("them", [[1.0, 2.0]], [[1.0, 2.5]])
