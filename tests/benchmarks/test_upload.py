"""The benchmark of uploads, through its door, at a size that measures nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.http.upload import main


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("forked")
def test_a_measurement(tmp_path: Path) -> None:
    """Shipped files, of a text and of a pair, are uploaded to a real server and asked, and every
    figure is there."""
    app = typer.Typer()
    app.command()(main)
    for task in ("sst2", "mrpc"):
        shutil.copy(f"store/{task}.safetensors", tmp_path)
    out = tmp_path / "upload.json"
    result = CliRunner().invoke(
        app, ["--files", str(tmp_path), "--repeats", "1", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["uploads"] == 2
    assert found["milliseconds"]["both"]["low"] >= found["milliseconds"]["upload"]["low"] > 0


def test_an_empty_folder(tmp_path: Path) -> None:
    """A folder without adapter files is refused by name."""
    with pytest.raises(SystemExit, match="holds no adapter file; expected one"):
        main(tmp_path)
