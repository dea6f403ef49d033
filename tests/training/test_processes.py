"""A run split over several processes, as a launcher starts them on a machine without a GPU: the run
that one would make."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from adapters.file import Adapter, load
from tests.tiny import tiny_backbone
from tests.training.test_methods import lines
from tests.training.test_training_cli import ROWS, jsonl
from training.__main__ import app

ACCELERATE = [
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
]
ACCELERATE += ["--dynamo_backend=no", "--main_process_port=0"]
TORCHRUN = [
    "torch.distributed.run",
    "--nproc-per-node=2",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=localhost:0",
]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A run without dropout, whose every third mini-batch is one row: one process has none of its
    own."""
    backbone = tiny_backbone(tmp_path / "bert", "bert")
    config = json.loads((backbone / "config.json").read_text())
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
    (backbone / "config.json").write_text(json.dumps(config))
    data = str(jsonl(tmp_path / "data.jsonl", [*ROWS, *ROWS[:5]]))
    options = [
        "--task",
        "toy",
        "--train",
        data,
        "--dev",
        data,
        "--backbone",
        str(backbone),
        "--dtype",
        "float32",
    ]
    return [
        *options,
        "--bottleneck",
        "4",
        "--batch-size",
        "6",
        "--learning-rate",
        "0.01",
        "--epochs",
    ]


def alone(arguments: list[str], out: Path) -> Adapter:
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return load(out)


def assert_same(found: Adapter, expected: Adapter) -> None:
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-4, rtol=1e-3)
    assert found.spec.training["steps"] == expected.spec.training["steps"]


def test_two_processes(tmp_path: Path, arguments: list[str]) -> None:
    """Two processes train the adapter that one does, and only one of them tells and writes."""
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        *ACCELERATE,
        "-m",
        "training",
        *arguments,
        "6",
        "--run-dir",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(
        load(folder / "adapter.safetensors"),
        alone([*arguments, "6"], tmp_path / "alone.safetensors"),
    )
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("step")] == [
        f"{n}/18" for n in range(1, 19)
    ]
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == [*range(1, 19), 18]
    (started,) = json.loads((folder / "environment.json").read_text())
    assert started["processes"] == 2


def test_ctrl_c_and_resume(tmp_path: Path, arguments: list[str]) -> None:
    """Ctrl-C ends all processes after the same step; one process alone can go on from there."""
    folder = tmp_path / "run"
    run = [*arguments, "40", "--run-dir", str(folder)]
    with subprocess.Popen(
        [sys.executable, "-m", *TORCHRUN, "-m", "training", *run], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        rest, _ = process.communicate(timeout=100)
    stopped = load(folder / "adapter.safetensors").spec.training["steps"]
    assert f"stopped early, after {stopped} of 120 steps; --resume goes on\n" in rest
    result = CliRunner().invoke(app, [*run, "--resume"])
    assert result.exit_code == 0, result.output
    assert_same(
        load(folder / "adapter.safetensors"),
        alone([*arguments, "40"], tmp_path / "alone.safetensors"),
    )


def test_a_refusal(tmp_path: Path, arguments: list[str]) -> None:
    """What two processes refuse is told once, in one sentence."""
    command = [
        sys.executable,
        "-m",
        *TORCHRUN,
        "-m",
        "training",
        *arguments,
        "1",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: device is 'cpu', but there are 2 processes; expected no --device: each is given"
        " its own"
    ]
