"""Predictor: what a request for predictions needs of the service.

In one process it is `service.service.Service`; in a process that speaks HTTP for an engine in
another one it is `service.workers.remote_predictor`. The routes know this interface alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from adapters.spec import AdapterSpec, ProblemType

if TYPE_CHECKING:  # only their names are needed here; a front end does without their modules
    from adapters.text import Tokens
    from service.batcher import Outcome
    from service.telemetry.tracing import Tracing
    from service.tokenizer import RequestTokenizer

Logits = list[float]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a request and its answer depend on of an adapter's spec. `temperatures` are none, one
    or one for each label; `thresholds` are (accuracy, least confidence), ascending."""

    task: str
    labels: tuple[str, ...]
    problem_type: ProblemType
    text_pair: bool
    max_length: int
    template: str | None
    temperatures: tuple[float, ...] = ()
    thresholds: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, spec: AdapterSpec) -> Signature:
        return cls(
            spec.task,
            spec.labels,
            spec.problem_type,
            spec.text_pair,
            spec.max_length,
            spec.template,
            spec.temperatures or (),
            tuple((point.accuracy, point.threshold) for point in spec.risk_coverage or ()),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Admitted:
    """The adapter that a request was admitted with. `digest` is the sha256 of its file; `handle` is
    the predictor's own, which it needs to run rows with it."""

    signature: Signature
    digest: str
    handle: object

    @property
    def version(self) -> str:
        """The first 12 hex digits of the digest: how a version is shown."""
        return self.digest[:12]


class Predictor(Protocol):
    """`max_inputs` is how many rows one request may have; `auto_truncate` whether texts that are
    too long are cut where a request says nothing; `dtype` the backbone's on the device; `tracing`
    None where it is off."""

    @property
    def tokenizer(self) -> RequestTokenizer: ...
    @property
    def max_inputs(self) -> int: ...
    @property
    def auto_truncate(self) -> bool: ...
    @property
    def dtype(self) -> str: ...
    @property
    def tracing(self) -> Tracing | None: ...

    def tasks(self) -> list[str]:
        """The names of all tasks, sorted, as far as this process knows them."""

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Raises UnknownTask for a task that does not exist."""

    async def admit(self, task: str, version: str | None) -> Admitted:
        """The adapter of a version, by default of the active one. Raises as `Store.get`, and
        BackboneMismatch."""

    async def run(self, rows: Sequence[tuple[Admitted, Tokens]]) -> list[Outcome[Logits]]:
        """Queue a request's rows together and wait for their logits. Raises QueueFull, Closed, or
        what the device raised."""

    def tokenized(self, seconds: float) -> None:
        """Time one request's tokenisation."""

    def count(self, tasks: Sequence[str], status: int, seconds: float) -> None:
        """Count and time a request for predictions, by the status of its answer."""
