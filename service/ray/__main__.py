"""`python -m service.ray`: replicas on one machine, behind the HAProxy that Ray Serve brings."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import structlog
import typer

from adapters.bucket.objects import is_bucket
from adapters.errors import AdaMixError, for_operators
from service.__main__ import EXIT_CODES, SPINS, placed
from service.http.addresses import bound
from service.keys.file import read
from service.settings import InvalidSettings, Settings, read_settings, unknown_variables
from service.telemetry import logs

# What HAProxy listens on beside the service's port: on every address, whatever it is told.
STATISTICS = {"RAY_SERVE_HAPROXY_STATS_PORT": "8404", "RAY_SERVE_HAPROXY_METRICS_PORT": "9101"}
# A request is sent again if its replica ends before it answers: also a write, which may have been
# done. For that HAProxy must have the whole request: many clients send a body after its headers,
# which HAProxy would pass on before. Ray has no variable for the second line, and writes the value
# of this one into HAProxy's configuration as it is.
RETRIES = "conn-failure empty-response\n    option http-buffer-request"
OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray takes; the replicas share no objects

log = structlog.get_logger("service")

app = typer.Typer(
    add_completion=__name__ != "__main__",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.command(epilog=EXIT_CODES)
def main(
    replicas: Annotated[int, typer.Option(min=1, help="Processes, each with the backbone.")] = 2,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="127.0.0.1 or 0.0.0.0; else `ADAMIX_HOST` or 127.0.0.1."
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Else `ADAMIX_PORT` or 8000.")] = None,
) -> None:
    """Serve from several replicas on this machine under Ray Serve, until SIGTERM. They share a
    bucket.

        ADAMIX_STORE=s3://adapters/prod python -m service.ray --replicas 4

    Ray opens more ports than this one: docs/many-machines.md lists them.
    """
    given = {"host": host, "port": port}
    try:
        settings = read_settings(
            **{name: value for name, value in given.items() if value is not None}
        )
        logs.configure(settings.log_level, settings.log_format)
        for name in unknown_variables():
            log.warning("a variable is no setting, and has no effect", variable=name)
        check(settings)
        threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // replicas)
        with tempfile.TemporaryDirectory(
            prefix="adamix-ray-", ignore_cleanup_errors=True
        ) as folder:
            set_variables(Path(folder))
            run(settings, replicas, threads, folder)
    except AdaMixError as error:
        typer.echo(f"error: {for_operators(error)}", err=True)
        raise typer.Exit(2) from None


def check(settings: Settings) -> None:
    """Raises InvalidSettings where replicas under Ray cannot run with these, and InvalidKeys."""
    if importlib.util.find_spec("ray") is None:
        raise InvalidSettings(
            "Ray is not installed; expected pip install 'adamix-serve[ray]' before python -m"
            " service.ray"
        )
    if not is_bucket(settings.store):
        raise InvalidSettings(
            f"setting ADAMIX_STORE is {settings.store!r}, which one process alone can serve;"
            " expected a bucket, which the replicas share: s3://BUCKET/PREFIX, gs://… or az://…"
        )
    if settings.host not in ("127.0.0.1", "0.0.0.0"):
        raise InvalidSettings(
            f"setting ADAMIX_HOST is {settings.host!r}; expected 127.0.0.1 or 0.0.0.0, as Ray's"
            " HAProxy asks the replicas at 127.0.0.1"
        )
    if settings.workers > 1:
        raise InvalidSettings(
            f"setting ADAMIX_WORKERS is {settings.workers}; expected 1: each replica speaks HTTP"
            " itself"
        )
    if settings.device == "cuda":
        raise InvalidSettings(
            "setting ADAMIX_DEVICE is 'cuda'; expected cpu: replicas under Ray are given no GPU"
        )
    if settings.port == 0:
        raise InvalidSettings("setting ADAMIX_PORT is 0; expected a port, which HAProxy is given")
    if settings.keys_file is not None:
        read(settings.keys_file)
    placed(settings).close()
    for name, default in STATISTICS.items():
        number = os.environ.get(name, default)
        try:
            bound("0.0.0.0", int(number)).close()
        except (OSError, OverflowError, ValueError) as error:
            raise InvalidSettings(
                f"port {number} for HAProxy's statistics: {error}; expected a free port in {name}"
            ) from None


def set_variables(folder: Path) -> None:
    """What Ray and its processes read from the environment. Its own files are in this folder, which
    nobody else may read: also HAProxy's control socket, which Ray lets everybody write to."""
    in_folder = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    }
    os.environ |= {name: str(folder / file) for name, file in in_folder.items()}
    os.environ |= {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Ray's processes know one another by a token of this run.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # This machine is 127.0.0.1 to Ray, so that its own ports are on loopback. The variable's
        # name is of other systems, where that is so by itself.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    defaults = {
        "RAY_SERVE_HAPROXY_RETRY_ON": RETRIES,
        # HAProxy knows within a second that a replica is to go; Ray's own 30 are for others.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        # Ray's own 30 and 5 are too few on a busy machine.
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "TOKENIZERS_PARALLELISM": "false",  # as `service.__main__` has it, and the next
        **({} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": str(SPINS)}),
        **STATISTICS,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def run(settings: Settings, replicas: int, threads: int, folder: str) -> None:
    """Start Ray and the replicas, and wait for a signal. Raises InvalidSettings."""
    import ray
    from ray import serve

    from service.ray.deployment import deployment

    try:
        ray.init(
            address="local",
            num_cpus=replicas * threads,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )
        for asked in (signal.SIGTERM, signal.SIGINT):
            signal.signal(asked, lambda *_: sys.exit(0))
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.port},
        )
        serve.run(deployment(settings, replicas, threads))
    except Exception as error:  # Ray raises no class of its own for each of these
        _end()
        reason = str(error).partition("\n")[0]
        raise InvalidSettings(f"the replicas did not start: {reason}; the log says more") from None
    except SystemExit:
        _end()
        raise
    log.warning(
        "HAProxy's statistics listen on every address, and ask for no key",
        ports=[int(os.environ[name]) for name in STATISTICS],
    )
    log.info("listening", url=f"http://{settings.host}:{settings.port}", replicas=replicas)
    try:
        signal.pause()
    finally:
        _end()


def _end() -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    app()
