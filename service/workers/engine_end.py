"""The engine process's end of the wire to one front end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from service.http.answers import at_fault, status_of
from service.http.middleware import App
from service.refusals import Closed, QueueFull, Referred
from service.service import Service
from service.workers.messages import (
    Admit,
    AdmitResult,
    Cancel,
    Counted,
    Greeting,
    Message,
    Ping,
    Pong,
    Ready,
    Received,
    Refused,
    RelayRequest,
    Run,
    RunResult,
    Sent,
    Tokenized,
)
from service.workers.relay import RelayedRequest, UnreadAnswers
from service.workers.wire import Wire

PING_SECONDS = 1.0
# A garbage collection or a crowded machine takes a front end's event loop a second or two. To kill
# one breaks its clients' connections.
MAX_PINGS_MISSED = 10

log = structlog.get_logger("service")


class EngineEnd:
    """Answers one front end until it ends."""

    def __init__(self, app: App, service: Service, unread: UnreadAnswers) -> None:
        self._app, self._service, self._unread = app, service, unread
        self._wire = Wire()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._relayed: dict[int, RelayedRequest] = {}
        self._ready = asyncio.Event()
        self._ponged = False

    async def serve(
        self, front_end: socket.socket, greeting: Greeting, ready: Callable[[], None]
    ) -> None:
        """Greet the front end and answer it from now on. `ready` is called once it serves."""

        def serves(_: Ready) -> None:
            self._ready.set()
            ready()

        handlers: dict[type[Message], Callable[[Any], None]] = {
            Ready: serves,
            Pong: self._pong,
            Admit: self._admit,
            Run: self._run,
            Cancel: self._cancel,
            Tokenized: lambda message: self._service.tokenized(message.seconds),
            Counted: lambda message: self._service.count(
                message.tasks, message.status, message.seconds
            ),
            RelayRequest: self._relay,
            Received: self._received,
            Sent: self._sent,
        }
        await self._wire.attach(front_end, handlers, self._lost)
        self._wire.send(greeting)

    async def unanswered(self) -> None:
        """Wait until the front end, once it serves, has missed MAX_PINGS_MISSED pings in a row.

        The pings are counted, not the time: if this process was stopped, the answers that came
        meanwhile are still to be read.
        """
        await self._ready.wait()
        missed = 0
        while missed < MAX_PINGS_MISSED:
            self._ponged = False
            self._wire.send(Ping())
            await asyncio.sleep(PING_SECONDS)
            missed = 0 if self._ponged else missed + 1

    def _pong(self, _: Pong) -> None:
        self._ponged = True

    def _admit(self, message: Admit) -> None:
        async def admit() -> AdmitResult:
            await self._service.see()
            service = self._service
            choice = service.rollouts.choose(message.task, message.version, message.place)
            adapter = await service.bring(message.task, choice)
            return AdmitResult(
                *(message.call, adapter.digest, adapter.signature), adapter.role, adapter.places
            )

        self._start(message.call, self._answer(message.call, admit()))

    def _run(self, message: Run) -> None:
        async def run() -> RunResult:
            rows = []
            await self._service.see()
            for group in message.groups:
                choice = self._service.rollouts.choose(group.task, group.version, group.place)
                # without a place: the front end does not know yet that the task has a canary
                if choice.digest != group.digest or (choice.places and group.place is None):
                    raise Referred
                adapter = await self._service.bring(group.task, choice)
                rows += [(adapter, tokens) for tokens in group.tokens()]
            return RunResult.of(message.call, await self._service.run(rows))

        self._start(message.call, self._answer(message.call, run()))

    def _relay(self, message: RelayRequest) -> None:
        relayed = RelayedRequest(self._wire, message.call, self._unread)
        self._relayed[message.call] = relayed
        self._start(message.call, relayed.answer(self._app, message.request_id, message.scope))

    def _received(self, message: Received) -> None:
        if message.call in self._relayed:  # else the app has returned
            self._relayed[message.call].received(message.message)

    def _sent(self, message: Sent) -> None:
        if message.call in self._relayed:
            self._relayed[message.call].sent()

    def _cancel(self, message: Cancel) -> None:
        if message.call in self._tasks:  # else it was answered before this came
            self._tasks[message.call].cancel()

    def _lost(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _answer(self, call: int, work: Coroutine[Any, Any, AdmitResult | RunResult]) -> None:
        """Send the result, or the refusal. Only what a busy service answers crosses the wire. The
        front end relays the request for everything else (the task is gone, its file is damaged, a
        batch failed): this process then finds the error again, and tells the client."""
        answer: AdmitResult | RunResult | Refused
        try:
            answer = await work
        except (QueueFull, Closed) as error:
            answer = Refused.of(call, error)
        except Exception as error:
            # It may not happen a second time, and would then be seen nowhere.
            if not at_fault(status_of(error)):
                log.warning("a request failed; it is relayed and tried again", error=repr(error))
            answer = Refused.of(call, Referred())
        self._wire.send(answer)

    def _start(self, call: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[call] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda _: self._ended(call))

    def _ended(self, call: int) -> None:
        del self._tasks[call]
        self._relayed.pop(call, None)
