"""Backend: the engine process's end of the wire to one front end, which is answered here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from dataclasses import astuple
from typing import Any

import structlog

from adapters.text import Tokens
from service.batcher import Outcome
from service.http.answers import at_fault, status_of
from service.http.middleware import App, Message, Scope
from service.predictor import Logits
from service.refusals import Closed, QueueFull, Referred
from service.service import Service
from service.workers.relay import Relayed
from service.workers.wire import Greeting, Wire

log = structlog.get_logger("service")


class Backend:
    """It answers one front end, for as long as that one lives."""

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service
        self._wire = Wire()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._relayed: dict[int, Relayed] = {}

    async def serve(
        self, front_end: socket.socket, greeting: Greeting, ready: Callable[[], None]
    ) -> None:
        """Answer it from now on; `ready` is told once it serves. What it asked is given up when it
        is gone."""
        handlers: dict[str, Callable[..., None]] = {
            "ready": ready,
            "admit": self._admit,
            "run": self._run,
            "leave": self._leave,
            "tokenized": self._service.tokenized,
            "count": self._service.count,
            "relay": self._relay,
            "event": self._event,
            "sent": self._sent,
        }
        await self._wire.attach(front_end, handlers, self._lost)
        self._wire.send("greet", vars(greeting))

    def _admit(self, number: int, task: str, version: str | None) -> None:
        async def admitted() -> None:
            adapter = await self._service.bring(
                task, self._service.store.find(task, version).digest
            )
            self._wire.send("admitted", number, adapter.digest, astuple(adapter.signature))

        self._start(number, self._answered(number, admitted()))

    def _run(self, number: int, groups: list[Any]) -> None:
        async def ran() -> None:
            service, rows = self._service, []
            for task, version, digest, tokens in groups:
                if service.store.find(task, version).digest != digest:
                    raise Referred
                adapter = await service.bring(task, digest)
                rows += [
                    (adapter, Tokens(ids, types, len(ids), mask=mask))
                    for ids, types, mask in tokens
                ]
            self._wire.send("ran", number, *_told(await service.run(rows)))

        self._start(number, self._answered(number, ran()))

    def _relay(self, number: int, request_id: str, scope: Scope) -> None:
        relayed = self._relayed[number] = Relayed(self._wire, number)
        self._start(number, relayed.answer(self._app, request_id, scope))

    def _event(self, number: int, message: Message) -> None:
        if number in self._relayed:  # else answered meanwhile
            self._relayed[number].event(message)

    def _sent(self, number: int) -> None:
        if number in self._relayed:
            self._relayed[number].sent()

    def _leave(self, number: int) -> None:
        if number in self._tasks:  # else answered meanwhile
            self._tasks[number].cancel()

    def _lost(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _answered(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        """Do it, or say why not. Only what a busy service answers is worth a name: all else (the
        task is gone, its file is damaged, a batch failed) this process finds again when it is given
        the whole request, and tells the client."""
        try:
            await work
        except QueueFull as error:
            self._wire.send("failed", number, QueueFull.__name__, error.retry_after)
        except Closed:
            self._wire.send("failed", number, Closed.__name__)
        except Exception as error:
            # it may not happen a second time, and would leave no trace
            if not at_fault(status_of(error)):
                log.warning("a request is answered anew, whole", error=repr(error))
            self._wire.send("failed", number, Referred.__name__)

    def _start(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[number] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda _: self._ended(number))

    def _ended(self, number: int) -> None:
        del self._tasks[number]
        self._relayed.pop(number, None)


def _told(outcomes: list[Outcome[Logits]]) -> tuple[list[Any], list[Any]]:
    """Of each row its logits, its wait and the number of its batch; of each batch what it was."""
    batches = {id(outcome.batch): outcome.batch for outcome in outcomes}
    numbers = {key: number for number, key in enumerate(batches)}
    rows = [(outcome.value, outcome.queued, numbers[id(outcome.batch)]) for outcome in outcomes]
    return rows, [(b.rows, b.tokens, b.tasks, b.started, b.seconds) for b in batches.values()]
