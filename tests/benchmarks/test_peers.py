"""The benchmark beside the peers, through its door, at a size that measures nothing and without
what must be installed."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from adapters.backbone import Backbone
from benchmarks.contest import difference, ratios
from benchmarks.http import load
from benchmarks.http.load import Call
from benchmarks.http.server import running, surroundings
from benchmarks.peers import runtimes
from benchmarks.peers.__main__ import main
from benchmarks.peers.processes import SCRIPTS
from benchmarks.stores import random_file


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
    absent = ("adapterhub", "infinity", "onnxruntime", "openvino")
    left_out = [part for name in absent for part in ("--without", name)]
    result = CliRunner().invoke(app, [*arguments, *left_out])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert set(found["texts_per_second"]["mnli, batches of 4"]) == {
        "mixed",
        "mixed int8",
        "bare",
        "copies",
        "peft",
    }
    assert {"service", "pipelines"} <= set(found["texts_per_second"]["over HTTP"])
    assert set(found["ratios"]["sst2, one at a time"]) == {
        "mixed / bare",
        "mixed / copies",
        "mixed / peft",
    }
    assert len(found["greatest_difference_of_answers"]) == 5
    assert "adapterhub" not in found["versions"]
    assert image.read_text().startswith("<?xml")


@pytest.fixture
def contestants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folder is where modules are looked for, as it is for a contestant's process."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_runtimes(tmp_path: Path, bert_folder: Path, bert: Backbone) -> None:
    """The engine alone is measured in float32 and int8, by the processor's time on one core, and
    its int8 answers are held against float32."""
    out = tmp_path / "runtimes.json"
    (tmp_path / "sst2.safetensors").write_bytes(random_file(bert, "sst2", 0))
    options = {
        "--data": labelled(tmp_path / "data"),
        "--backbone": bert_folder,
        "--tasks": 3,
        "--batch": 4,
        "--batches": 1,
        "--repeats": 1,
        "--adapter": tmp_path / "sst2.safetensors",
        "--out": out,
    }
    arguments = [str(part) for option in options.items() for part in option]
    left_out = [part for name in ("onnxruntime", "openvino") for part in ("--without", name)]
    before = os.sched_getaffinity(0)
    result = CliRunner().invoke(runtimes_app(), [*arguments, *left_out])
    assert result.exit_code == 0, result.output
    assert os.sched_getaffinity(0) == before
    found = json.loads(out.read_text())
    assert found["clock"] == "processor"
    workloads = found["milliseconds_a_text"]
    assert set(workloads) == {"one text", "batches of 4, one task", "batches of 4, 3 tasks"}
    assert all(set(group) == {"mixed", "mixed int8"} for group in workloads.values())
    assert all(
        time["median"] > 0
        for group in workloads.values()
        for run in group.values()
        for time in run.values()
    )
    judged = found["on_sst2"]
    assert judged["ours"]["greatest_difference"] == 0
    assert judged["ours"]["same_answer"] == 1
    assert judged["ours int8"]["greatest_difference"] > 0
    assert judged["ours"]["accuracy"] in (0.25, 0.75)


def test_more_cores_than_there_are(bert_folder: Path) -> None:
    """A number of cores that the machine lacks is refused with the number that it has."""
    result = CliRunner().invoke(runtimes_app(), ["--backbone", str(bert_folder), "--cores", "9999"])
    assert result.exit_code == 2
    assert "--cores is 9999; expected 1 to" in result.output


@pytest.mark.usefixtures("contestants")
def test_arrays(bert_folder: Path) -> None:
    """A runtime that takes arrays gets the very rows that transformers' tokeniser pads, texts and
    pairs."""
    arrays, worker = importlib.import_module("arrays"), importlib.import_module("worker")
    long = "a good film " * 200
    for texts in ([["a film"], [long], ["good"]], [["a film", "is good"], [long, "a film"]]):
        found, expected = arrays.Arrays(bert_folder)(texts), worker.Padded(bert_folder)(texts)
        assert set(found) == set(expected)
        assert all((found[name] == expected[name].numpy()).all() for name in found)


def test_copies_over_http(tmp_path: Path) -> None:
    """A text goes to its task's copy, and the labels come back with the softmax of its logits, best
    first."""
    (tmp_path / "known_copies.py").write_text(
        "class Copies:\n"
        "    def __init__(self, model, tasks, dtype):\n"
        "        assert dtype == 'float32' and (model / 'config.json').exists()\n"
        "        self.tasks = tasks\n"
        "    def logits(self, task, texts):\n"
        "        return [[0.0, task - 1.0] for _ in texts]\n"
    )
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"id2label": {"0": "no", "1": "yes"}}))
    command = [sys.executable, str(SCRIPTS / "copies_server.py"), "known", str(model), "3"]
    environment = surroundings({"PYTHONPATH": str(tmp_path)})
    with running([*command, "float32", "{port}"], environment, "/ready") as server:
        answers = load.answers(
            server.url,
            [Call(f"/classify?task={task}", b'{"inputs": "a text"}') for task in (0, 2)],
        )
    assert [[entry["label"] for entry in answer] for answer in answers] == [
        ["no", "yes"],
        ["yes", "no"],
    ]
    assert [answer[0]["score"] for answer in answers] == pytest.approx([0.7311, 0.7311], abs=1e-4)


def test_answers_that_differ() -> None:
    """Contestants whose answers differ are not compared: they do not do the same work."""
    assert difference("them", [[1.0, 2.0]], [[1.0, 2.0]]) == 0
    with pytest.raises(RuntimeError, match="the answers of them differ by 0"):
        difference("them", [[1.0, 2.0]], [[1.0, 2.5]])


def test_ratios_in_int8() -> None:
    """Who computes in int8 is held against our int8, if that was measured."""
    rates = {"mixed": [4.0], "mixed int8": [9.0], "peer": [2.0], "peer int8": [3.0]}
    found = ratios("mixed", rates)
    assert {name: ratio["median"] for name, ratio in found.items()} == {
        "mixed / peer": 2.0,
        "mixed int8 / peer int8": 3.0,
    }
    del rates["mixed int8"]
    assert set(ratios("mixed", rates)) == {"mixed / peer", "mixed / peer int8"}


def runtimes_app() -> typer.Typer:
    app = typer.Typer()
    app.command()(runtimes.main)
    return app


def labelled(folder: Path) -> Path:
    """Data of one text, three times with one label and once with the other."""
    (folder / "sst2").mkdir(parents=True)
    labels = ["positive"] * 3 + ["negative"]
    lines = [json.dumps({"text": "a good film", "label": label}) for label in labels]
    (folder / "sst2" / "dev.jsonl").write_text("\n".join(lines) + "\n")
    return folder
