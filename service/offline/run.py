"""A job by the engine of this process, or by a server, told on the terminal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich.progress
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from adapters.upload import connected
from service.offline.answers import Answerer, EngineAnswerer, ServerAnswerer
from service.offline.job import Job, score

if TYPE_CHECKING:  # it brings torch, which a server's answers need not wait for
    from service.service import Service

LOG_LINES = 20  # when the output is no terminal: at most this many lines instead of a bar


def by_engine(job: Job, service: Service, task: str, version: str | None) -> None:
    """Raises AdaMixError, and KeyboardInterrupt."""

    async def run() -> None:
        async with service.running():
            # By its digest: the rows of a file are no part of a task's divided traffic, and no
            # shadow runs them, too.
            digest = service.store.find(task, version).digest
            admitted = await service.admit(task, digest)
            await _told(job, EngineAnswerer(service, admitted, job.abstain))

    uvloop.run(run())


def by_server(job: Job, url: str, key: str | None, task: str, version: str | None) -> None:
    """Raises AdaMixError, and KeyboardInterrupt."""
    with connected(url, key) as client:
        answerer = ServerAnswerer(client, task, version, job.abstain)
        asyncio.run(_told(job, answerer))


async def _told(job: Job, answerer: Answerer) -> None:
    started = time.monotonic()
    with _shown() as show:
        rows, before = await score(job, answerer, show)
    seconds = time.monotonic() - started
    again = f" ({before:,} of them before)" if before else ""
    typer.echo(
        f"{job.out}: {rows:,} rows{again} by {answerer.scored.task}@{answerer.scored.digest[:12]};"
        f" {(rows - before) / seconds:,.0f} rows/s"
    )


@contextmanager
def _shown() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere, a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        told = 0

        def tell(done: int, rows: int) -> None:
            nonlocal told
            if done * LOG_LINES // rows > told:
                told = done * LOG_LINES // rows
                typer.echo(f"{done:,} of {rows:,} rows", err=True)

        yield tell
        return
    columns = (
        *(BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[speed]}"), TimeRemainingColumn()),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        handle = bar.add_task("", total=None, speed="")
        begun: tuple[float, int] | None = None  # what was answered before says nothing of the speed

        def update(done: int, rows: int) -> None:
            nonlocal begun
            begun = begun or (time.monotonic(), done)
            speed = (done - begun[1]) / max(time.monotonic() - begun[0], 1e-3)
            bar.update(handle, completed=done, total=rows, speed=f"{speed:,.0f} rows/s")

        yield update
