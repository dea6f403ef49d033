"""Windows of a text that is too long for a row: how a request asks for them, and how their logits
become one answer."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from adapters.spec import ProblemType

Aggregate = Literal["mean", "max"]
STRIDE = (
    "Tokens that neighbouring windows share; by default a quarter of those that a window has of the"
    " text."
)
AGGREGATE = "One answer of the windows' logits: their mean, or each label's largest."
TRUNCATED = (
    "truncate is true with a window; expected one of the two, for windows leave nothing to be cut"
)


class Window(BaseModel):
    """Answer a text that is too long for a row by windows of it, each of which counts as an
    input."""

    model_config = ConfigDict(extra="forbid")

    stride: StrictInt | None = Field(None, ge=0, description=STRIDE)
    aggregate: Aggregate = Field("mean", description=AGGREGATE)


def joined(rows: list[list[float]], aggregate: Aggregate, problem_type: ProblemType) -> list[float]:
    """The windows' logits `[W, C]` → one text's `[C]`; those of a single window as they are.

    What softmax makes of logits does not change if all of them grow alike: so the largest are
    sought among a window's log probabilities where labels exclude each other, lest a window win
    them all by such a shift. A mean needs no such care.
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
