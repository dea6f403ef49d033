"""Predictor: what a request for predictions needs of the service.

In one process it is `service.service.Service`; in a process that speaks HTTP for an engine in
another one it is `service.workers.remote_predictor`. The routes know this interface alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from adapters.spec import AdapterSpec, ProblemType

if TYPE_CHECKING:  # only their names are needed here; a front end does without their modules
    from adapters.text import Tokens
    from service.batcher import Outcome
    from service.telemetry.tracing import Tracing
    from service.tokenizer import RequestTokenizer

Logits = list[float]
Role = Literal["active", "canary", "shadow"]


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
    the predictor's own, which it needs to run rows with it.

    `role` is the version's part in a split of its task's traffic: None where there is no split, or
    the request names the version. `places` is how many places the split's canary takes.
    """

    signature: Signature
    digest: str
    handle: object
    role: Role | None = None
    places: int = 0

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

    async def route(self, adapter: Admitted, key: bytes, /) -> Admitted:
        """The version that answers a request with this key: the canary, if it has the key's place;
        else the adapter that was admitted. Raises as `admit`."""

    async def fall_back(self, canary: Admitted, /) -> Admitted:
        """The active version, for a request that its canary cannot answer. Raises as `admit`."""

    def failed(self, canary: Admitted, error: Exception, /) -> None:
        """Count a request that a canary could not answer, and the active version could."""

    async def run(self, rows: Sequence[tuple[Admitted, Tokens]]) -> list[Outcome[Logits]]:
        """Queue a request's rows together and wait for their logits. Raises QueueFull, Closed, or
        what the device raised."""

    def tokenized(self, seconds: float) -> None:
        """Time one request's tokenisation."""

    def count(self, tasks: Sequence[str], status: int, seconds: float) -> None:
        """Count and time a request for predictions, by the status of its answer."""
