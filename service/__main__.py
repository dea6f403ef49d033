"""`python -m service`: serve, with the settings of the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from adapters.errors import AdaMixError
from service import logs
from service.app import create_app
from service.settings import Settings, read_settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    host: Annotated[str | None, typer.Option(help="Address to listen on; else ADAMIX_HOST or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; else ADAMIX_PORT or 8000.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Else ADAMIX_BACKBONE or `embedded`.")] = None,
    store: Annotated[Path | None, typer.Option(help="Else ADAMIX_STORE or var/store.")] = None,
) -> None:
    """Serve AdaMix adapters over one frozen backbone.

    Every other setting is an ADAMIX_… variable; the README lists them. SIGTERM answers what is under way, then exits.
    """
    given = {"host": host, "port": port, "backbone": backbone, "store": store}
    try:
        settings = read_settings(**{name: value for name, value in given.items() if value is not None})
        logs.configure(settings.log_level, settings.log_format)
        raise typer.Exit(_serve(settings))
    except AdaMixError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _serve(settings: Settings) -> int:
    # One text is no work for a thread pool, and its threads would take the engine's cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    application = create_app(settings)
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=settings.drain_seconds,
        server_header=False,
    )
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    app()
