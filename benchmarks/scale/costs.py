"""What a replica's work costs: how long a batch takes, and an adapter's way from each tier to the
next. Measured by `benchmarks.scale.measure`, read by the simulation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = Path("benchmarks/results/scale_costs.json")


@dataclass(frozen=True, slots=True)
class Costs:
    """All in seconds. A batch takes `batch`, and `token`, `row`, `adapter` and `load` for each of
    its tokens, rows, distinct adapters, and adapters that have no slot yet (memory → device).

    `disk` is disk → memory, `bucket` is bucket → disk and memory; `poll` a look for a change that
    is not there, `commit` the conditional write of one.
    """

    batch: float
    token: float
    row: float
    adapter: float
    load: float
    disk: float
    bucket: float
    poll: float
    commit: float

    def seconds(self, tokens: float, rows: float, adapters: float, loads: float) -> float:
        """Of one batch."""
        return (
            self.batch
            + self.token * tokens
            + self.row * rows
            + self.adapter * adapters
            + self.load * loads
        )

    def to_json(self) -> dict[str, float]:
        """Rounded to 10 ns."""
        return {name: round(value, 8) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Measured:
    """The file's content: costs, the tokens of each text that was used, the bytes of an adapter's
    file, and how it was measured."""

    costs: Costs
    tokens: list[int]
    adapter_bytes: int
    hardware: str


def read(file: Path) -> Measured:
    """What was measured. Raises ValueError with a sentence if the file is not there or another
    one's."""
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        costs = Costs(**found["costs_seconds"])
        return Measured(costs, found["tokens"], found["adapter_bytes"], found["hardware"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the costs in {file} cannot be read: {error!r}; expected a file that python -m"
            " benchmarks.scale measure wrote"
        ) from None
