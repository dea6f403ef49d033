"""One run as one line of JSON: what was trained how on what, and what it scored."""

from __future__ import annotations

import dataclasses
from typing import Any

from training.config import Recipe
from training.hardware import hardware
from training.one_run import Measured


def record(
    task: str, metric: str, recipe: Recipe, measured: Measured, dev_rows: int, backbone: str
) -> dict[str, Any]:
    """`score` is that of `metric`, on `dev_rows` rows; `seconds` are those of the training loop."""
    return {
        "task": task,
        "method": recipe.method,
        "evaluate": recipe.evaluate,
        "seed": recipe.seed,
        "score": measured.scores[metric],
        "metric": metric,
        "metrics": measured.scores,
        "rows": measured.rows,
        "dev_rows": dev_rows,
        "few_shot": recipe.few_shot,
        "parameters": measured.parameters,
        "seconds": round(measured.done.seconds, 3),
        "hardware": hardware(measured.model.encoder.device),
        "backbone": backbone,
        "recipe": dataclasses.asdict(recipe),
    }
