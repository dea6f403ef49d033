"""The README is true: its commands run, its answers are what the service answers, its list of settings is whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.service.conftest import Server, running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# Each block of commands with the answer that stands below it; what installs or serves is `make`'s and CI's to prove.
BLOCKS = [
    (commands, json.loads(answer))
    for commands, answer in re.findall(r"```sh\n([^`]*)```\n\n```json\n([^`]*)```", README)
    if not commands.startswith("make")
]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What `make serve` starts: the embedded backbone and the shipped adapters."""
    with running(tmp_path_factory.mktemp("shipped") / "store", seed=ROOT / "store") as server:
        yield server


def labels(answer: Any) -> Any:
    """The answer without its scores."""
    if isinstance(answer, dict):
        return {key: labels(value) for key, value in answer.items() if key != "score"}
    return [labels(value) for value in answer] if isinstance(answer, list) else answer


def numbers(answer: Any) -> list[float]:
    """The answer's scores, in order."""
    if isinstance(answer, dict):
        return [score for key in sorted(answer) for score in numbers(answer[key])]
    if isinstance(answer, list):
        return [score for value in answer for score in numbers(value)]
    return [answer] if isinstance(answer, float) else []


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_commands_answer_what_the_readme_prints(block: int, shipped: Server, tmp_path: Path) -> None:
    """Every block of commands runs as it stands, and its last answer is the one printed below it."""
    commands, printed = BLOCKS[block]
    script = commands.replace("http://localhost:8000", shipped.url).replace("localhost:8000", shipped.url)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert labels(answer) == labels(printed)
    if "python -m training" not in commands:  # training gives other digits on another processor
        assert numbers(answer) == pytest.approx(numbers(printed), abs=2e-3)


def test_there_are_commands_to_run() -> None:
    """The README shows a prediction, several tasks at once, and a training."""
    assert len(BLOCKS) == 3


def test_every_setting_is_listed_with_its_default() -> None:
    """The README's table has each setting of the service and its default, and nothing else."""
    rows = dict(re.findall(r"^\| `ADAMIX_(\w+)` \| ([^|]*) \|", README, re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown = "–" if field.default is None else f"`{field.default}`"
        assert rows[name.upper()].strip() == shown


def test_local_links_lead_somewhere() -> None:
    """Every link of the README and the documents to a file of this repository has that file."""
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "LOG.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_shipped_adapters_are_whole(shipped: Server) -> None:
    """Every file in store/ is served after a fresh start, is at most 500 KB, and scores what the README says."""
    files = {path.stem: path for path in (ROOT / "store").glob("*.safetensors")}
    assert {"sst2", "mrpc", "stsb", "mnli"} <= set(files)
    with shipped.client() as client:
        served = {entry["task"]: entry for entry in client.get("/adapters").json()}
        for task, path in files.items():
            assert path.stat().st_size <= 500_000
            assert served[task]["bytes"] == path.stat().st_size
            scores = client.get(f"/adapters/{task}").json()["spec"]["training"]["dev_scores"]
            (row,) = re.findall(rf"^\| `{task}` \|.*$", README, re.MULTILINE)
            assert any(f"{score:.3f}" in row for score in scores.values())
