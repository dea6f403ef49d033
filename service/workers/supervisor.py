"""The supervisor, in the engine process: starts the front ends, replaces those that end or hang,
and stops them all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable

import structlog

from service.http.middleware import App
from service.service import Service
from service.workers.engine_end import MAX_PINGS_MISSED, PING_SECONDS, EngineEnd
from service.workers.listeners import listener_at
from service.workers.messages import Greeting
from service.workers.relay import UnreadAnswers

# Seconds before a front end is replaced. What ended it may end the next one too; or whoever stops
# the service may have stopped the front ends first.
RESTART_SECONDS = 0.5
GRACE_SECONDS = 5  # that a front end may take to stop, beyond its drain time

log = structlog.get_logger("service")


class Supervisor:
    """Front ends that listen at one address, each with a wire of its own to this process."""

    def __init__(
        self,
        app: App,
        service: Service,
        greeting: Greeting,
        place: socket.socket,
        environment: dict[str, str],
    ) -> None:
        """`environment` is the front ends' environment."""
        self._environment = environment
        self._app, self._service, self._greeting, self._place = app, service, greeting, place
        self._unread = UnreadAnswers(greeting.connections.max_unread_bytes)
        self._processes: set[asyncio.subprocess.Process] = set()
        self._unready: set[int] = set()
        self._stopping = asyncio.Event()
        self._failed = False

    async def serve(self, count: int, listening: Callable[[], None]) -> bool:
        """Serve with `count` front ends until a signal. `listening` is called once all of them
        serve. False if one could not start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        self._unready = set(range(count))
        async with self._service.running():
            kept = [asyncio.create_task(self._keep(index, listening)) for index in range(count)]
            await self._stopping.wait()
            self._signal(signal.SIGTERM)
            timeout = self._greeting.drain_seconds + GRACE_SECONDS
            _, late = await asyncio.wait(kept, timeout=timeout)
            self._signal(signal.SIGKILL)
            if late:
                await asyncio.wait(late)
        return not self._failed

    def _stop(self, number: signal.Signals) -> None:
        # A second Ctrl-C ends the wait, as uvicorn's does.
        if self._stopping.is_set() and number == signal.SIGINT:
            self._signal(signal.SIGKILL)
        self._stopping.set()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                process.send_signal(number)

    async def _keep(self, index: int, listening: Callable[[], None]) -> None:
        """Run one front end after another until the service stops."""

        def ready() -> None:
            if index in self._unready:
                self._unready.remove(index)
                if not self._unready and not self._stopping.is_set():
                    listening()

        while not self._stopping.is_set():
            ended = await self._run(ready)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RESTART_SECONDS)
            if self._stopping.is_set():
                return
            if index in self._unready:
                log.error("a front end ended before it served; the service stops", **ended)
                self._failed = True
                self._stopping.set()
            else:
                log.error("a front end ended; another one is started", **ended)

    async def _run(self, ready: Callable[[], None]) -> dict[str, object]:
        """Run one front end from its start to its end. What to log of the end."""
        try:
            wire, process = await self._start()
        except OSError as error:
            return {"error": str(error)}
        self._processes.add(process)
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        ended: dict[str, object] = {"pid": process.pid}
        engine_end = EngineEnd(self._app, self._service, self._unread)
        try:
            await engine_end.serve(wire, self._greeting, ready)
        except OSError as error:
            wire.close()  # which ends the front end
            ended["error"] = str(error)
        watching = asyncio.create_task(_kill_once_unanswered(process, engine_end))
        code = await process.wait()
        watching.cancel()
        self._processes.remove(process)
        return {**ended, "exit_code": code}

    async def _start(self) -> tuple[socket.socket, asyncio.subprocess.Process]:
        """A front end, and this process's end of the socket to it."""
        ours, theirs = socket.socketpair()
        try:
            # Only the front end keeps its listener. When it ends, the kernel gives its share of the
            # connections to the others.
            with theirs, listener_at(self._place) as listener:
                handed = (theirs.fileno(), listener.fileno())
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "service.workers.front_end", *map(str, handed)),
                    pass_fds=handed,
                    env=self._environment,
                    # In a session of its own: a Ctrl-C at the terminal reaches this process alone,
                    # which stops the front ends in order.
                    start_new_session=True,
                )
        except OSError:
            ours.close()
            raise
        return ours, process


async def _kill_once_unanswered(process: asyncio.subprocess.Process, engine_end: EngineEnd) -> None:
    """A front end that is stopped or hangs keeps its listener, and so its share of the connections,
    which wait for ever. The kernel takes them back when the process ends."""
    await engine_end.unanswered()
    log.error(
        "a front end does not answer; it is killed",
        pid=process.pid,
        seconds=MAX_PINGS_MISSED * PING_SECONDS,
    )
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        process.kill()
