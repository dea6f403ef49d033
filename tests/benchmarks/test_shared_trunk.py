"""The benchmark of the shared trunk, through its door, at a size that measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from benchmarks.engine.shared_trunk import main


def test_a_measurement(tmp_path: Path, bert_folder: Path) -> None:
    """Every combination of tasks, layers and lengths is measured, together and apart."""
    out, image = tmp_path / "shared_trunk.json", tmp_path / "shared-trunk.svg"
    app = typer.Typer()
    app.command()(main)
    options = {
        "--backbone": bert_folder,
        "--tokens": "5,9",
        "--tasks": "1,3",
        "--layers": "0,1",
        "--repeats": 1,
    }
    options |= {"--out": out, "--image": image}
    result = CliRunner().invoke(app, [str(part) for option in options.items() for part in option])
    assert result.exit_code == 0, result.output
    cases = json.loads(out.read_text())["cases"]
    assert [(case["tokens"], case["tasks"], case["first_layer"]) for case in cases] == [
        (tokens, tasks, layer) for tokens in (5, 9) for tasks in (1, 3) for layer in (0, 1)
    ]
    assert all(
        case["together_ms"]["median"] > 0 < case["apart / together"]["median"] for case in cases
    )
    assert image.read_text().startswith("<?xml")
