"""`python -m service`: serve, with the settings of the environment."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
import uvloop

from adapters.errors import AdaMixError
from service.http.protocol import Server, configured
from service.settings import InvalidSettings, Settings, read_settings
from service.telemetry import logs
from service.workers.listeners import claimed
from service.workers.wire import Greeting

# torch and transformers take seconds to import, which help and completion do not wait for
if TYPE_CHECKING:
    from service.http.middleware import App
    from service.service import Service

# How often a thread of a batch looks for the others' end before it sleeps: for longer than it is
# from one parallel region to the next. libgomp's own 300,000 are as fast on quiet cores, and twelve
# to thirty times slower on shared ones (docs/decisions/0008-openmp-threads.md).
SPINS = 2000

log = structlog.get_logger("service")

EXIT_CODES = (
    "**Exit codes:** 0, asked to stop; 2, something that you can mend, which stderr says; 1, a"
    " fault of ours."
)
app = typer.Typer(
    add_completion=__name__ != "__main__",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.command(epilog=EXIT_CODES)
def main(
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="To listen on; else `ADAMIX_HOST` or 127.0.0.1."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Else `ADAMIX_PORT` or 8000.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=(
                "`embedded`, a folder, or a Hugging Face id; else `ADAMIX_BACKBONE` or `embedded`."
            ),
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of the adapters; else `ADAMIX_STORE` or var/store."),
    ] = None,
) -> None:
    """Serve AdaMix adapters over one frozen backbone, until SIGTERM: that answers what is under
    way, then exits.

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
        settings = read_settings(
            **{name: value for name, value in given.items() if value is not None}
        )
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
    # uvicorn answers what is under way, then raises the signal again: being asked to stop is no
    # failure.
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: sys.exit(0))
    # What lives until the end is no garbage: looking through all of it stalled every request for
    # most of a second.
    gc.collect()
    gc.freeze()
    if settings.workers > 1:
        return 0 if serve_by_front_ends(application, service, settings) else 1
    config = configured(application, settings.drain_seconds, settings.host, settings.port)
    server = Server(config, partial(tell, service))
    try:
        server.run()
    except SystemExit as ended:
        # uvicorn's own code for an address that it cannot have, whose reason it has logged, is 3
        return 2 if ended.code else 0
    return 0 if server.started else 1


def serve_by_front_ends(application: App, service: Service, settings: Settings) -> bool:
    """The same, with HTTP in processes of its own; whether they could. Raises InvalidSettings."""
    from service.workers.supervisor import FrontEnds

    try:
        place = claimed(settings.host, settings.port)
    except (socket.gaierror, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InvalidSettings(
            f"setting ADAMIX_HOST is {settings.host!r}, which is no address: {reason}"
        ) from None
    except OSError as error:
        reason = str(error.strerror).lower()
        raise InvalidSettings(
            f"setting ADAMIX_PORT is {settings.port}, but on {settings.host}: {reason}"
        ) from None
    greeting = Greeting(
        tokenizer=service.tokenizer.tokenizer.to_str(),
        mask_token=service.tokenizer.mask_token,
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
        dtype=service.dtype,
        max_inputs=service.max_inputs,
        auto_truncate=service.auto_truncate,
        hosts=settings.hosts,
        max_body_bytes=settings.max_body_bytes,
        drain_seconds=settings.drain_seconds,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    environment = {
        name: value for name, value in os.environ.items() if name.upper() != "ADAMIX_ADMIN_KEY"
    }
    with place:
        front_ends = FrontEnds(application, service, greeting, place, environment)
        return uvloop.run(
            front_ends.serve(settings.workers, lambda: tell(service, place.getsockname()[:2]))
        )


def tell(service: Service, address: tuple[str, int]) -> None:
    """Tell the operator who reads the log where it listens, and what is served there."""
    host, port = address
    storage = service.storage()
    log.info(
        "listening",
        url=f"http://{f'[{host}]' if ':' in host else host}:{port}",
        backbone=storage.backbone,
        device=service.device,
        tasks=storage.tasks,
        total_bytes=storage.total_bytes,
        saved_bytes=storage.saved_bytes,
    )


if __name__ == "__main__":
    app()
