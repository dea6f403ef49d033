"""A warm start: training that begins at another task's adapter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, load, parse
from tests.tiny import random_adapter, tiny_backbone
from tests.training.test_training import QUICK, SINGLE
from tests.training.test_training_cli import ROWS, arguments, jsonl
from training.__main__ import app
from training.errors import TrainingError
from training.one_run import train
from training.warm_start import read

STILL = dataclasses.replace(QUICK, learning_rate=1e-9, epochs=1, dtype="float32")


def another(backbone: Backbone, labels: list[str], **options: Any) -> Adapter:
    return parse(
        random_adapter(
            backbone, "another", labels, bottleneck=QUICK.bottleneck, dtype=torch.float32, **options
        )[2]
    )


@pytest.mark.parametrize("method", ["adamix", "adapter"])
def test_it_begins_where_the_other_ended(bert: Backbone, method: str) -> None:
    """Hardly trained, all experts merge to the other task's adapter, and the same labels keep its
    head."""
    start = another(bert, list(SINGLE.labels))
    trained = train(
        "toy", bert, SINGLE, SINGLE, dataclasses.replace(STILL, method=method), warm_start=start
    )
    assert trained.tensors.keys() == start.tensors.keys()
    for tensor, found in trained.tensors.items():
        torch.testing.assert_close(found, start.tensors[tensor], rtol=0, atol=1e-6)


def test_other_labels_have_a_head_of_their_own(bert: Backbone) -> None:
    """A task with other labels takes the adapter and the head's dense layer, and begins its output
    layer anew."""
    start = another(bert, ["x", "y", "z"], dense=True)
    trained = train(
        "toy", bert, SINGLE, SINGLE, dataclasses.replace(STILL, dense_head=True), warm_start=start
    )
    for tensor in ("down.weight", "up.bias", "head.dense.weight"):
        torch.testing.assert_close(
            trained.tensors[tensor], start.tensors[tensor], rtol=0, atol=1e-6
        )
    assert len(trained.tensors["head.out.bias"]) == len(SINGLE.labels)


def test_what_does_not_fit(bert: Backbone, tmp_path: Path) -> None:
    """An adapter of other sizes or of another backbone, a method without adapters and a file that
    is none are refused."""
    wide = parse(random_adapter(bert, "wide", ["a", "b"], bottleneck=QUICK.bottleneck + 1)[2])
    with pytest.raises(
        TrainingError,
        match=f"--init wide@{wide.version} has bottleneck {QUICK.bottleneck + 1}; expected",
    ):
        train("toy", bert, SINGLE, SINGLE, STILL, warm_start=wide)
    roberta = backbones.load(str(tiny_backbone(tmp_path / "roberta", "roberta")))
    with pytest.raises(TrainingError, match="was made for backbone"):
        train("toy", bert, SINGLE, SINGLE, STILL, warm_start=another(roberta, ["a", "b"]))
    with pytest.raises(
        TrainingError,
        match="init is 'a@1', but method is 'full'; expected adamix, adapter, adapter-rdrop or",
    ):
        dataclasses.replace(STILL, method="full", init="a@1")
    with pytest.raises(TrainingError, match="cannot be read: No such file"):
        read(tmp_path / "none.safetensors")
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    with pytest.raises(
        TrainingError, match=r"none.safetensors: the file has 7 bytes; expected a safetensors file"
    ):
        read(tmp_path / "none.safetensors")


def test_the_command(tmp_path: Path, bert_folder: Path) -> None:
    """`--init` takes a file that an earlier run wrote; the new one's recipe names its task and
    version."""
    data = jsonl(tmp_path / "data.jsonl", ROWS)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    for command in (
        arguments(data, first, bert_folder),
        arguments(data, second, bert_folder, "--init", str(first)),
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert load(second).spec.training["recipe"]["init"] == f"toy@{load(first).version}"
