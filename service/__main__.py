"""`python -m service`: serve, with the settings of the environment."""

from __future__ import annotations

import errno
import gc
import math
import os
import signal
import socket
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
import uvloop

from adapters.bucket.objects import is_bucket
from adapters.commands import DefaultCommand
from adapters.errors import AdaMixError, for_operators
from adapters.regular import is_folder
from adapters.startup import without_collection
from service.http.addresses import bound
from service.http.connections import ConnectionSettings
from service.http.server import Config, Server
from service.keys.file import block, check
from service.keys.hashes import hashed, new_secret
from service.keys.key import Key
from service.settings import InvalidSettings, Settings, read_settings, unknown_variables
from service.telemetry import logs
from service.workers.listeners import claimed

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
PREDICT_EXIT_CODES = (
    "**Exit codes:** 0, done; 2, stopped, or something that you can mend, which stderr says; 1, a"
    " fault of ours."
)
SERVE = "serve"


class ServesByDefault(DefaultCommand):
    """Where no command is named, it is `serve`."""

    default = SERVE


app = typer.Typer(
    cls=ServesByDefault,
    add_completion=__name__ != "__main__",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


keys_app = typer.Typer(
    help="Keys for `ADAMIX_KEYS_FILE`.", rich_markup_mode="markdown", no_args_is_help=True
)
app.add_typer(keys_app, name="keys")


@app.command(SERVE, epilog=EXIT_CODES)
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
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Of the adapters, or a bucket's address; else `ADAMIX_STORE` or var/store.",
        ),
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

    A file of rows, scored without a server (`python -m service predict --help`):

        python -m service predict --task sst2 rows.csv --out scored.csv
    """
    begin_threads()
    given = {"host": host, "port": port, "backbone": backbone, "store": store}
    try:
        settings = read_settings(
            **{name: value for name, value in given.items() if value is not None}
        )
        logs.configure(settings.log_level, settings.log_format)
        for name in unknown_variables():
            log.warning("a variable is no setting, and has no effect", variable=name)
        # before all that takes time, or makes a key
        with placed(settings) as place:
            with without_collection():
                from service.app import create_app

                application = create_app(settings)
            raise typer.Exit(serve(application, application.state.service, settings, place))
    except AdaMixError as error:
        typer.echo(f"error: {for_operators(error)}", err=True)
        raise typer.Exit(2) from None


@app.command("predict", epilog=PREDICT_EXIT_CODES)
def predict(
    rows: Annotated[
        Path, typer.Argument(metavar="FILE", help="Rows: .csv, .tsv, .jsonl or .parquet.")
    ],
    task: Annotated[str, typer.Option(metavar="NAME", help="A task, or TASK@VERSION.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="To write: .csv, .jsonl or .parquet.")],
    text_column: Annotated[str, typer.Option(metavar="COLUMN")] = "text",
    pair_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Of tasks of pairs; by default `text_pair`."),
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="With a column for the score of each label.")
    ] = False,
    abstain: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0.01,
            max=0.9999,
            help="No label where it is too unsure for this share of right answers, such as 0.95.",
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="A server that answers, not this process.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="ADAMIX_API_KEY", help="The server's key, if any."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Else `ADAMIX_BACKBONE` or `embedded`.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Else `ADAMIX_STORE` or var/store."),
    ] = None,
) -> None:
    """Score a file: its rows, with the columns `prediction` and `score`, into another file. Texts
    that are too long are cut.

    If it is stopped or killed, the same command goes on where it was.

        python -m service predict --task sst2 rows.csv --out scored.csv
        python -m service predict --task sst2 rows.parquet --out scored.parquet --scores

    By a running server:

        python -m service predict --task sst2 rows.csv --out scored.csv \\
            --url http://localhost:8000
    """
    from service.offline.job import Job
    from service.offline.run import by_engine, by_server

    begin_threads()
    job = Job(rows, out, text_column, pair_column, abstain, scores)
    name, _, version = task.partition("@")
    try:
        job.check()
        if url is not None:
            by_server(job, url, key, name, version or None)
            return
        given = {"backbone": backbone, "store": store}
        settings = read_settings(
            workers=1, **{name: value for name, value in given.items() if value is not None}
        )
        logs.configure("error", settings.log_format)
        with without_collection():
            from service.app import build_service

            service = build_service(for_files(settings))
        by_engine(job, service, name, version or None)
    except AdaMixError as error:
        typer.echo(f"error: {for_operators(error)}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped: the same command goes on where it was", err=True)
        raise typer.Exit(2) from None


@keys_app.command("new")
def new_key(
    name: Annotated[str, typer.Option(metavar="NAME", help="At most 64 of a-z, 0-9, _ and -.")],
    scope: Annotated[
        list[str],
        typer.Option(metavar="SCOPE", help="`predict`, `write` or `read-metrics`; repeat it."),
    ],
    tasks: Annotated[
        list[str],
        typer.Option(metavar="PATTERN", help="Of task names, such as 'sst2*'; repeat it."),
    ] = [],  # noqa: B006  # typer copies it
    requests_per_second: Annotated[float | None, typer.Option(metavar="NUMBER")] = None,
    rows_per_second: Annotated[float | None, typer.Option(metavar="NUMBER")] = None,
) -> None:
    """Make a key. It is shown this once, on stderr; its table for the keys file goes to stdout.

    python -m service keys new --name team-a --scope predict --tasks 'sst2*' >> keys.toml
    """
    secret = new_secret()
    key = Key(
        name,
        hashed(secret),
        frozenset(scope),
        tuple(tasks),
        requests_per_second,
        rows_per_second,
    )
    try:
        check(key)
    except AdaMixError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"The key, shown this once: {name}.{secret}", err=True)
    typer.echo(f"\n{block(key)}", nl=False)


def for_files(settings: Settings) -> Settings:
    """Nobody waits for one row of a file, and a server may have the store open."""
    there = is_bucket(settings.store) or is_folder(settings.store)
    return settings.model_copy(
        update={"max_wait_seconds": math.inf, "drain_seconds": 0, "read_only": there}
    )


def begin_threads() -> None:
    """Before torch is imported: libgomp reads both then."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    # One text is no work for a thread pool, and its threads would take the engine's cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def placed(settings: Settings) -> socket.socket:
    """A socket at the settings' address, which does not listen yet. Raises InvalidSettings."""
    try:
        return (claimed if settings.workers > 1 else bound)(settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        raise _no_place(settings, error) from None


def _no_place(settings: Settings, error: OSError | UnicodeError) -> InvalidSettings:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return InvalidSettings(
            f"setting ADAMIX_HOST is {settings.host!r}, which is no address: {reason}"
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return InvalidSettings(
            f"setting ADAMIX_HOST is {settings.host!r}, which is no address of this machine:"
            f" {reason}"
        )
    return InvalidSettings(
        f"setting ADAMIX_PORT is {settings.port}, but on {settings.host}: {reason}"
    )


def serve(application: App, service: Service, settings: Settings, place: socket.socket) -> int:
    """Serve there until a signal; the exit code. Raises InvalidSettings."""
    # uvicorn answers what is under way, then raises the signal again: being asked to stop is no
    # failure.
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: sys.exit(0))
    # What lives until the end is no garbage: looking through all of it stalled every request for
    # most of a second.
    gc.collect()
    gc.freeze()
    by = serve_here if settings.workers == 1 else serve_by_front_ends
    return 0 if by(application, service, settings, place) else 1


def serve_here(
    application: App, service: Service, settings: Settings, place: socket.socket
) -> bool:
    """With HTTP in this process; whether it could. Raises InvalidSettings."""
    config = Config(application, settings.drain_seconds, connection_settings(settings))
    server = Server(config, partial(tell, service, place))
    try:
        server.run(sockets=[place])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # another one was at the same address, and did not listen before
        raise _no_place(settings, error) from None
    except SystemExit as ended:
        return not ended.code
    return server.started


def serve_by_front_ends(
    application: App, service: Service, settings: Settings, place: socket.socket
) -> bool:
    """With HTTP in processes of its own; whether they could."""
    from service.workers.messages import Greeting
    from service.workers.supervisor import Supervisor

    greeting = Greeting(
        tokenizer=service.tokenizer.tokenizer.to_str(),
        mask_token=service.tokenizer.mask_token,
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
        keys_file=None if settings.keys_file is None else str(settings.keys_file),
        dtype=service.dtype,
        max_inputs=service.max_inputs,
        auto_truncate=service.auto_truncate,
        hosts=settings.hosts,
        root_path=settings.root_path,
        max_body_bytes=settings.max_body_bytes,
        max_wait_seconds=settings.max_wait_seconds,
        drain_seconds=settings.drain_seconds,
        log_level=settings.log_level,
        log_format=settings.log_format,
        connections=connection_settings(settings),
    )
    environment = {
        name: value for name, value in os.environ.items() if name.upper() != "ADAMIX_ADMIN_KEY"
    }
    supervisor = Supervisor(application, service, greeting, place, environment)
    return uvloop.run(supervisor.serve(settings.workers, partial(tell, service, place)))


def connection_settings(settings: Settings) -> ConnectionSettings:
    """Those of the settings that each process needs which speaks HTTP."""
    return ConnectionSettings(
        **{field.name: getattr(settings, field.name) for field in fields(ConnectionSettings)}
    )


def tell(service: Service, place: socket.socket) -> None:
    """Tell the operator who reads the log where it listens, and what is served there."""
    host, port = place.getsockname()[:2]
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
