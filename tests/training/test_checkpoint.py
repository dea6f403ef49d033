"""Checkpoints, through the program's door: a run that was stopped goes on as if it never had
been."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner, Result

from adapters.backbone import Backbone
from adapters.file import load
from tests.training.killed import resumed
from tests.training.test_methods import lines
from tests.training.test_training import QUICK, SINGLE
from tests.training.test_training_cli import ROWS, assert_refused, jsonl
from training.__main__ import app
from training.config import Recipe
from training.one_run import measure
from training.progress import Progress


def arguments(folder: Path, backbone: Path, *more: str) -> list[str]:
    data = jsonl(folder / "data.jsonl", ROWS)
    options = [
        "--task",
        "toy",
        "--train",
        str(data),
        "--dev",
        str(data),
        "--backbone",
        str(backbone),
        "--dtype",
        "float32",
    ]
    return [*options, "--bottleneck", "4", "--batch-size", "3", "--seed", "5", *more]


def run(folder: Path, backbone: Path, *more: str) -> Result:
    return CliRunner().invoke(app, arguments(folder, backbone, *more))


@pytest.mark.parametrize("method", ["adamix", "lora", "full"])
@pytest.mark.parametrize("killed", [4, 7])
def test_a_killed_run_goes_on(tmp_path: Path, bert: Backbone, method: Any, killed: int) -> None:
    """A run that was killed at any step and goes on from its last checkpoint ends with the bits of
    one never stopped."""
    # 4 steps an epoch
    size: dict[str, Any] = {"bottleneck": Recipe.bottleneck, "rank": 2} if method == "lora" else {}
    recipe = dataclasses.replace(
        QUICK, method=method, epochs=3, batch_size=10, learning_rate=1e-3, **size
    )
    whole = measure(bert, SINGLE, SINGLE, recipe)
    seen: list[Progress] = []
    again = resumed(bert, recipe, tmp_path / "checkpoint", killed=killed, seen=seen.append)
    assert [p.step for p in seen] == list(range(4 if killed == 4 else 7, 13))
    assert again.scores == whole.scores
    assert again.done.tokens == whole.done.tokens
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_ctrl_c_and_resume(tmp_path: Path, bert_folder: Path) -> None:
    """A run of the program that Ctrl-C ended, resumed, writes the very tensors and probe of a run
    never stopped."""
    out, kept, epochs = tmp_path / "out.safetensors", str(tmp_path / "kept"), ("--epochs", "50")
    assert (
        run(tmp_path, bert_folder, "--out", str(tmp_path / "whole.safetensors"), *epochs).exit_code
        == 0
    )
    whole = load(tmp_path / "whole.safetensors")
    scores = tmp_path / "scores.jsonl"
    options = arguments(
        tmp_path,
        bert_folder,
        "--out",
        str(out),
        *epochs,
        "--run-dir",
        kept,
        "--scores",
        str(scores),
    )
    command = [sys.executable, "-m", "training", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    stopped = load(out).spec.training["steps"]
    assert f"stopped early, after {stopped} of 150 steps; --resume goes on\n" in rest
    assert not scores.exists()  # half a run is no result
    result = CliRunner().invoke(app, [*options, "--resume"])
    assert result.exit_code == 0, result.output
    again = load(out)
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert again.spec.probe == whole.spec.probe
    assert (again.spec.training["steps"], len(lines(scores))) == (150, 1)


def test_a_finished_run_is_judged_again(tmp_path: Path, bert_folder: Path) -> None:
    """What was trained once can be judged in other ways: a finished run is not trained a second
    time, and judged in the same way it leaves its adapter, its scores and its numbers as they
    are."""
    kept, scores = str(tmp_path / "kept"), tmp_path / "scores.jsonl"
    options = ["--epochs", "2", "--run-dir", kept, "--scores", str(scores)]
    assert run(tmp_path, bert_folder, *options).exit_code == 0
    files = [tmp_path / "kept" / name for name in ("adapter.safetensors", "metrics.jsonl")]
    before = [file.read_bytes() for file in files]
    assert run(tmp_path, bert_folder, *options, "--resume").exit_code == 0
    assert [file.read_bytes() for file in files] == before
    assert len(lines(scores)) == 1
    result = run(tmp_path, bert_folder, *options, "--resume", "--evaluate", "ensemble")
    assert result.exit_code == 0, result.output
    assert "step" not in result.stdout
    assert [line["evaluate"] for line in lines(scores)] == ["merged", "ensemble"]


def test_seeds_go_on_one_by_one(tmp_path: Path, bert_folder: Path) -> None:
    """Of several seeds each has its checkpoint; those not begun yet begin."""
    options = ["--epochs", "2", "--run-dir", str(tmp_path / "kept")]
    assert run(tmp_path, bert_folder, *options, "--seeds", "3").exit_code == 0
    result = run(tmp_path, bert_folder, *options, "--seeds", "3,4", "--resume")
    assert result.exit_code == 0, result.output
    assert sorted(path.parent.name for path in (tmp_path / "kept").glob("*/checkpoint")) == [
        "seed-3",
        "seed-4",
    ]


@pytest.fixture
def kept(tmp_path: Path, bert_folder: Path) -> Path:
    """The checkpoint of a short run."""
    result = run(tmp_path, bert_folder, "--epochs", "1", "--run-dir", str(tmp_path / "kept"))
    assert result.exit_code == 0, result.output
    return tmp_path / "kept" / "checkpoint"


OTHERS: list[tuple[list[str], str]] = [
    (
        ["--learning-rate", "0.002"],
        "is of a run with another learning_rate (0.003; now 0.002); expected the same",
    ),
    (["--method", "adapter"], "is of a run with another method ('adamix'; now 'adapter')"),
    (["--epochs", "2"], "is of a run with another epochs (1; now 2)"),
    (["--few-shot", "8"], "is of a run with another few_shot (None; now 8)"),
    (["--train", "OTHER"], "is of a run with another training data ("),
    (["--backbone", "embedded"], "is of a run with another backbone ("),
]


@pytest.mark.parametrize(("options", "message"), OTHERS)
def test_another_run_s_checkpoint(
    kept: Path, tmp_path: Path, bert_folder: Path, options: list[str], message: str
) -> None:
    """A checkpoint of another recipe, other data or another backbone is refused, and stays as it
    is."""
    other = jsonl(tmp_path / "other.jsonl", [*ROWS[:-1], ROWS[-1] | {"text": "the plot was awful"}])
    before = kept.read_bytes()
    options = [option.replace("OTHER", str(other)) for option in options]
    result = run(
        tmp_path, bert_folder, "--epochs", "1", "--run-dir", str(kept.parent), "--resume", *options
    )
    assert_refused(result, f"{kept.parent} {message}", tmp_path / "none")
    assert kept.read_bytes() == before


def test_a_half_written_checkpoint(kept: Path, tmp_path: Path, bert_folder: Path) -> None:
    """What a kill left half-written under another name is never read, and cleared away; a file cut
    short is refused by its name, in one sentence and with none of torch's advice."""
    whole = kept.read_bytes()
    (kept.parent / ".tmp-half").write_bytes(whole[:1000])
    again = ("--epochs", "1", "--run-dir", str(kept.parent), "--resume")
    assert run(tmp_path, bert_folder, *again).exit_code == 0
    assert not (kept.parent / ".tmp-half").exists()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint", b"\x80\x04."):
        kept.write_bytes(damaged)
        refused = run(tmp_path, bert_folder, *again)
        assert_refused(refused, f"{kept} cannot be read: ", tmp_path / "none")
        assert ". " not in refused.stderr
    torch.save({"format": "another"}, kept)
    assert_refused(
        run(tmp_path, bert_folder, *again),
        f"{kept} is no checkpoint; expected one of",
        tmp_path / "none",
    )
    safetensors.torch.save_file({"a": torch.zeros(1)}, kept)
    assert_refused(
        run(tmp_path, bert_folder, *again), f"{kept} cannot be read: ", tmp_path / "none"
    )


def test_nothing_is_overwritten_or_missed(kept: Path, tmp_path: Path, bert_folder: Path) -> None:
    """A folder that holds a run is not begun anew without a word, and one without is not gone on
    from."""
    result = run(tmp_path, bert_folder, "--epochs", "1", "--run-dir", str(kept.parent))
    assert_refused(
        result,
        f"{kept.parent} holds a run already; expected --resume, or another folder",
        tmp_path / "none",
    )
    nowhere = str(tmp_path / "nowhere")
    result = run(tmp_path, bert_folder, "--run-dir", nowhere, "--resume")
    assert_refused(result, f"{nowhere} holds no run; expected one to go on with", tmp_path / "none")
    result = run(tmp_path, bert_folder, "--resume")
    assert_refused(
        result,
        "--resume stands without --run-dir; expected the folder to go on in",
        tmp_path / "none",
    )
    result = run(tmp_path, bert_folder, "--run-dir", str(tmp_path / "data.jsonl"))
    assert_refused(result, "cannot be made a folder: File exists", tmp_path / "none")
    result = run(tmp_path, bert_folder, "--run-dir", nowhere, "--checkpoint-every", "0")
    assert_refused(result, "checkpoint_every is 0; expected 1 or more", tmp_path / "none")
