"""Desk: what a request for predictions needs of the service, be the engine in this process or in
another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:  # all that it needs of them is their names
    from adapters.spec import ProblemType
    from adapters.text import Tokens
    from service.batcher import Outcome
    from service.http.auth import Guard
    from service.telemetry.tracing import Tracing
    from service.tokenizer import RequestTokenizer

Logits = list[float]


class Signature(Protocol):
    """What of an adapter's spec a request and its answer depend on."""

    @property
    def task(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def problem_type(self) -> ProblemType: ...
    @property
    def text_pair(self) -> bool: ...
    @property
    def max_length(self) -> int: ...
    @property
    def template(self) -> str | None: ...


class Admitted(Protocol):
    """The adapter that a request is admitted with."""

    @property
    def spec(self) -> Signature: ...
    @property
    def version(self) -> str: ...  # as it is shown


A = TypeVar("A", bound=Admitted)


class Desk(Protocol[A]):
    """`dtype` is the backbone's on the device."""

    @property
    def guard(self) -> Guard: ...
    @property
    def tokenizer(self) -> RequestTokenizer: ...
    @property
    def max_inputs(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def tracing(self) -> Tracing | None: ...

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Raises InvalidRequest where none is named, UnknownTask for one that there is not."""

    async def admit(self, task: str, version: str | None) -> A:
        """The adapter of a version, by default of the active one. Raises as `Store.get`, and
        BackboneMismatch."""

    async def run(self, rows: Sequence[tuple[A, Tokens]]) -> list[Outcome[Logits]]:
        """Queue a request's rows together and wait for their logits. Raises QueueFull, Closed, or
        what the device raised."""

    def tokenized(self, seconds: float) -> None:
        """Time one request's tokenisation."""

    def count(self, tasks: Sequence[str], status: int, seconds: float) -> None:
        """Count and time a request for predictions, by the status of its answer."""
