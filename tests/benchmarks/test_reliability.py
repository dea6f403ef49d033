"""The proofs of reliability, through their door, cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.reliability import page
from benchmarks.reliability.__main__ import app
from benchmarks.reliability.disk import Scenario

pytestmark = pytest.mark.timeout(300)


def run(tmp_path: Path, word: str, *flags: str, **options: Any) -> dict[str, Any]:
    """The figures of a run that found nothing wrong. Flags and options are the command's."""
    out = tmp_path / f"{word}.json"
    given = {**options, "out": out}
    words = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    result = CliRunner().invoke(app, [word, *flags, *words])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["wrong"] == {}
    return found


def test_a_short_soak(tmp_path: Path) -> None:
    """With one worker and with two, versions are swapped in each way under load, and every answer
    is the right one's."""
    found = run(tmp_path, "soak", "--forked", minutes=2, requests=600, swaps=12)
    assert found["requests"] == 600
    for part in found["parts"]:
        assert part["swaps"] == {"activate": 2, "replace": 2, "renew": 2}
        assert part["versions_that_answered"] > 5
        assert part["after_warm_up"]["descriptors"][0] > 0


def test_a_few_crashes(tmp_path: Path) -> None:
    """After a kill of one process, and of one with front ends, all is there that was
    acknowledged."""
    found = run(tmp_path, "crash", kills=2)
    assert found["acknowledged_in_all"] > 4
    assert found["files_compared"] > 0


def test_broken_disks(tmp_path: Path) -> None:
    """Each scenario finds nothing wrong, and broken disks are answered with 503."""
    found = run(tmp_path, "disk", files=4)["scenarios"]
    assert len(found) == len(Scenario)
    tried = [scenario for scenario in found.values() if "answers" in scenario]
    assert len(tried) >= len(Scenario) - 1  # nothing keeps root from writing where it cannot mount
    assert all(scenario["answers"]["503"] > 0 for scenario in tried)


def test_some_hostile_files_and_requests(tmp_path: Path) -> None:
    """Files and requests of each kind were tried; some were refused, some were answered."""
    found = run(tmp_path, "hostile", "--forked", files=300, requests=480)
    assert found["files"]["refused"] > 150
    assert found["files"]["refused"] + found["files"]["valid_all_the_same"] == 300
    for part in found["parts"]:
        assert len(part["kinds"]) == 6
        assert {"200", "400", "404", "422"} <= set(part["statuses"])


def test_a_short_overload(tmp_path: Path) -> None:
    """Every phase has its figures; at three times the capacity some requests are answered and some
    are refused, and the lone task's are all answered."""
    found = run(tmp_path, "overload", minutes=0.03)
    assert set(found["phases"]) == {"at 80 %", "at 300 %", "recovery"}
    crowded = found["phases"]["at 300 %"]
    assert crowded["accepted"] > 0
    assert crowded["refused_429"] > 0
    assert sum(crowded["retry_after_seconds"].values()) == crowded["refused_429"]
    assert found["fairness"]["lone_requests"] > 0


def test_the_page_has_the_figures_of_the_runs() -> None:
    """docs/reliability.md holds what `python -m benchmarks.reliability page` writes, and no other
    figure; no committed run found anything wrong but what the page calls open."""
    text = page.PAGE.read_text()
    assert page.with_figures(text) == text
    assert page.figures_outside(text) == []
    wrong = {kind for name in page.PARTS for kind in page.figures(name)["wrong"]}
    _, _, still_open = text.partition("\n## Open\n")
    assert all(kind in still_open for kind in wrong)
