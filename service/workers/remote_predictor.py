"""Remote: the predictor of a front end. The engine process admits its requests, runs their rows
and keeps their count."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from adapters.text import Tokens
from service.batcher import BatchReport, Outcome
from service.http.answers import at_fault
from service.predictor import Admitted, Logits, Signature
from service.refusals import Closed, QueueFull, Referred
from service.tokenizer import RequestTokenizer
from service.workers.wire import Wire

KEPT = 4096  # what is remembered of tasks: each takes a kilobyte or so, and is asked for again

FAILURES: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (QueueFull, Closed, Referred)
}


class Remote:
    """A `service.predictor.Predictor` at the end of a wire.

    The handle of what it admits is the version that was asked for, None for the active one. What it
    remembers of a task may be old: rows are sent with the digest that they are meant for,
    and the engine process runs them if that is still the one. If not, or where anything else is not
    as it should be, `run` and `admit` raise Referred: the request is then the engine process's,
    whole, which has the one truth.
    """

    tracing = None

    def __init__(
        self,
        wire: Wire,
        numbers: Iterator[int],
        *,
        tokenizer: RequestTokenizer,
        max_inputs: int,
        auto_truncate: bool,
        dtype: str,
    ) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self.max_inputs, self.auto_truncate = max_inputs, auto_truncate
        self._wire, self._numbers = wire, numbers
        self._remembered: OrderedDict[tuple[str, object], Admitted] = OrderedDict()
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    def tasks(self) -> list[str]:
        """None: a refusal that names tasks is the engine process's."""
        return []

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Nothing: which tasks exist is seen when they are admitted."""

    async def admit(self, task: str, version: str | None) -> Admitted:
        """As remembered, or else as the engine process says. Raises Referred or Closed."""
        key = (task, version)
        found = self._remembered.get(key)
        if found is None:
            digest, (name, labels, *rest) = await self._ask("admit", task, version)
            found = self._remembered[key] = Admitted(
                Signature(name, tuple(labels), *rest), digest, version
            )
            if len(self._remembered) > KEPT:
                self._remembered.popitem(last=False)
        else:
            self._remembered.move_to_end(key)
        return found

    async def run(self, rows: Sequence[tuple[Admitted, Tokens]]) -> list[Outcome[Logits]]:
        """The rows of one request. Raises QueueFull, Closed or Referred."""
        groups = [
            [
                adapter.signature.task,
                adapter.handle,
                adapter.digest,
                [[row.ids, row.types, row.mask] for _, row in group],
            ]
            for adapter, group in groupby(rows, key=lambda pair: pair[0])
        ]
        try:
            answers, batches = await self._ask("run", groups)
        except Referred:
            for adapter, _ in rows:
                self._remembered.pop((adapter.signature.task, adapter.handle), None)
            raise
        reports = [
            BatchReport(n, tokens, tasks, started, seconds, [])
            for n, tokens, tasks, started, seconds in batches
        ]
        return [Outcome(logits, queued, reports[batch]) for logits, queued, batch in answers]

    def tokenized(self, seconds: float) -> None:
        """Time one request's tokenisation."""
        self._wire.send("tokenized", seconds)

    def count(self, tasks: Sequence[str], status: int, seconds: float) -> None:
        """Count and time a request; but not one that is referred: the engine process counts what it
        answers."""
        if not at_fault(status):
            self._wire.send("count", tasks, status, seconds)

    def answered(self, number: int, *answer: Any) -> None:
        """The engine process has admitted, or run, what was asked."""
        for waiting in self._taken(number):
            waiting.set_result(answer)

    def failed(self, number: int, name: str) -> None:
        """It has not."""
        for waiting in self._taken(number):
            waiting.set_exception(FAILURES[name]())

    def lost(self) -> None:
        """The engine process is gone."""
        for number in list(self._waiting):
            self.failed(number, Closed.__name__)

    def _taken(self, number: int) -> Iterator[asyncio.Future[Any]]:
        """Whoever waits for an answer: nobody, if that client has left."""
        waiting = self._waiting.pop(number, None)
        if waiting is not None and not waiting.done():
            yield waiting

    async def _ask(self, kind: str, *what: Any) -> Any:
        if not self._wire.open:
            raise Closed
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._wire.send(kind, number, *what)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._waiting.pop(number, None) is not None:
                self._wire.send("leave", number)
            raise
