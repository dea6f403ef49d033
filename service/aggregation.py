"""How the logits of a long text's windows become the logits of the text."""

from __future__ import annotations

import math
from typing import Literal

from adapters.spec import ProblemType

Aggregate = Literal["mean", "max"]


def aggregated(
    rows: list[list[float]], aggregate: Aggregate, problem_type: ProblemType
) -> list[float]:
    """The windows' logits `[W, C]` → the text's `[C]`; those of a single window as they are.

    Softmax does not change if the same number is added to all logits of a row. So where labels
    exclude each other, the maximum is taken of each window's log probabilities: else a window could
    win every label by such a shift. A mean does not need this.
    """
    if len(rows) == 1:
        return rows[0]
    if aggregate == "mean":
        return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    if problem_type == "single_label_classification":
        rows = [_log_softmax(row) for row in rows]
    return [max(column) for column in zip(*rows, strict=True)]


def _log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = top + math.log(math.fsum(math.exp(value - top) for value in row))
    return [value - total for value in row]
