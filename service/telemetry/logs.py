"""JSON logs: one line an event, standard library and structlog alike, with the request's id."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any

import orjson
import structlog


def configure(level: str, form: str) -> None:
    """Send every log line to stderr; `form` is auto (console on a terminal, else JSON), json or
    console."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console:
        shared.append(structlog.processors.format_exc_info)
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if console
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Writer,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel("WARNING")  # its start-up lines say less than ours
    for chatty in ("httpx2", "httpcore2", "asyncio", "python_multipart", "urllib3"):
        logging.getLogger(chatty).setLevel("WARNING")


class _Writer:
    """Writes our own events past the standard library's logging, which took longer than all the
    rest of a line: every request has one. Nobody is failed by a log that cannot be written."""

    def __init__(self, name: str) -> None:
        self.name = name

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line}\n")  # which flushes at the end of a line

    debug = info = warning = error = critical = msg


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()
