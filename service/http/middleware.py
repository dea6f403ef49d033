"""Middleware around every request: its id and its log line, HEAD as GET, the limit of its body.
Plain ASGI, without the framework."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from opentelemetry import trace

from service.http.answers import error_type, headers_of, problem, status_of
from service.refusals import BodyTooLarge, Closed

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_ID_CHARACTERS = 128
UPLOAD_PATH = "/adapters"
# Asked every few seconds, for ever: logged at debug level only, and not traced.
PROBES = ("/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready")

log = structlog.get_logger("service.access")


class RequestContext:
    """Gives each request an id: the client's X-Request-ID if it is printable and short, else a new
    one. Binds it and the trace's ids to the log, answers it in the header, and logs one line when
    the answer is sent."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, **_trace_ids())
        log.debug("accepted", method=scope["method"], path=scope["path"])
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = status or 500  # answered further out, by Starlette
            raise
        except asyncio.CancelledError:
            # uvicorn ends what the drain time was too short for, with a 500 of its own if there is
            # no answer yet.
            if status:
                raise
            closed = Closed()
            answer = problem(status_of(closed), str(closed), error_type(Closed), headers_of(closed))
            await answer(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            tell = log.debug if scope["path"] in PROBES else log.info
            tell(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1e3, 3),
            )


class HeadAsGet:
    """Answers HEAD as GET; the server sends the head of that answer alone."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_get = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if as_get else scope, receive, send)


class BodyLimit:
    """Refuses bodies that are too large: by the length that they announce or, without one, as they
    come in."""

    def __init__(self, app: App, max_body_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_body_bytes, self._max_upload_bytes = max_body_bytes, max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._max_upload_bytes if scope["path"] == UPLOAD_PATH else self._max_body_bytes
        announced = announced_bytes(scope)
        if announced is not None and announced > limit:
            refusal = BodyTooLarge(announced, limit)
            answer = problem(
                status_of(refusal), str(refusal), error_type(BodyTooLarge), {"Connection": "close"}
            )
            await answer(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise BodyTooLarge(received, limit)
            return message

        await self._app(scope, counted, send)


def announced_bytes(scope: Scope) -> int | None:
    """The length that a request announces for its body, if it announces one."""
    value = _header(scope, b"content-length")
    return int(value) if value.isdigit() else None


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _request_id(scope: Scope) -> str:
    text = _header(scope, b"x-request-id").decode("latin-1")
    usable = text.isascii() and text.isprintable() and 0 < len(text) <= MAX_ID_CHARACTERS
    return text if usable else uuid.uuid4().hex


def _trace_ids() -> dict[str, str]:
    """The ids of the request's span; none where tracing is off."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(span.trace_id),
        "span_id": trace.format_span_id(span.span_id),
    }
