"""A run's folder, through the program's door: what it holds, that a kill leaves it readable, and
that it is gone on in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from adapters.file import load
from tests.training.test_checkpoint import arguments, run
from tests.training.test_methods import lines
from tests.training.test_training_cli import assert_refused
from training.__main__ import app


def events(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of what TensorBoard shows under `name`."""
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_folder_for_each_seed(tmp_path: Path, bert_folder: Path) -> None:
    """Each seed's folder has its recipe, its environment, its numbers by step and at the end, and
    its adapter."""
    kept, scores = tmp_path / "kept", tmp_path / "scores.jsonl"
    options = ["--seeds", "3,4", "--epochs", "2", "--run-dir", str(kept), "--scores", str(scores)]
    result = run(tmp_path, bert_folder, *options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in kept.iterdir()) == ["seed-3", "seed-4"]
    for seed, scored in zip((3, 4), lines(scores), strict=True):
        folder = kept / f"seed-{seed}"
        config = json.loads((folder / "config.json").read_text())
        spec = load(folder / "adapter.safetensors").spec
        assert config["recipe"] == spec.training["recipe"] == scored["recipe"]
        assert (config["recipe"]["seed"], config["backbone"], config["rows"]) == (
            seed,
            spec.backbone.fingerprint,
            [8, 8],
        )
        (started,) = json.loads((folder / "environment.json").read_text())
        assert started["hardware"] == spec.training["hardware"]
        assert started["versions"]["torch"] == spec.training["versions"]["torch"]
        *steps, last = lines(folder / "metrics.jsonl")
        assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
        assert all(step["loss"] > 0 and step["tokens_per_second"] > 0 for step in steps)
        assert max(step["learning_rate"] for step in steps) == 3e-3
        assert {name: value for name, value in last.items() if name.startswith("dev/")} == {
            f"dev/{name}": value for name, value in scored["metrics"].items()
        }
        for name in ("loss", "learning_rate", "tokens_per_second"):
            assert events(folder, name) == [
                (step["step"], pytest.approx(step[name])) for step in steps
            ]


def test_a_killed_run_goes_on(tmp_path: Path, bert_folder: Path) -> None:
    """What a killed run has written can be read; the run that goes on has each step once and ends
    with the same tensors."""
    kept = tmp_path / "kept"
    options = ["--epochs", "30", "--run-dir", str(kept), "--checkpoint-every", "25"]
    command = [sys.executable, "-m", "training", *arguments(tmp_path, bert_folder, *options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 36/"):
                process.send_signal(signal.SIGKILL)
                break
        process.communicate(timeout=60)
    before = lines(kept / "metrics.jsonl")
    assert [line["step"] for line in before] == list(range(1, len(before) + 1))
    assert len(before) >= 36
    config = json.loads((kept / "config.json").read_text())
    assert config["command"].startswith("python -m training --task toy --train ")
    with (kept / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # a line that the kill cut short
    result = run(tmp_path, bert_folder, *options, "--resume")
    assert result.exit_code == 0, result.output
    after = lines(kept / "metrics.jsonl")
    assert [line["step"] for line in after] == [*range(1, 91), 90]
    assert after[:25] == before[:25]
    assert [step for step, _ in events(kept, "loss")] == list(range(1, 91))
    assert len(json.loads((kept / "environment.json").read_text())) == 2
    assert json.loads((kept / "config.json").read_text()) == config
    assert (
        run(
            tmp_path, bert_folder, "--epochs", "30", "--out", str(tmp_path / "whole.safetensors")
        ).exit_code
        == 0
    )
    ours, theirs = load(kept / "adapter.safetensors"), load(tmp_path / "whole.safetensors")
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


def test_before_the_first_checkpoint(tmp_path: Path, bert_folder: Path) -> None:
    """A run that was killed before its first checkpoint begins again by --resume, if it is the same
    run."""
    kept = tmp_path / "kept"
    options = ["--epochs", "1", "--run-dir", str(kept)]
    assert run(tmp_path, bert_folder, *options).exit_code == 0
    (kept / "checkpoint").unlink()
    before = content(kept)
    refused = run(tmp_path, bert_folder, *options, "--resume", "--bottleneck", "8")
    assert_refused(
        refused,
        f"{kept} is of a run with another bottleneck (4; now 8); expected the same",
        tmp_path / "none",
    )
    refused = run(tmp_path, bert_folder, *options, "--resume", "--task", "other")
    assert_refused(
        refused, f"{kept} is of a run with another task ('toy'; now 'other')", tmp_path / "none"
    )
    assert content(kept) == before
    assert run(tmp_path, bert_folder, *options, "--resume").exit_code == 0
    assert [line["step"] for line in lines(kept / "metrics.jsonl")] == [1, 2, 3, 3]


OTHERS: list[tuple[str, str | None, list[str], str]] = [
    ("config.json", "{}", [], "KEPT holds a run already; expected --resume, or another folder"),
    ("metrics.jsonl", "", [], "KEPT holds a run already; expected --resume, or another folder"),
    ("config.json", '{"task"', ["--resume"], "KEPT/config.json cannot be read: "),
    (
        "config.json",
        "[]",
        ["--resume"],
        "KEPT/config.json cannot be read: it holds a list; expected what a run wrote there",
    ),
    ("notes.txt", "mine", ["--resume"], "KEPT holds no run; expected one to go on with"),
]


@pytest.mark.parametrize(("name", "text", "options", "message"), OTHERS)
def test_what_lies_there_stays(
    tmp_path: Path, bert_folder: Path, name: str, text: str, options: list[str], message: str
) -> None:
    """A folder that holds another run, or something else than a run, is refused and stays as it
    is."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / name).write_text(text)
    result = run(tmp_path, bert_folder, "--run-dir", str(kept), *options)
    assert_refused(result, message.replace("KEPT", str(kept)), tmp_path / "none")
    assert content(kept) == {name: text.encode()}


def test_without_tensorboard(
    tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tensorboard is not installed one line says so, and all else is there."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    kept = tmp_path / "kept"
    result = run(
        tmp_path, bert_folder, "--epochs", "1", "--run-dir", str(kept), "--method", "bitfit"
    )
    assert result.exit_code == 0, result.output
    assert (
        result.stdout.count(
            "there are no TensorBoard events: the package tensorboard is not installed\n"
        )
        == 1
    )
    assert sorted(path.name for path in kept.iterdir()) == [
        "checkpoint",
        "config.json",
        "environment.json",
        "metrics.jsonl",
    ]


def test_time_left(tmp_path: Path, bert_folder: Path) -> None:
    """Each line of the log, and the bar of a terminal, tells the time passed and the time left."""
    result = run(tmp_path, bert_folder, "--epochs", "1")
    steps = [line for line in result.stdout.splitlines() if line.startswith("step ")]
    assert len(steps) == 3
    assert all(line.endswith(" left") and line.count("0:00:0") == 2 for line in steps)
    options = arguments(tmp_path, bert_folder, "--epochs", "1")
    result = CliRunner().invoke(
        app, options, env={"FORCE_COLOR": "1", "COLUMNS": "120", "TERM": "xterm"}
    )
    assert "3/3" in result.stdout
    assert " left" in result.stdout
