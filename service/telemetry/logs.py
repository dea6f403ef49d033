"""JSON logs: one line an event, standard library and structlog alike, with the request's id."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog

# Control characters, line separators, and what turns the direction of writing.
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]")


def configure(level: str, form: str) -> None:
    """Send every log line to stderr; `form` is auto (console on a terminal, else JSON), json or
    console."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if console:
        shared.append(_printable)
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
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


def _printable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """What a client sent must neither drive the terminal nor look like a line of its own: its
    control characters become escapes. Only tracebacks keep their lines."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            lines = value.split("\n") if key == "exception" else [value]
            event[key] = "\n".join(_CONTROL.sub(_escaped, line) for line in lines)
    return event


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


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
