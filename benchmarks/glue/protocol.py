"""What is compared with what, on which rows, with which settings: the protocol of docs/results.md.

It was written down before the first cell was run. A stage is a block of cells; the order of the
stages is the order in which they are run, so that whatever is finished says as much as it can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.config import Recipe
from training.tasks import TASKS as KNOWN

# Cheapest first; rte is left out: this backbone stays at chance on it without MNLI.
TASKS = ("sst2", "mpqa", "cola", "stsb", "subj", "mrpc")
SEARCH_TASKS = ("sst2", "mpqa", "cola")
SEEDS = (0, 1, 2, 3, 4, 5)  # of five, no exact sign flip can reach p < 0.05
DRAWS = tuple(range(20))  # of the few-shot runs

COMMON = Recipe(
    epochs=1,
    learning_rate=1e-3,
    bottleneck=16,
    experts=4,
    batch_size=8,
    dense_head=True,
    max_length=128,
    calibrate="none",
)
CORRECTED: dict[str, Any] = {"routing": "rows", "second_pass": "mean", "task_loss": "both"}
# What is compared: a method, or AdaMix with one thing changed.
METHODS: dict[str, dict[str, Any]] = {
    "adamix": {"method": "adamix", **CORRECTED},
    "adapter-rdrop": {"method": "adapter-rdrop"},
    "adapter": {"method": "adapter"},
    "lora": {"method": "lora"},
    "full": {"method": "full"},
    "head": {"method": "head"},
    "adamix-paper": {"method": "adamix"},
    "adamix-batch-routing": {"method": "adamix", **CORRECTED, "routing": "batch"},
    "adamix-random-second-pass": {"method": "adamix", **CORRECTED, "second_pass": "random"},
    "adamix-first-task-loss": {"method": "adamix", **CORRECTED, "task_loss": "first"},
    "adamix-no-consistency": {"method": "adamix", **CORRECTED, "consistency_weight": 0.0},
    "adamix-no-sharing": {"method": "adamix", **CORRECTED, "share_up": False},
    "adamix-2-experts": {"method": "adamix", **CORRECTED, "experts": 2},
    "adamix-8-experts": {"method": "adamix", **CORRECTED, "experts": 8},
    "adamix-bottleneck-8": {"method": "adamix", **CORRECTED, "bottleneck": 8},
    "adamix-bottleneck-32": {"method": "adamix", **CORRECTED, "bottleneck": 32},
}
COMPARED = ("adamix", "adapter-rdrop", "adapter", "lora", "full", "head")
ABLATIONS = tuple(name for name in METHODS if name not in COMPARED)
# One expert is the R-Drop adapter, so it is among the compared.

# Three learning rates each, spread around what earlier searches on held-out training rows found.
RATES: dict[str, tuple[float, float, float]] = {
    "adamix": (1e-3, 2e-3, 4e-3),
    "adapter-rdrop": (1e-3, 2e-3, 4e-3),
    "adapter": (1e-3, 2e-3, 4e-3),
    "lora": (5e-4, 1e-3, 2e-3),
    "full": (2e-5, 4e-5, 8e-5),
    "head": (1e-3, 2e-3, 4e-3),
}
SEARCH_ROWS, HELD_OUT, SEARCH_PASSES = 1000, 500, 4
# Forward passes over each training row, the same for every method: a method whose step makes two
# passes has half the epochs. By training rows; None is all that there are.
PASSES: dict[int | None, int] = {30: 60, 100: 20, 300: 10, 1000: 6, None: 6}
HEAD_FIRST = 100  # up to so many rows, every method begins at a head fitted by logistic regression


@dataclass(frozen=True)
class Cell:
    """One run. `rows` are the training rows drawn by the seed, None for all; `rate` is that of a
    search cell, None for the one that the search has found."""

    task: str
    method: str
    rows: int | None
    seed: int
    rate: float | None = None

    @property
    def key(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "method": self.method,
            "drawn": self.rows,
            "seed": self.seed,
            "search": self.rate,
        }

    def recipe(self, rate: float) -> Recipe:
        """How it is trained, at a learning rate."""
        passes = PASSES[self.rows] if self.rate is None else SEARCH_PASSES
        recipe = dataclasses.replace(
            COMMON,
            **METHODS[self.method],
            learning_rate=rate,
            positive=KNOWN[self.task].positive,
            seed=self.seed,
            precision="float32",
            head_first=self.rows is not None and self.rows <= HEAD_FIRST,
        )
        return dataclasses.replace(recipe, epochs=passes // recipe.passes)


@dataclass(frozen=True)
class Stage:
    """A block of cells, seed by seed."""

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    rows: int | None
    seeds: tuple[int, ...]
    search: bool = False

    def cells(self) -> Iterator[Cell]:
        for seed in self.seeds:
            for task in self.tasks:
                for method in self.methods:
                    rates: tuple[float | None, ...] = RATES[method] if self.search else (None,)
                    for rate in rates:
                        yield Cell(task, method, self.rows, seed, rate)


FIRST, SECOND = ("adamix", "adapter-rdrop", "adapter"), ("lora", "full", "head")
STAGES = (
    Stage("search-first", SEARCH_TASKS, FIRST, SEARCH_ROWS, (0,), search=True),
    Stage("1000-first", ("sst2", "mpqa", "cola"), FIRST, 1000, SEEDS),
    Stage("1000-paper", ("sst2", "mpqa", "cola"), ("adamix-paper",), 1000, SEEDS[:3]),
    Stage("1000-first-stsb", ("stsb",), FIRST, 1000, SEEDS),
    Stage("search-second", SEARCH_TASKS, SECOND, SEARCH_ROWS, (0,), search=True),
    Stage("1000-second", ("sst2", "mpqa", "cola", "stsb"), SECOND, 1000, SEEDS),
    Stage("100", ("sst2", "mpqa", "cola", "stsb"), COMPARED, 100, SEEDS),
    Stage("1000-ablations", ("sst2", "mpqa", "cola"), ABLATIONS, 1000, SEEDS[:3]),
    Stage("1000-long-texts", ("subj", "mrpc"), COMPARED, 1000, SEEDS),
    Stage("300", TASKS, COMPARED, 300, SEEDS),
    Stage("100-long-texts", ("subj", "mrpc"), COMPARED, 100, SEEDS),
    Stage("30", TASKS, COMPARED, 30, DRAWS),
    Stage("all", TASKS, COMPARED, None, SEEDS),
)
