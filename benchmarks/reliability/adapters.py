"""Adapters whose versions can be told apart: what each must answer comes from the reference model,
and not from the service."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from adapters.spec import AdapterSpec
from adapters.text import TextInput
from tests.tiny import TASKS, WORDS, random_adapter, reference_logits, tiny_backbone

TINY = "tiny"
TOLERANCE = 2e-4  # of a score; for one of a regression, times its size
APART = 20 * TOLERANCE  # by which two versions differ at least, on each text
CANDIDATES = 64

Scores = dict[str, float]


@dataclass(frozen=True)
class Version:
    """One version of a task: its file, and what it answers to each of the task's texts."""

    adapter: Adapter
    data: bytes
    expected: list[Scores]

    @property
    def digest(self) -> str:
        return self.adapter.digest

    @property
    def short(self) -> str:
        return self.adapter.version


@dataclass(frozen=True)
class Task:
    """A task, its versions, and the inputs on which all of them differ."""

    name: str
    versions: list[Version]
    inputs: list[Any]  # as a request has them


def backbone_of(name: str, folder: Path) -> tuple[str, Backbone]:
    """What ADAMIX_BACKBONE must be, and the backbone; `tiny` is made in `folder`: two layers of 32,
    so that what is tried is all but the arithmetic."""
    if name == TINY:
        name = str(tiny_backbone(folder / TINY, "bert"))
    return name, backbones.load(name)


def tasks(backbone: Backbone, versions: int, names: Sequence[str] = tuple(TASKS)) -> list[Task]:
    """A task of each kind: one text or two, labels or a number, one label or several. A name beyond
    those of TASKS, such as `sst2-1`, is of the kind before its hyphen."""
    return [task(backbone, name, versions) for name in names]


def task(backbone: Backbone, name: str, versions: int) -> Task:
    """One task with so many versions."""
    options = TASKS[name.partition("-")[0]]
    made = [random_adapter(backbone, name, seed=seed, **options) for seed in range(versions)]
    candidates = texts(bool(options.get("text_pair")))
    logits = [reference_logits(backbone, spec, tensors, candidates) for spec, tensors, _ in made]
    answers = [
        [scores(spec, row) for row in rows] for (spec, _, _), rows in zip(made, logits, strict=True)
    ]
    chosen = [
        i
        for i in range(len(candidates))
        if all(
            not agree(answers[a][i], answers[b][i], APART)
            for a in range(versions)
            for b in range(a)
        )
    ]
    if len(chosen) < 4:
        raise RuntimeError(f"the versions of {name} differ on {len(chosen)} texts; expected 4")
    built = [
        Version(parse(data), data, [answer[i] for i in chosen])
        for (_, _, data), answer in zip(made, answers, strict=True)
    ]
    inputs = [as_input(candidates[i]) for i in chosen]
    return Task(name, built, inputs)


def texts(pair: bool) -> list[TextInput]:
    """Texts of one to twenty words, or pairs of them; the same for all tasks."""
    chance = random.Random(0)

    def one() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 20)))

    return [(one(), one()) if pair else (one(),) for _ in range(CANDIDATES)]


def as_input(text: TextInput) -> Any:
    """As a request has it."""
    return text[0] if len(text) == 1 else {"text": text[0], "text_pair": text[1]}


def scores(spec: AdapterSpec, logits: torch.Tensor) -> Scores:
    """What the service must answer to logits `[C]`, by docs/api.md."""
    functions = {
        "single_label_classification": lambda row: row.softmax(-1),
        "multi_label_classification": torch.sigmoid,
        "regression": lambda row: row,
    }
    values = functions[spec.problem_type](logits.double()).tolist()
    return dict(zip(spec.labels, values, strict=True))


def agree(one: Scores, other: Scores, tolerance: float = TOLERANCE) -> bool:
    """Whether two answers are the same."""
    return one.keys() == other.keys() and all(
        abs(one[label] - other[label]) <= tolerance * max(1.0, abs(one[label])) for label in one
    )


def answered(entries: Any) -> Scores:
    """The scores of one input's answer."""
    return {entry["label"]: entry["score"] for entry in entries}


def body(inputs: Any) -> bytes:
    """A /predict request's body."""
    return json.dumps({"inputs": inputs}).encode()


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for a run's stores, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="adamix-reliability-")
