"""The front ends of one engine process: started, started anew when one dies, and stopped."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable

import structlog
from fastapi import FastAPI

from service.backend import Backend
from service.state import Service
from service.wire import Greeting

PAUSE = 0.5  # seconds before another one is started: it may die of the same, and who stops us may have told them first
GRACE = 5  # seconds that one may take to stop beyond those that it drains

log = structlog.get_logger("service")


class FrontEnds:
    """Processes that accept on one listener, each with a wire of its own to this one."""

    def __init__(self, app: FastAPI, service: Service, greeting: Greeting, listener: socket.socket) -> None:
        self._app, self._service, self._greeting, self._listener = app, service, greeting, listener
        self._processes: set[asyncio.subprocess.Process] = set()
        self._unready: set[int] = set()
        self._stopping = False

    async def serve(self, count: int, listening: Callable[[], None]) -> None:
        """Serve by so many until a signal, then by none; `listening` is told once all of them do."""
        asked = asyncio.Event()
        for stop in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(stop, asked.set)
        self._unready = set(range(count))
        async with self._app.router.lifespan_context(self._app):
            kept = [asyncio.create_task(self._keep(number, listening)) for number in range(count)]
            await asked.wait()
            self._stopping = True
            self._listener.close()  # theirs follow: nobody is let in to wait for nobody
            for process in self._processes:
                process.terminate()
            _, late = await asyncio.wait(kept, timeout=self._greeting.drain_seconds + GRACE)
            for process in self._processes:
                process.kill()
            if late:
                await asyncio.wait(late)

    async def _keep(self, number: int, listening: Callable[[], None]) -> None:
        def ready() -> None:
            if number in self._unready:
                self._unready.remove(number)
                if not self._unready:
                    listening()

        while not self._stopping:
            try:
                process = await self._start(ready)
            except OSError as error:
                log.error("a front end cannot be started; it is tried again", error=str(error))
            else:
                code = await process.wait()
                self._processes.remove(process)
                if not self._stopping:
                    log.error("a front end ended; another one is started", pid=process.pid, exit_code=code)
            if not self._stopping:
                await asyncio.sleep(PAUSE)

    async def _start(self, ready: Callable[[], None]) -> asyncio.subprocess.Process:
        ours, theirs = socket.socketpair()
        with theirs:
            handed = (theirs.fileno(), self._listener.fileno())
            command = [sys.executable, "-m", "service.front", *map(str, handed)]
            # In a session of its own: a Ctrl-C at the terminal is for this process, which stops them in order.
            process = await asyncio.create_subprocess_exec(*command, pass_fds=handed, start_new_session=True)
        self._processes.add(process)
        if self._stopping:  # asked to meanwhile
            process.terminate()
        await Backend(self._app, self._service).serve(ours, self._greeting, ready)
        return process
