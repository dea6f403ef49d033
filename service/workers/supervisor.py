"""The front ends of one engine process: started, started anew when one dies, and stopped."""

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
from service.workers.engine_end import Backend
from service.workers.listeners import listener_at
from service.workers.wire import Greeting

# seconds before another one is started: it may die of the same, and who stops us may have told them
# first
PAUSE = 0.5
GRACE = 5  # seconds that one may take to stop beyond those that it drains

log = structlog.get_logger("service")


class FrontEnds:
    """Processes that listen at one place, each with a wire of its own to this one."""

    def __init__(
        self,
        app: App,
        service: Service,
        greeting: Greeting,
        place: socket.socket,
        environment: dict[str, str],
    ) -> None:
        self._environment = environment
        self._app, self._service, self._greeting, self._place = app, service, greeting, place
        self._processes: set[asyncio.subprocess.Process] = set()
        self._unready: set[int] = set()
        self._asked = asyncio.Event()  # to stop
        self._failed = False

    async def serve(self, count: int, listening: Callable[[], None]) -> bool:
        """Serve by so many until a signal, then by none; `listening` is told once all of them do.
        False if they cannot."""
        for stop in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(stop, self._stop, stop)
        self._unready = set(range(count))
        async with self._service.running():
            kept = [asyncio.create_task(self._keep(number, listening)) for number in range(count)]
            await self._asked.wait()
            self._tell(signal.SIGTERM)
            _, late = await asyncio.wait(kept, timeout=self._greeting.drain_seconds + GRACE)
            self._tell(signal.SIGKILL)
            if late:
                await asyncio.wait(late)
        return not self._failed

    def _stop(self, how: signal.Signals) -> None:
        # a second Ctrl-C waits no longer, as uvicorn's
        if self._asked.is_set() and how == signal.SIGINT:
            self._tell(signal.SIGKILL)
        self._asked.set()

    def _tell(self, how: signal.Signals) -> None:
        for process in self._processes:
            # it has ended, and is about to be taken off
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(how)

    async def _keep(self, number: int, listening: Callable[[], None]) -> None:
        def ready() -> None:
            if number in self._unready:
                self._unready.remove(number)
                if not self._unready and not self._asked.is_set():
                    listening()

        while not self._asked.is_set():
            ended = await self._run(ready)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), PAUSE)
            if self._asked.is_set():
                return
            if number in self._unready:
                log.error("a front end ended before it served; the service stops", **ended)
                self._failed = True
                self._asked.set()
            else:
                log.error("a front end ended; another one is started", **ended)

    async def _run(self, ready: Callable[[], None]) -> dict[str, object]:
        """One front end, from its start to its end; what the log is told of that."""
        try:
            ours, process = await self._started()
        except OSError as error:
            return {"error": str(error)}
        self._processes.add(process)
        if self._asked.is_set():
            self._tell(signal.SIGTERM)
        ended: dict[str, object] = {"pid": process.pid}
        try:
            await Backend(self._app, self._service).serve(ours, self._greeting, ready)
        except OSError as error:
            ours.close()  # at which it ends
            ended["error"] = str(error)
        code = await process.wait()
        self._processes.remove(process)
        return {**ended, "exit_code": code}

    async def _started(self) -> tuple[socket.socket, asyncio.subprocess.Process]:
        ours, theirs = socket.socketpair()
        try:
            # Only the front end keeps its listener: when it dies, the kernel gives its share to the
            # others.
            with theirs, listener_at(self._place) as listener:
                handed = (theirs.fileno(), listener.fileno())
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "service.workers.front_end", *map(str, handed)),
                    pass_fds=handed,
                    env=self._environment,
                    # In a session of its own: a Ctrl-C at the terminal is for this process, which
                    # stops them in order.
                    start_new_session=True,
                )
        except OSError:
            ours.close()
            raise
        return ours, process
