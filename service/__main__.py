"""`python -m service`: serve, with the settings of the environment."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
import uvicorn

from adapters.errors import AdaMixError
from service import logs
from service.protocol import Protocol
from service.settings import Settings, read_settings

if TYPE_CHECKING:  # torch and transformers take seconds to import, which help and completion do not wait for
    from service.middleware import App
    from service.state import Service

# How often a thread of a batch looks for the others' end before it sleeps: for longer than it is from one parallel region to
# the next. libgomp's own 300,000 are as fast on quiet cores, and twelve to thirty times slower on shared ones (LOG.md).
SPINS = 2000

log = structlog.get_logger("service")

EXIT_CODES = "**Exit codes:** 0, asked to stop; 2, something that you can mend, which stderr says; 1, a fault of ours."
app = typer.Typer(add_completion=__name__ != "__main__", rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command(epilog=EXIT_CODES)
def main(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="To listen on; else `ADAMIX_HOST` or 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Else `ADAMIX_PORT` or 8000.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="`embedded`, a folder, or a Hugging Face id; else `ADAMIX_BACKBONE` or `embedded`."
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of the adapters; else `ADAMIX_STORE` or var/store.")
    ] = None,
) -> None:
    """Serve AdaMix adapters over one frozen backbone, until SIGTERM: that answers what is under way, then exits.

    With the shipped adapters, on http://127.0.0.1:8000, where there is a page:

        python -m service

    For others, who need the admin key to write; on another backbone:

        ADAMIX_ADMIN_KEY=… python -m service --host 0.0.0.0 --port 80
        python -m service --backbone roberta-large --store var/large

    Every other setting is an `ADAMIX_…` variable: docs/settings.md lists them.
    """
    if "OMP_WAIT_POLICY" not in os.environ:  # libgomp reads both when torch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    given = {"host": host, "port": port, "backbone": backbone, "store": store}
    try:
        settings = read_settings(**{name: value for name, value in given.items() if value is not None})
        logs.configure(settings.log_level, settings.log_format)
        from service.app import create_app

        application = create_app(settings)
        raise typer.Exit(serve(application, application.state.service, settings))
    except AdaMixError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def serve(application: App, service: Service, settings: Settings) -> int:
    """Serve until a signal; the exit code."""
    # One text is no work for a thread pool, and its threads would take the engine's cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # uvicorn answers what is under way, then raises the signal again: being asked to stop is no failure.
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=Protocol,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=settings.drain_seconds,
        server_header=False,
    )
    server = _Server(config, service)
    # What lives until the end is no garbage: looking through all of it stalled every request for most of a second.
    gc.collect()
    gc.freeze()
    try:
        server.run()
    except SystemExit as ended:  # uvicorn's own code for an address that it cannot have, whose reason it has logged, is 3
        return 2 if ended.code else 0
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """Says where it listens once it does: with port 0 only the operating system knows before."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}", **self._state())

    def _state(self) -> dict[str, object]:
        """What is served, for the operator who reads the log."""
        storage = self._service.storage()
        return {
            "backbone": storage.backbone,
            "device": self._service.device,
            "tasks": storage.tasks,
            "total_bytes": storage.total_bytes,
            "saved_bytes": storage.saved_bytes,
        }


if __name__ == "__main__":
    app()
