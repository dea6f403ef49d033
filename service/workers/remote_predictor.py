"""The predictor of a front end: the engine process admits its requests, runs their rows and keeps
the metrics."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import cast

from adapters.text import Tokens
from adapters.traffic import place_of
from service.batcher import Outcome
from service.http.answers import at_fault
from service.predictor import Admitted, Logits
from service.refusals import Closed, Referred
from service.tokenizer import RequestTokenizer
from service.workers.messages import (
    Admit,
    AdmitResult,
    Cancel,
    Counted,
    Refused,
    RowGroup,
    Run,
    RunResult,
    Tokenized,
)
from service.workers.wire import Wire

KEPT = 4096  # adapters remembered; each takes a kilobyte or so

Answer = AdmitResult | RunResult


@dataclass(frozen=True, slots=True)
class _Asked:
    """The handle of an admitted adapter: the version that the client asked for, None for any; and
    the place of its key, if the task has a canary."""

    version: str | None
    place: int | None = None


class RemotePredictor:
    """A `service.predictor.Predictor` at the other end of a wire.

    What is remembered of a task may be out of date. Rows are therefore sent with the digest that
    they were made for, and the engine process runs them only if that is still the version asked
    for. If not, or if anything else is wrong, `admit` and `run` raise Referred, and the front end
    relays the whole request.
    """

    tracing = None

    def __init__(
        self,
        wire: Wire,
        calls: Iterator[int],
        *,
        tokenizer: RequestTokenizer,
        max_inputs: int,
        auto_truncate: bool,
        dtype: str,
    ) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self.max_inputs, self.auto_truncate = max_inputs, auto_truncate
        self._wire, self._calls = wire, calls
        # by task, version asked for, and whether it is the canary
        self._remembered: OrderedDict[tuple[str, str | None, bool], Admitted] = OrderedDict()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    def tasks(self) -> list[str]:
        """None: only refusals name tasks, and the engine process answers those."""
        return []

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Nothing: `admit` finds out which tasks exist."""

    async def admit(self, task: str, version: str | None) -> Admitted:
        """The adapter as remembered, or else as the engine process says. Raises QueueFull, Closed
        or Referred."""
        return await self._admit(task, _Asked(version), canary=False)

    async def route(self, adapter: Admitted, key: bytes) -> Admitted:
        """The adapter, or the canary if that has the key's place. Raises as `admit`."""
        task = adapter.signature.task
        place = place_of(task, key)
        asked = _Asked(None, place)
        if place < adapter.places:
            adapter = await self._admit(task, asked, canary=True)
        return replace(adapter, handle=asked)

    async def fall_back(self, _canary: Admitted) -> Admitted:
        """Raises Referred: the engine process gets the request whole, finds the canary's failure
        again, and counts it."""
        raise Referred

    def failed(self, _canary: Admitted, _error: Exception) -> None:
        """Nothing: see `fall_back`."""

    async def run(self, rows: Sequence[tuple[Admitted, Tokens]]) -> list[Outcome[Logits]]:
        """Run the rows of one request. Raises QueueFull, Closed or Referred."""
        groups = [
            RowGroup.of(
                adapter, _asked(adapter).version, [row for _, row in group], _asked(adapter).place
            )
            for adapter, group in groupby(rows, key=lambda pair: pair[0])
        ]
        call = next(self._calls)
        try:
            result = cast("RunResult", await self._answer(Run(call, groups)))
        except Referred:
            for adapter, _ in groupby(adapter for adapter, _ in rows):
                for canary in (False, True):
                    key = (adapter.signature.task, _asked(adapter).version, canary)
                    self._remembered.pop(key, None)
            raise
        return result.outcomes()

    def tokenized(self, seconds: float) -> None:
        """Time one request's tokenisation."""
        self._wire.send(Tokenized(seconds))

    def count(self, tasks: Sequence[str], status: int, seconds: float) -> None:
        """Count and time a request. One that is relayed is left out: the engine process counts
        it."""
        if not at_fault(status):
            self._wire.send(Counted(list(tasks), status, seconds))

    def answered(self, message: Answer) -> None:
        """Handle the engine process's answer."""
        waiting = self._waiting.pop(message.call, None)
        if waiting is not None and not waiting.done():  # else the client has left
            waiting.set_result(message)

    def refused(self, message: Refused) -> None:
        """Handle the engine process's refusal."""
        waiting = self._waiting.pop(message.call, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(message.error())

    def lost(self) -> None:
        """The engine process has ended."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Closed())
        self._waiting.clear()

    async def _admit(self, task: str, asked: _Asked, *, canary: bool) -> Admitted:
        key = (task, asked.version, canary)
        adapter = self._remembered.get(key)
        if adapter is not None:
            self._remembered.move_to_end(key)
            return adapter
        question = Admit(next(self._calls), task, asked.version, asked.place)
        found = cast("AdmitResult", await self._answer(question))
        adapter = Admitted(found.signature, found.digest, asked, found.role, found.places)
        self._remembered[key] = adapter
        if len(self._remembered) > KEPT:
            self._remembered.popitem(last=False)
        return adapter

    async def _answer(self, question: Admit | Run) -> Answer:
        if not self._wire.open:
            raise Closed
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[question.call] = answer
        self._wire.send(question)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._waiting.pop(question.call, None) is not None:
                self._wire.send(Cancel(question.call))
            raise


def _asked(adapter: Admitted) -> _Asked:
    return cast("_Asked", adapter.handle)
