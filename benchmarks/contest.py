"""What contestants share: the material they load, the texts, whose turn it is, and figures held
side by side."""

from __future__ import annotations

import copy
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import transformers

from adapters import backbone as backbones
from benchmarks import stores

TOLERANCE = 1e-3
INT8 = " int8"  # names of what computes in int8 end so
Rows = list[list[float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Materials:
    """A full model's folder, and a store of adapters on the same backbone."""

    backbone: str
    model: Path
    store: Path
    tasks: list[str]


def prepare(folder: Path, name: str, tasks: int) -> Materials:
    backbone = backbones.load(name)
    torch.manual_seed(0)
    config = copy.deepcopy(backbone.config)
    # Infinity takes a model without named labels for a reranker
    config.id2label = {0: "no", 1: "yes"}
    model = transformers.BertForSequenceClassification(config)
    model.bert.load_state_dict(backbone.encoder.state_dict())
    model.save_pretrained(folder / "model")
    backbone.tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "model" / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": backbone.max_length})
    )
    return Materials(
        name, folder / "model", folder / "store", stores.fill(folder / "store", backbone, tasks)
    )


def read_rows(data: Path | None, name: str, rng: random.Random) -> list[list[str]]:
    """Texts, or pairs of them."""
    if data is None:
        words = [
            "the",
            "film",
            "is",
            "a",
            "good",
            "and",
            "moving",
            "story",
            "of",
            "people",
            "in",
            "love",
            "with",
            "life",
        ]
        parts = 2 if name == "mnli" else 1
        return [
            [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(parts)]
            for _ in range(200)
        ]
    lines = (data / name / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [[row[part] for part in ("text", "text_pair") if part in row] for row in rows]


def turns(contestants: Sequence[T], repeat: int) -> list[T]:
    """Everybody's turn, another one first in each repeat."""
    first = repeat % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def difference(what: str, one: Rows, other: Rows) -> float:
    """The greatest one between two sets of answers. Raises RuntimeError if it is too great: they do
    not do the same work."""
    found = greatest(one, other)
    if not found <= TOLERANCE:
        raise RuntimeError(
            f"the answers of {what} differ by {found:.3g}; expected at most {TOLERANCE}"
        )
    return found


def greatest(one: Rows, other: Rows) -> float:
    """The greatest difference between two sets of answers."""
    return max(
        abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def ratios(mine: str, rates: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """One's rate over each other's, within each repeat; over one in int8 its own in int8, if it has
    one."""
    found = {}
    for name, other in rates.items():
        if name.removesuffix(INT8) != mine:
            own = mine + INT8 if name.endswith(INT8) and mine + INT8 in rates else mine
            quotients = [a / b for a, b in zip(rates[own], other, strict=True)]
            found[f"{own} / {name}"] = summary(quotients)
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    figures = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}
