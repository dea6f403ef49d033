"""The benchmark of the growing service, through its door, at a size that measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.http.growth import main


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("forked")
def test_a_measurement(tmp_path: Path, bert_folder: Path) -> None:
    """Real servers on stores of two sizes are started, filled and loaded, and every figure is
    there."""
    out, image = tmp_path / "growth.json", tmp_path / "growth.svg"
    app = typer.Typer()
    app.command()(main)
    options = {
        "--backbone": bert_folder,
        "--sizes": "1,3",
        "--starts": 2,
        "--repeats": 2,
        "--seconds": 0.3,
    }
    options |= {"--concurrency": 4, "--out": out, "--image": image}
    result = CliRunner().invoke(app, [str(part) for option in options.items() for part in option])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert set(found["sizes"]) == {"1", "3"}
    assert found["throughput_ratios"]["zipf"]["1 / 1"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    for size in found["sizes"].values():
        assert size["start_seconds"]["median"] > 0
        assert (
            size["memory_bytes"]["uss"]
            <= size["memory_bytes"]["pss"]
            <= size["memory_bytes"]["rss"]
        )
        assert size["uniform"]["loads_per_request"] == 0  # every adapter has a slot
        assert set(size["zipf"]["open"]) == {"0.5", "0.8"}
        assert size["zipf"]["open"]["0.8"]["p50_ms"] <= size["zipf"]["open"]["0.8"]["p99_ms"]
        for draw in ("uniform", "zipf"):
            capacity = size[draw]["per_second"]["median"]
            # as many as said, whatever the arrivals' seed
            for part, phase in size[draw]["open"].items():
                assert phase["requests"] == pytest.approx(2 * 0.3 * float(part) * capacity, abs=2)
    assert image.read_text().startswith("<?xml")
